"""What a chaos run prints in the end: figures, violations with their histories, a verdict."""

from collections import Counter
from collections.abc import Iterator
from math import inf
from statistics import quantiles

from job_scheduler.chaos.checks import Violation
from job_scheduler.chaos.history import Deletion, Fault, History, TaskHistory
from job_scheduler.chaos.ledger import Event
from job_scheduler.chaos.plan import FaultKind
from job_scheduler.constants import RunOutcome

KILLS_WANTED = 20
"""Running tasks that kills must have hit, or the run has shown nothing."""

EXIT_FINE, EXIT_VIOLATION, EXIT_VACUOUS = 0, 1, 2
_IN_FULL = 20
_RECOVERY_SECONDS = 1.0
"""How long after a fault a task that starts late may still be late because of it."""


def figures(history: History) -> list[str]:
    """Return what happened, in a few lines."""
    tasks = history.tasks
    accepted = sum(task.asked.accepted_at is not None for task in tasks)
    deleted = sum(task.asked.deletion is Deletion.Done for task in tasks)
    statuses = Counter(task.row.status.value for task in tasks if task.row)
    outcomes = Counter(run.outcome.value for task in tasks for run in task.runs)
    started = sum(len(task.of(Event.Start)) for task in tasks)
    ended = sum(len(task.of(Event.End)) for task in tasks)
    late = {id(task): late for task in tasks if (late := _lateness(task)) is not None}
    untouched = [
        late[id(task)] for task in tasks if id(task) in late and not _is_touched(task, history)
    ]
    return [
        f"tasks      {accepted:,} created of {len(tasks):,} asked for, {deleted:,} deleted; "
        f"in the end {_counted(statuses)}",
        f"runs       {started:,} started, {ended:,} came to their end; "
        f"recorded {_counted(outcomes)}",
        f"late       {sum(map(_refused, tasks)):,} results came while a newer run was under way",
        f"lateness   {_percentiles(list(late.values()))}",
        f"           {_percentiles(untouched)} where no fault was near",
        *_fault_lines(history),
    ]


def kills_hit(history: History) -> int:
    """Return how many runs a SIGKILL hit while they ran."""
    return _hits(history)[FaultKind.Kill]


def verdict(history: History, violations: list[Violation]) -> tuple[str, int]:
    """Return the last line, and the exit status."""
    if violations:
        return f"{len(violations):,} violations", EXIT_VIOLATION
    hit = kills_hit(history)
    if hit < KILLS_WANTED:
        return (
            f"vacuous: the kills hit {hit} running tasks, and {KILLS_WANTED} are wanted. "
            "Let it run for longer, or with more tasks.",
            EXIT_VACUOUS,
        )
    return f"no violations; the kills hit {hit:,} running tasks", EXIT_FINE


def violation_lines(violations: list[Violation], history: History, begin: float) -> Iterator[str]:
    """Tell each violation; of the first ones, all that is known of the task."""
    shown: set[int] = set()
    for violation in violations:
        task = violation.task
        if task is None:
            yield f"VIOLATION: {violation.text}"
            continue
        yield f"VIOLATION: task {task.asked.task_id}: {violation.text}"
        if id(task) not in shown and len(shown) < _IN_FULL:
            shown.add(id(task))
            yield from (f"    {line}" for line in _story(task, history, begin))


def _story(task: TaskHistory, history: History, begin: float) -> Iterator[str]:
    """Tell what is known of a task, in the order of time (seconds since the run's begin)."""
    asked, planned = task.asked, task.asked.planned
    yield (
        f"{planned.handler}, due {asked.run_at - begin:.3f}, takes {planned.seconds:g} s"
        f"{' and fails' if planned.fails else ''}, max_attempts {planned.max_attempts}, "
        f"on_crash {planned.on_crash}"
    )
    told = [(answer.at, answer.text) for answer in asked.answers]
    told += [
        (
            entry.at,
            f"ledger: {entry.event} of attempt {entry.attempt}, token {entry.token}, "
            f"process {entry.pid}",
        )
        for entry in task.entries
    ]
    told += [
        (
            run.finished_at,
            f"history: attempt {run.attempt}, token {run.token}, is {run.outcome}: due "
            f"{run.scheduled_for - begin:.3f}, started {run.started_at - begin:.3f}, "
            f"process {run.pid}",
        )
        for run in task.runs
    ]
    told += [
        (seen.at, f"row: {seen.status}, attempt {seen.attempt}, token {seen.token}")
        for seen in task.sightings
    ]
    pids = {entry.pid for entry in task.entries} | {run.pid for run in task.runs}
    first = min((at for at, _ in told), default=begin)
    last = max((at for at, _ in told), default=begin)
    for fault in history.faults:
        if (fault.pid is None or fault.pid in pids) and fault.overlaps(first - 1.0, last):
            whose = f" (process {fault.pid})" if fault.pid else ""
            told.append((fault.begin, f"fault: {fault.kind}{whose}, {_length(fault)}"))
    yield from (f"{at - begin:9.3f}  {text}" for at, text in sorted(told))
    if task.row is None:
        yield "in the end it has no row"
    else:
        row = task.row
        yield (
            f"in the end: {row.status}, attempt {row.attempt}, token {row.token}, due "
            f"{row.due - begin:.3f}, result {row.result}"
        )


def _length(fault: Fault) -> str:
    return "at once" if fault.end == fault.begin else f"for {fault.end - fault.begin:.3f} s"


def _fault_lines(history: History) -> Iterator[str]:
    hits = _hits(history)
    done = Counter(fault.kind for fault in history.faults)
    done[FaultKind.Cancel] = sum(
        task.asked.deletion is not Deletion.NeverAsked for task in history.tasks
    )
    for place, kind in enumerate(
        kind for kind in FaultKind if done[kind] and kind is not FaultKind.Stop
    ):
        head = "faults" if place == 0 else ""
        yield f"{head:<10} {done[kind]:>4} {kind:<26} hit {hits[kind]:,} running tasks"


def _hits(history: History) -> Counter[FaultKind]:
    """Count the runs that were under way in some process when a fault of each kind came."""
    deaths: dict[int | None, float] = {}
    for fault in history.faults:
        if fault.kind in (FaultKind.Kill, FaultKind.Restart, FaultKind.Stop):
            deaths[fault.pid] = fault.end
    found: Counter[FaultKind] = Counter()
    for task in history.tasks:
        ends = {run.token: run.finished_at for run in task.runs}
        ends |= {entry.token: entry.at for entry in task.of(Event.End)}
        for start in task.of(Event.Start):
            end = min(ends.get(start.token, inf), deaths.get(start.pid, inf))
            found.update(
                {
                    fault.kind
                    for fault in history.faults
                    if fault.pid in (None, start.pid) and fault.overlaps(start.at, end)
                }
            )
            asked = task.asked
            if asked.deletion is Deletion.Refused and start.at <= (asked.deleted_at or 0.0) <= end:
                found[FaultKind.Cancel] += 1
    return found


def _refused(task: TaskHistory) -> int:
    """Count the results that would have struck a newer run, had its token not kept them off."""
    ends = {run.token: run.finished_at for run in task.runs}
    return sum(
        any(
            start.attempt > run.attempt and start.at < run.finished_at < ends.get(start.token, inf)
            for start in task.of(Event.Start)
        )
        for run in task.runs
        if run.outcome is RunOutcome.Lost
    )


def _lateness(task: TaskHistory) -> float | None:
    """Return how long after its time (or its creation, if that was later) a task started."""
    starts = task.of(Event.Start)
    if not starts or task.row is None:
        return None
    return max(0.0, starts[0].at - max(task.asked.run_at, task.row.created_at))


def _is_touched(task: TaskHistory, history: History) -> bool:
    """Tell whether a fault was near between the time at which a task was due and its start."""
    end = task.of(Event.Start)[0].at
    return any(
        fault.overlaps(task.asked.run_at - _RECOVERY_SECONDS, end) for fault in history.faults
    )


def _percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "of too few tasks"
    parts = quantiles(values, n=100, method="inclusive")
    figures = ((name, parts[place]) for name, place in (("p50", 49), ("p99", 98)))
    shown = [f"{name} {_seconds(value)}" for name, value in (*figures, ("worst", max(values)))]
    return f"{', '.join(shown)} ({len(values):,} tasks)"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1.0 else f"{value * 1000:.0f} ms"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counter.items())) or "none"
