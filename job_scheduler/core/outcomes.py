"""What a run came to, as values, and what that makes of the task."""

from dataclasses import dataclass
from typing import Any

from job_scheduler.constants import OnCrash, RunOutcome, TaskStatus


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned; `result` is a JSON value."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or could not be run; `error` says why, in words for a person."""

    error: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class RetryIn:
    """The handler raised `error`, and may be tried again in some seconds if attempts are left."""

    error: str
    seconds: float
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class TooLate:
    """The task was claimed when it was no longer worth it: its handler was never called."""

    reason: str


@dataclass(frozen=True, slots=True)
class Parked:
    """The task cannot be run for the time being: it waits some seconds; nothing has happened."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run was ended at a person's request; `result` is what it returned all the same, or why
    there is nothing.
    """

    result: Any


@dataclass(frozen=True, slots=True)
class CutOff:
    """The run ended before its handler did: whether its work was done is not known.

    `outcome` is ``Interrupted`` (by this process itself) or ``Crashed`` (with its process).
    """

    reason: str
    outcome: RunOutcome = RunOutcome.Interrupted


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The task was claimed, but its handler was never called: nothing has happened."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The occurrence is run as a task of its own, which is made by the record."""


Outcome = (
    Succeeded | Failed | RetryIn | TooLate | Parked | Cancelled | CutOff | NotStarted | Spawned
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written: the task's status and result, and the attempt's entry.

    With ``outcome`` None the attempt never was: it has no entry, and is given back. What is to be
    run again is due after `delay` seconds; with None, when it was due before. With `spawns`, a copy
    of the task is made, which is due.
    """

    status: TaskStatus
    result: Any
    outcome: RunOutcome | None
    delay: float | None = None
    traceback: str | None = None
    spawns: bool = False


def decide(outcome: Outcome, attempt: int, max_attempts: int, on_crash: OnCrash | None) -> Decision:
    """Return what a run with this outcome makes of its task; attempts are counted from 1."""
    match outcome:
        case Succeeded(result):
            return Decision(TaskStatus.Done, result, RunOutcome.Done)
        case RetryIn(error, seconds, trace) if attempt < max_attempts:
            return Decision(TaskStatus.Scheduled, error, RunOutcome.Failed, seconds, trace)
        case Failed(error) | RetryIn(error):
            return Decision(
                TaskStatus.Failed, error, RunOutcome.Failed, traceback=outcome.traceback
            )
        case Cancelled(result):
            return Decision(TaskStatus.Cancelled, result, RunOutcome.Cancelled)
        case TooLate(reason):
            return Decision(TaskStatus.Failed, reason, None)
        case Parked(reason, seconds):
            return Decision(TaskStatus.Scheduled, reason, None, seconds)
        case Spawned():
            return Decision(TaskStatus.Done, None, RunOutcome.Done, spawns=True)
        case NotStarted():
            return Decision(TaskStatus.Scheduled, None, None)
        case _:
            status = _after_a_crash(attempt, max_attempts, on_crash)
            return Decision(status, outcome.reason, outcome.outcome, 0.0)


def _after_a_crash(attempt: int, max_attempts: int, on_crash: OnCrash | None) -> TaskStatus:
    if on_crash is OnCrash.Hold:
        return TaskStatus.Unknown
    if on_crash is not OnCrash.Fail and attempt < max_attempts:
        return TaskStatus.Scheduled
    return TaskStatus.Failed
