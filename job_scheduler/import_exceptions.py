"""Why an import ended in the middle: some of it is stored, and it is told how much."""

from dataclasses import dataclass

from job_scheduler.exceptions import (
    BodyTooLarge,
    BodyTooSlow,
    DatabaseUnavailable,
    JobSchedulerError,
    Stopping,
)


@dataclass(frozen=True, slots=True)
class Reached:
    """How far an import has come: of the lines before `line`, `created` tasks were stored."""

    created: int
    line: int

    def __str__(self) -> str:
        return f"{self.created} tasks were stored, of the lines before line {self.line}"

    @property
    def remedy(self) -> str:
        """How to go on, where nothing of the other lines was stored."""
        return (
            f"{self}; nothing of that one and the next ones was. {_REPEAT} Else send only the "
            f"lines from {self.line} on."
        )


_REPEAT = (
    "Repeat the import: what has a task_id, or comes with the same Idempotency-Key, is stored once."
)


class ImportBroken(DatabaseUnavailable):
    """The database went away in the middle of an import."""

    def __init__(self, reached: Reached) -> None:
        super(DatabaseUnavailable, self).__init__(
            f"The database cannot be reached. {reached}; what became of that one and the next "
            f"ones is not known. {_REPEAT}"
        )


class ImportFailed(JobSchedulerError):
    """The database refused what is no fault of the lines."""

    def __init__(self, reached: Reached) -> None:
        super().__init__(
            f"Something went wrong on our side; the service's log says what. {reached.remedy}"
        )


class ImportStopped(Stopping):
    """The service is about to stop, in the middle of an import."""

    def __init__(self, reached: Reached) -> None:
        super(Stopping, self).__init__(
            f"The service is about to stop. {reached.remedy} Do so at another instance, or later."
        )


class ImportTooSlow(BodyTooSlow):
    """The next part of an import did not come."""

    def __init__(self, seconds: float, reached: Reached) -> None:
        super(BodyTooSlow, self).__init__(f"Nothing came for {seconds:g} s. {reached.remedy}")


class LineTooLong(BodyTooLarge):
    """A line of an import is longer than any may be."""

    def __init__(self, limit: int) -> None:
        super(BodyTooLarge, self).__init__(f"The line is longer than {limit} bytes.")
