"""Why a batch of tasks was not taken: none of it was, and it is told where the fault lies."""

from collections.abc import Mapping, Sequence
from typing import Any

from job_scheduler.constants import BATCH_FAULTS_NAMED
from job_scheduler.exceptions import (
    Fault,
    IdempotencyKeyReused,
    InvalidRequest,
    JobSchedulerError,
    TaskConflict,
    in_words,
)


class InvalidBatch(InvalidRequest):
    """Tasks of a batch, given by their index (or id), cannot be used; the first one's code is
    told.
    """

    def __init__(
        self, refused: Mapping[int, InvalidRequest] | Mapping[str, InvalidRequest]
    ) -> None:
        first = next(iter(refused.values()))
        self.error_code = first.error_code
        faults = _located({index: error.faults for index, error in refused.items()})
        super().__init__(_in_words(faults))
        self.faults = faults[:BATCH_FAULTS_NAMED]


class BatchKeyReused(IdempotencyKeyReused):
    """A batch with this Idempotency-Key exists already, with another body, or in part."""

    _was_used = (
        "was used for a batch with another body, or some of that batch's tasks are gone. Nothing "
        "was stored."
    )


class BatchConflict(TaskConflict):
    """Some tasks of a batch, given by their index, exist already with other bodies."""

    def __init__(self, conflicts: Mapping[int, TaskConflict]) -> None:
        self.error_code = next(iter(conflicts.values())).error_code
        faults = _located(
            {index: [Fault("body", one.field, str(one))] for index, one in conflicts.items()}
        )
        super(TaskConflict, self).__init__(_in_words(faults))
        self.faults = faults[:BATCH_FAULTS_NAMED]


class BatchNotCreated(JobSchedulerError):
    """The tasks of a batch could not be scheduled; nothing of them was kept."""

    error_code = "TASK_CREATE_500"

    def __init__(self, number: int) -> None:
        super().__init__(
            f"The {number} tasks could not be scheduled, and none of them was stored. "
            "Try again; the service's log says what went wrong."
        )


def _located(faults: Mapping[Any, Sequence[Fault]]) -> list[Fault]:
    """Return what is wrong with the tasks of a batch."""
    return [
        Fault(fault.location, f"tasks.{index}.{fault.field}".rstrip("."), fault.detail)
        for index, of_one in faults.items()
        for fault in of_one
    ]


def _in_words(faults: Sequence[Fault]) -> str:
    """Return what is wrong, and not all of it when it is much."""
    named = faults[:BATCH_FAULTS_NAMED]
    words = in_words(named)
    return words if len(named) == len(faults) else f"{words}; and {len(faults) - len(named)} more."
