"""What a run came to, as values, and what that makes of the task."""

from dataclasses import dataclass
from typing import Any

from job_scheduler.constants import TaskStatus


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned; `result` is a JSON value."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or could not be run; `error` says why, in words for a person."""

    error: str


Outcome = Succeeded | Failed


def decide(outcome: Outcome) -> tuple[TaskStatus, Any]:
    """Return the status and the result that a task has after a run with this outcome."""
    if isinstance(outcome, Succeeded):
        return TaskStatus.Done, outcome.result
    return TaskStatus.Failed, outcome.error
