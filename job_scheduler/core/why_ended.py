"""How a task stands that runs, or has ended."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from job_scheduler.constants import InstanceState, RecoverPastTasks, TaskStatus
from job_scheduler.core import own_words
from job_scheduler.core.downtime import downtime_in
from job_scheduler.core.facts import CUT_OFF, Facts, Here
from job_scheduler.core.reasons import NOTHING, Reason, ReasonCode, at, duration, error_of, number

_SILENT = 0.5
"""The part of a lease after which an instance that lives has been silent for unusually long."""


def why_running(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield how the run is that is under way, and whether anything is wrong with it."""
    task, now = facts.task, facts.now
    since = task.started_at or now
    instance = next(
        (each for each in facts.instances if each.instance_id == task.instance_id), None
    )
    # A row that some other program has written may name none.
    who = task.instance_id or "unknown"
    data: dict[str, Any] = {} if task.instance_id is None else {"instance_id": task.instance_id}
    if instance is None or instance.state is InstanceState.Dead:
        yield Reason(
            ReasonCode.InstanceDead,
            f"The instance that ran it, {who}, has died: what becomes of it is "
            "decided now, as its on_crash says.",
            "Ask again in a second.",
            data | ({} if instance is None else {"since": instance.heartbeat_at}),
        )
    elif (silent := (now - instance.heartbeat_at).total_seconds()) > _SILENT * here.lease:
        until = instance.heartbeat_at + timedelta(seconds=here.lease)
        yield Reason(
            ReasonCode.InstanceSilent,
            f"The instance that runs it, {who}, has been silent for "
            f"{duration(silent)}: from about {at(until)} on the others take it for dead.",
            "Look at that instance. If it has died, the run is dealt with as on_crash says.",
            data | {"since": instance.heartbeat_at, "seconds": silent, "until": until},
        )
    if task.cancel_requested_at is not None:
        yield Reason(
            ReasonCode.Cancelling,
            f"Its end was asked for at {at(task.cancel_requested_at)}, and its handler has not "
            "ended yet.",
            "Wait. A plain handler is asked by context.should_stop, and ends by itself.",
            data | {"since": task.cancel_requested_at},
        )
    timeout = here.timeout if task.timeout is None else task.timeout
    yield Reason(
        ReasonCode.Running,
        f"It has been running for {duration((now - since).total_seconds())}, since {at(since)}, "
        f"on instance {who}.",
        f"Wait: GET /tasks/{task.task_id} with Prefer: wait=30. POST /tasks/{task.task_id}/cancel "
        "ends it.",
        data
        | {"since": since, "seconds": (now - since).total_seconds()}
        | ({} if task.progress is None else {"progress": task.progress})
        | ({} if timeout is None else {"until": since + timedelta(seconds=timeout)}),
    )


def why_ended(facts: Facts) -> Iterator[Reason]:
    """Yield why the task has ended as it has; of one that is done, only what is unusual in that."""
    task = facts.task
    match task.status:
        case TaskStatus.Failed:
            yield _failed(facts)
        case TaskStatus.Unknown:
            yield Reason(
                ReasonCode.Unknown,
                "Its run was cut off, and nobody knows whether its work was done: on_crash is "
                "hold, so a person decides.",
                "Find out whether it has done its work. If not, "
                f"POST /tasks/{task.task_id}/retry runs it again.",
                _ending(facts),
            )
        case TaskStatus.Cancelled:
            yield Reason(
                ReasonCode.Cancelled,
                f"It was cancelled after {number(task.attempt, 'attempt')}."
                if task.attempt
                else "It was cancelled before it started.",
                "Post it again if it is to run after all.",
                _ending(facts),
            )
        case _ if own_words.tells_of_time_kept(task.result):
            yield Reason(
                ReasonCode.Timer,
                f"No handler was named {task.name!r} when its time came: nothing was run, it only "
                "kept the time.",
                "Correct the name, or name the handler's module in TASK_MODULES, and post it "
                "again. GET /handlers lists the names.",
                _ending(facts) | {"name": task.name},
            )


def done(facts: Facts) -> Reason:
    """Return that a task is done as planned."""
    return Reason(ReasonCode.Done, "It is done, as planned.", NOTHING, _ending(facts))


def missed_as_failed(facts: Facts) -> Reason | None:
    """Return that the task has failed since a downtime made it miss its time, if so."""
    down = downtime_in(facts.task.result)
    if down is None:
        return None
    ended = facts.task.status is TaskStatus.Failed
    task_id = facts.task.task_id
    return Reason(
        ReasonCode.Missed,
        f"It was missed while the service was down {down.words}, and failed for that: "
        "RECOVER_PAST_TASKS was fail.",
        f"POST /tasks/{task_id}/retry runs it after all."
        if ended
        else f"It goes on with its next time. POST /tasks/{task_id}/run makes an extra run.",
        {"policy": RecoverPastTasks.Fail, "until": down.until, "run_at": facts.task.run_at}
        | ({} if down.since is None else {"since": down.since}),
    )


def _failed(facts: Facts) -> Reason:
    task = facts.task
    if (missed := missed_as_failed(facts)) is not None:
        return missed
    again = f"POST /tasks/{task.task_id}/retry runs it again."
    if own_words.tells_of_expiry(task.result):
        return Reason(
            ReasonCode.Expired,
            "It could not be started before its start_before, and was not run.",
            f"POST /tasks/{task.task_id}/retry runs it all the same: start_before is removed.",
            _ending(facts) | ({} if task.start_before is None else {"until": task.start_before}),
        )
    attempts = facts.occurrence
    error = error_of(task.result)
    data = _ending(facts) | {
        **error,
        "attempts": task.attempt,
        "max_attempts": task.max_attempts,
    }
    if attempts and attempts[-1].outcome in CUT_OFF:
        return Reason(
            ReasonCode.CutOff,
            "Its run was cut off before it ended, and it was not to be started again: whether its "
            "work was done is not known.",
            f"Find out whether it has done its work. If not, {again}",
            data,
        )
    return Reason(
        ReasonCode.Failed,
        f"It has failed after {number(task.attempt, 'attempt')}: "
        + error.get("error", "no reason is given."),
        f"Mend the cause; GET /tasks/{task.task_id}/runs lists the attempts. {again}",
        data,
    )


def _ending(facts: Facts) -> dict[str, Any]:
    finished_at = facts.task.finished_at
    return {} if finished_at is None else {"finished_at": finished_at}
