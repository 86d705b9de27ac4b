"""What is promised, as rules over the history of a run; each yields what it finds broken.

Like Jepsen's checker of Chronos, each task that is due is matched to a run of its own in its
time; unlike there, a run too many is a violation as well.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from job_scheduler.chaos.history import Deletion, Fault, History, Run, Sighting, TaskHistory
from job_scheduler.chaos.ledger import Event
from job_scheduler.chaos.plan import LEASE_SECONDS, FaultKind
from job_scheduler.constants import TRANSITIONS, OnCrash, RunOutcome, TaskStatus

FINAL = frozenset({TaskStatus.Done, TaskStatus.Failed, TaskStatus.Unknown})
_MOVES = {
    # No person has a task run again here.
    status: frozenset() if status in FINAL else following
    for status, following in TRANSITIONS.items()
}
ENDED = frozenset({RunOutcome.Done, RunOutcome.Failed})
"""How a run ends whose handler came to its end; all other outcomes are of those cut off."""

_OF_ONE_PROCESS = frozenset({FaultKind.Kill, FaultKind.Pause, FaultKind.Restart, FaultKind.Stop})
_OF_THE_DATABASE = frozenset({FaultKind.StallDatabase, FaultKind.CutDatabase})
_OUTAGE_SECONDS = LEASE_SECONDS - 1.0
"""The shortest outage that may be the lease's end: there was none of the latest heartbeats."""
_AROUND_SECONDS = 1.0
"""A fault's effect may show this much later than its end."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise; `task` is None where it concerns the service as a whole."""

    text: str
    task: TaskHistory | None = None


def examine(history: History) -> list[Violation]:
    """Return all violations, those of one task together."""
    found = [Violation(text) for text in history.incidents]
    for task in history.tasks:
        for rule in _RULES:
            found += [Violation(text, task) for text in rule(task, history)]
    return found


def _is_kept(task: TaskHistory, _history: History) -> Iterator[str]:
    deletion, accepted = task.asked.deletion, task.asked.accepted_at is not None
    if task.row is None and accepted and deletion in (Deletion.NeverAsked, Deletion.Refused):
        yield "it was answered 201 and never deleted, and its row is gone"
    if task.row is not None and deletion is Deletion.Done:
        yield "it was deleted, and its row is there"


def _has_ended(task: TaskHistory, history: History) -> Iterator[str]:
    if task.row is None:
        return
    if task.row.status is TaskStatus.Running:
        yield "it is stuck in running"
    if task.row.status is TaskStatus.Scheduled and task.row.due <= history.until:
        yield f"it is due since {history.until - task.row.due:.1f} s, and was not run"


def _is_started_no_more_often_than_allowed(task: TaskHistory, _history: History) -> Iterator[str]:
    starts, allowed = task.of(Event.Start), task.asked.planned.max_attempts
    if len(starts) > allowed:
        yield f"it was started {len(starts)} times, and may be {allowed} times"
    for what, counted in (
        ("attempt", Counter(start.attempt for start in starts)),
        ("token", Counter(start.token for start in starts)),
    ):
        yield from (
            f"{what} {value} was started {times} times"
            for value, times in counted.items()
            if times > 1
        )


def _starts_no_more_once_deleted(task: TaskHistory, _history: History) -> Iterator[str]:
    # One that may be repeated can be deleted between two attempts; no other once it has begun.
    if task.row is not None:
        return
    asked = task.asked
    for start in task.of(Event.Start):
        after = asked.deleted_at is not None and start.at > asked.deleted_at
        if asked.planned.max_attempts == 1 or after:
            yield f"its row is gone, and attempt {start.attempt} of it was started"


def _starts_no_earlier_than_due(task: TaskHistory, history: History) -> Iterator[str]:
    for start in task.of(Event.Start):
        early = task.asked.run_at - start.at
        if early > history.clock_error:
            yield f"attempt {start.attempt} began {early:.4f} s before its time"
    for run in task.runs:
        if run.started_at < run.scheduled_for:
            yield f"attempt {run.attempt} was claimed before its time"


def _done_is_of_the_last_run(task: TaskHistory, _history: History) -> Iterator[str]:
    row = task.row
    if row is None or row.status is not TaskStatus.Done:
        return
    last = max(task.of(Event.End), key=lambda entry: entry.attempt, default=None)
    if last is None:
        yield "it is done, and the ledger shows no run that ended"
        return
    if (row.token, row.attempt) != (last.token, last.attempt):
        yield "it is done under another token or attempt than the last run that ended"
    if row.result != {"token": row.token, "attempt": row.attempt}:
        yield f"its result is of a stale token: {row.result}"


def _moves_legally(task: TaskHistory, _history: History) -> Iterator[str]:
    seen = list(task.sightings)
    if task.row is not None:
        seen.append(Sighting(0.0, task.row.status, task.row.attempt, task.row.token))
    for former, later in pairwise(seen):
        if former.status in FINAL:
            legal = (former.status, former.token) == (later.status, later.token)
        else:
            legal = later.status in _REACHABLE[former.status]
        # What was claimed and never begun is given back, and so is its attempt.
        given_back = former.status is TaskStatus.Running
        if not legal or later.attempt < former.attempt - given_back:
            yield (
                f"it moved from {former.status} (attempt {former.attempt}) "
                f"to {later.status} (attempt {later.attempt})"
            )


def _ledger_is_in_the_history(task: TaskHistory, _history: History) -> Iterator[str]:
    if task.row is None or task.row.status not in FINAL:
        return
    known = {run.token for run in task.runs}
    for start in task.of(Event.Start):
        if start.token not in known:
            yield f"attempt {start.attempt} was started, and its history knows nothing of it"


def _history_is_in_the_ledger(task: TaskHistory, _history: History) -> Iterator[str]:
    ended = {entry.token for entry in task.of(Event.End)}
    for run in task.runs:
        if run.outcome in ENDED and run.token not in ended:
            yield f"attempt {run.attempt} is {run.outcome}, and the ledger shows no end of it"


def _one_run_ends_it(task: TaskHistory, _history: History) -> Iterator[str]:
    if task.row is None:
        return
    ended = [run for run in task.runs if run.outcome in ENDED]
    if len(ended) > 1:
        yield f"{len(ended)} of its attempts came to an end by themselves"
    for run in ended:
        if (task.row.status.value, task.row.token) != (run.outcome.value, run.token):
            yield f"attempt {run.attempt} is {run.outcome}, and the task is {task.row.status}"
    attempts = [run.attempt for run in sorted(task.runs, key=lambda run: run.started_at)]
    if attempts != sorted(set(attempts)):
        yield f"its attempts are numbered {attempts} in the order of their start"


def _crash_is_dealt_with_as_asked(task: TaskHistory, _history: History) -> Iterator[str]:
    row, planned = task.row, task.asked.planned
    if row is None or row.status not in FINAL:
        return
    last = max(task.runs, key=lambda run: run.attempt, default=None)
    if last is None:
        yield f"it is {row.status} without a run"
        return
    if last.outcome in ENDED:
        return
    if planned.on_crash is OnCrash.Hold:
        expected: TaskStatus | None = TaskStatus.Unknown
    elif planned.on_crash is OnCrash.Fail or last.attempt >= planned.max_attempts:
        expected = TaskStatus.Failed
    else:
        expected = None
    if row.status is not expected:
        yield (
            f"its attempt {last.attempt} of {planned.max_attempts} was cut off, and with "
            f"on_crash {planned.on_crash} it is {row.status}"
        )


def _was_cut_off_for_a_reason(task: TaskHistory, history: History) -> Iterator[str]:
    for run in task.runs:
        if run.outcome not in ENDED and not any(_explains(fault, run) for fault in history.faults):
            yield f"attempt {run.attempt} is {run.outcome}, and its process had met with no fault"


def _explains(fault: Fault, run: Run) -> bool:
    if not fault.overlaps(run.started_at - _AROUND_SECONDS, run.finished_at + _AROUND_SECONDS):
        return False
    if fault.kind in _OF_ONE_PROCESS:
        return fault.pid == run.pid
    # An instance that was without its database for the whole lease stops what may be repeated.
    lasted = fault.kind in _OF_THE_DATABASE and fault.end - fault.begin >= _OUTAGE_SECONDS
    return lasted and run.outcome is RunOutcome.Interrupted


def _reachable() -> dict[TaskStatus, set[TaskStatus]]:
    """Return where each state may lead to, by any number of moves (none, too)."""
    found = {status: {status} for status in _MOVES}
    for _ in _MOVES:
        for reached in found.values():
            reached |= {following for status in reached for following in _MOVES[status]}
    return found


_REACHABLE = _reachable()

_RULES: list[Callable[[TaskHistory, History], Iterator[str]]] = [
    _is_kept,
    _has_ended,
    _is_started_no_more_often_than_allowed,
    _starts_no_more_once_deleted,
    _starts_no_earlier_than_due,
    _done_is_of_the_last_run,
    _moves_legally,
    _ledger_is_in_the_history,
    _history_is_in_the_ledger,
    _one_run_ends_it,
    _crash_is_dealt_with_as_asked,
    _was_cut_off_for_a_reason,
]
