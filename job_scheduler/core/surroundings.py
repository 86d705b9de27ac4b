"""What an instance knows of its release, its settings and its places, for whoever asks why."""

from datetime import datetime

from job_scheduler.config import Settings
from job_scheduler.constants import UnknownTasks
from job_scheduler.core.facts import Facts, Here, Room
from job_scheduler.core.handlers.works import Works
from job_scheduler.core.lanes import most_of_one
from job_scheduler.core.store import HANDLER, DueTask


def here_of(facts: Facts, works: Works, settings: Settings, instance_id: str, lost: int) -> Here:
    """Return what this instance knows that matters to a task; `lost` is how many places it has lost
    to handlers that do not end.
    """
    task = facts.task
    handler = works.registry.get(task.name) if task.kind == HANDLER else None
    return Here(
        instance_id=instance_id,
        has_handler=handler is not None if task.kind == HANDLER else None,
        waits_without=settings.unknown_tasks is UnknownTasks.Reject,
        timeout=None if handler is None else handler.options.timeout,
        limits=works.limits,
        lease=settings.lease_seconds,
        rate=settings.recovery_rate,
        policy=settings.recover_past_tasks,
        room=lambda facts: _room(facts, works, settings, lost),
    )


def _room(facts: Facts, works: Works, settings: Settings, lost: int) -> Room:
    """Return the places for a task's kind of run, on all instances; or all, if these are fewer."""
    task = facts.task
    kinds = {} if facts.line is None or facts.line.kinds is None else facts.line.kinds
    instances = max(1, facts.living)
    lane = _lane(works, task.due, task.name, task.kind)
    of_lane = {
        (name, kind): count
        for (name, kind), count in kinds.items()
        if _lane(works, task.due, name, kind) == lane
    }
    places = getattr(settings, lane)
    of_name = sum(count for (name, _), count in of_lane.items() if name == task.name)
    here = Room(
        instances * places - (lost if lane == "threads" else 0),
        sum(of_lane.values()),
        instances * most_of_one(places),
        of_name,
    )
    everywhere = Room(
        instances * settings.max_running - lost, sum(kinds.values()), here.share, of_name
    )
    return min(here, everywhere, key=lambda room: room.places - room.running)


def _lane(works: Works, due: datetime, name: str, kind: str) -> str:
    """Return the setting that says how many such tasks run at once in an instance."""
    task = DueTask(due, "", name, kind)
    if works.needs_process(task):
        return "processes"
    return "threads" if works.needs_thread(task) else "max_running"
