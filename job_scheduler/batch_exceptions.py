"""Why a batch of tasks was not taken: none of it was, and it is told where the fault lies."""

from collections.abc import Mapping, Sequence
from itertools import islice

from job_scheduler.constants import BATCH_FAULTS_NAMED
from job_scheduler.exceptions import (
    Fault,
    IdempotencyKeyReused,
    InvalidField,
    InvalidRequest,
    JobSchedulerError,
    TaskConflict,
)


class InvalidBatch(InvalidRequest):
    """Tasks of a batch cannot be used, all for one kind of reason; given by their index."""

    def __init__(self, refused: Mapping[int, InvalidField]) -> None:
        first = next(iter(refused.values()))
        self.error_code = first.error_code
        faults = _faults({index: (error.field, str(error)) for index, error in refused.items()})
        super().__init__(_in_words(faults, len(refused)))
        self.faults = faults


class BatchKeyReused(IdempotencyKeyReused):
    """A batch with this Idempotency-Key exists already, with another body, or in part."""

    _was_used = (
        "was used for a batch with another body, or some of that batch's tasks are gone. Nothing "
        "was stored."
    )


class BatchConflict(TaskConflict):
    """Some tasks of a batch, given by their index, exist already with other bodies."""

    def __init__(self, conflicts: Mapping[int, TaskConflict]) -> None:
        self.faults = _faults({index: ("task_id", str(one)) for index, one in conflicts.items()})
        super(TaskConflict, self).__init__(_in_words(self.faults, len(conflicts)))


class BatchNotCreated(JobSchedulerError):
    """The tasks of a batch could not be scheduled; nothing of them was kept."""

    error_code = "TASK_CREATE_500"

    def __init__(self, number: int) -> None:
        super().__init__(
            f"The {number} tasks could not be scheduled, and none of them was stored. "
            "Try again; the service's log says what went wrong."
        )


def _faults(refused: Mapping[int, tuple[str | None, str]]) -> list[Fault]:
    """Return what is wrong with the tasks of a batch; not all of it when it is much."""
    return [
        Fault("body", f"tasks.{index}.{field}", detail)
        for index, (field, detail) in islice(refused.items(), BATCH_FAULTS_NAMED)
    ]


def _in_words(faults: Sequence[Fault], number: int) -> str:
    words = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults)
    return words if number == len(faults) else f"{words}; and {number - len(faults)} more."
