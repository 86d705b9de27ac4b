"""Domain errors, built from what they are about.

    JobSchedulerError
    ├── StartError                  the service cannot start: one readable line, no traceback
    │   ├── ConfigurationError
    │   └── SchemaError
    ├── InvalidRequest              the caller can mend it
    │   ├── InvalidBody ── BodyTooLarge, UnsupportedMediaType
    │   ├── InvalidPayload          what the handler cannot take
    │   ├── InvalidFields           several fields
    │   └── InvalidField            one field of an otherwise sound request
    │       └── UnknownTaskName, NamedTwice, IdempotencyKeyReused
    ├── TaskNotFound
    ├── TaskConflict ── UniqueKeyTaken
    ├── WrongState: TaskNotDeletable, TaskNotCancellable, TaskNotRetryable, TaskNotPausable,
    │       TaskNotResumable, TaskNotRunnable, TaskNotChangeable
    ├── TaskChangedMeanwhile
    ├── TaskNotCreated, TaskNotDeleted
    ├── NothingHeld                 no missed tasks wait for an approval
    ├── SchedulerUnavailable        APScheduler refused
    └── Unavailable                 nothing can be promised now; try again
        ├── DatabaseUnavailable ── CommitOutcomeUnknown
        ├── Stopping
        └── Overloaded

The message of each is safe to show to a caller; ``error_code`` is stable and documented.
Those of a batch stand in ``batch_exceptions.py``, those of an import in ``import_exceptions.py``.
Which HTTP status belongs to which error stands in ``errors.py`` alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from job_scheduler.constants import OnConflict, TaskStatus


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field: `location` is its place, dots in `field` lead into objects."""

    location: str
    field: str
    detail: str


def in_words(faults: Iterable[Fault]) -> str:
    """Return what is wrong with some fields, as one sentence."""
    return "; ".join(f"{fault.field or fault.location}: {fault.detail}" for fault in faults)


class JobSchedulerError(Exception):
    """Base of all errors that this service raises on purpose."""

    error_code = "INTERNAL_500"
    faults: Sequence[Fault] = ()


class StartError(JobSchedulerError):
    """The service cannot start; the message is one line that says what to do."""

    error_code = "START_500"


class ConfigurationError(StartError):
    """A setting has a value that is not allowed."""


class SchemaError(StartError):
    """The database's schema is missing, older or newer than this code."""


class InvalidRequest(JobSchedulerError):
    """The request cannot be understood; ``field`` (dotted) is where, if one is to blame."""

    error_code = "VALIDATION_422"

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field
        self.faults = [] if field is None else [Fault("body", field, detail)]


class InvalidBody(InvalidRequest):
    """The body is not a JSON document that can be taken as it stands."""

    error_code = "BODY_400"


class BodyTooSlow(InvalidBody):
    """The body took too long to arrive."""

    error_code = "BODY_408"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The body was not complete after {seconds:g} s. Nothing was stored. Send less in one "
            "request, or through a faster connection."
        )


class BodyTooLarge(InvalidBody):
    """The body is longer than this route allows."""

    error_code = "BODY_413"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit} bytes. Send less in one request.")


class UnsupportedMediaType(InvalidBody):
    """The body is declared to be something other than JSON in UTF-8, or lines of that."""

    error_code = "BODY_415"

    def __init__(self, content_type: str | None, needed: str = "application/json") -> None:
        found = f"not {content_type!r}" if content_type else "and none was given"
        super().__init__(
            f"The body's Content-Type must be {needed}, {found}. "
            f"Send the header 'Content-Type: {needed}'."
        )


class InvalidField(InvalidRequest):
    """One field or parameter has a value that cannot be used; ``location`` is its place."""

    def __init__(self, location: str, field: str, detail: str) -> None:
        super().__init__(detail, field)
        self.faults = [Fault(location, field, detail)]


class InvalidFields(InvalidRequest):
    """Some fields or parameters have values that cannot be used."""

    def __init__(self, faults: Sequence[Fault], detail: str | None = None) -> None:
        super().__init__(detail or in_words(faults))
        self.faults = faults


class UnknownTaskName(InvalidField):
    """No handler has this name, and ``UNKNOWN_TASKS=reject`` demands one."""

    error_code = "TASK_NAME_422"

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(
            "body",
            "name",
            f"No task handler is named {name!r}. Known names: {', '.join(known) or 'none'}.",
        )


class InvalidPayload(InvalidRequest):
    """The payload does not fit the handler."""

    error_code = "PAYLOAD_422"

    def __init__(self, name: str, faults: Sequence[Fault]) -> None:
        super().__init__(f"The payload does not fit the handler {name!r}. {in_words(faults)}")
        self.faults = faults


class NamedTwice(InvalidField):
    """An Idempotency-Key came together with a task_id."""

    def __init__(self) -> None:
        super().__init__(
            "header",
            "Idempotency-Key",
            "Idempotency-Key and task_id are both given, and each names the task. Leave out "
            "task_id, or the header.",
        )


class IdempotencyKeyReused(InvalidField):
    """A task with this Idempotency-Key exists already, with another body."""

    error_code = "IDEMPOTENCY_422"
    _was_used = "was used for a task with another body."

    def __init__(self, key: str) -> None:
        super().__init__(
            "header",
            "Idempotency-Key",
            f"The key {key!r} {self._was_used} Repeat the same body, or choose a new key.",
        )


class TaskNotFound(JobSchedulerError):
    """There is no task with this id."""

    error_code = "TASK_404"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"There is no task {task_id!r}. GET /tasks lists those that exist.")
        self.task_id = task_id


class WrongState(JobSchedulerError):
    """The task's status does not allow what is asked for."""

    remedy = ""
    ways: ClassVar[Mapping[TaskStatus, str]] = {}
    """What does it all the same, for a task of such a status; `{task_id}` stands for its id."""

    def __init__(self, task_id: str, status: TaskStatus) -> None:
        way = self.ways.get(status, "").format(task_id=task_id)
        super().__init__(f"Task {task_id} is {status.value}: {self.remedy} {way}".rstrip())
        self.task_id = task_id


class TaskNotDeletable(WrongState):
    """The task has started or finished, so it can no longer be removed."""

    error_code = "TASK_DELETE_409"
    remedy = "only a task that is scheduled or paused can be removed."
    ways: ClassVar = {TaskStatus.Running: "POST /tasks/{task_id}/cancel ends it."}


class TaskNotCancellable(WrongState):
    """The task has finished, so there is nothing to end."""

    error_code = "TASK_CANCEL_409"
    remedy = "only a task that is scheduled, paused or running can be cancelled."


class TaskNotRetryable(WrongState):
    """The task has not ended, or is done, so there is nothing to repeat."""

    error_code = "TASK_RETRY_409"
    remedy = "only a task that is failed or unknown can be run again."


class TaskNotPausable(WrongState):
    """The task has begun, so nothing keeps it from starting."""

    error_code = "TASK_PAUSE_409"
    remedy = "only a task that is scheduled can be paused."


class TaskNotResumable(WrongState):
    """The task is not paused."""

    error_code = "TASK_RESUME_409"
    remedy = "only a task that is paused can be resumed."


class TaskNotRunnable(WrongState):
    """The task has begun, so it cannot be made to begin."""

    error_code = "TASK_RUN_409"
    remedy = "only a task that is scheduled or paused, or recurs, can be run now."
    ways: ClassVar = dict.fromkeys(
        (TaskStatus.Failed, TaskStatus.Unknown), "POST /tasks/{task_id}/retry runs it again."
    )


class TaskNotChangeable(WrongState):
    """The task has begun, so it is too late to change it."""

    error_code = "TASK_CHANGE_409"
    remedy = "only a task that is scheduled or paused can be changed."


class TaskChangedMeanwhile(JobSchedulerError):
    """The task is not any more what its caller has read."""

    error_code = "TASK_412"

    def __init__(self, task_id: str, versions: Collection[str] = ()) -> None:
        words = (
            f"Task {task_id} has changed since you read it. Read it again, and repeat your change "
            "with the ETag that comes with it."
        )
        if any(tag.startswith("W/") for tag in versions):
            words = (
                f"If-Match does not hold the present version of task {task_id}: a weak tag (W/…) "
                "never matches there (RFC 9110, section 13.1.1). The service gives strong ones, "
                "which a proxy that compresses may make weak: send it without the W/."
            )
        super().__init__(words)
        self.task_id = task_id


class TaskConflict(JobSchedulerError):
    """A task with the caller's own id exists already, with another body."""

    error_code = "TASK_CREATE_409"
    field = "task_id"

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"Task {task_id} was made by another request. "
            "Repeat the same body, or choose a new task_id."
        )
        self.task_id = task_id


class UniqueKeyTaken(TaskConflict):
    """Another task has the unique_key, and has not ended."""

    error_code = "TASK_UNIQUE_409"
    field = "unique_key"

    def __init__(self, detail: str) -> None:
        super(TaskConflict, self).__init__(detail)
        self.faults = [Fault("body", self.field, detail)]

    @classmethod
    def by(
        cls, task_id: str, status: TaskStatus, unique_key: str, asked: OnConflict
    ) -> "UniqueKeyTaken":
        """Return it, built from the task that has the key."""
        has = f"Task {task_id} has the unique_key {unique_key!r}, and is {status.value}"
        if asked is OnConflict.Reject:
            return cls(
                f"{has}. Repeat the request when it has ended, or say by on_conflict what is to "
                "be done with it: return, replace or reschedule."
            )
        return cls(f"{has}: too late to {asked.value} it. Repeat the request when it has ended.")

    @classmethod
    def again(cls, task_id: str) -> "UniqueKeyTaken":
        """Return it for a task that is to be scheduled again, or to get the key."""
        return cls(
            f"Another task has the unique_key of task {task_id}, and has not ended. Nothing was "
            "changed. Wait until it has, or cancel it."
        )


Refusal = TaskConflict | InvalidField
"""Why a task is not stored, as is only known when it is to be: by what is stored already."""


class TaskNotCreated(JobSchedulerError):
    """The task could not be scheduled; nothing of it was kept."""

    error_code = "TASK_CREATE_500"

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"Task {task_id} could not be scheduled, and nothing of it was stored. "
            "Try again; the service's log says what went wrong."
        )
        self.task_id = task_id


class TaskNotDeleted(JobSchedulerError):
    """The task could not be cancelled; it stays scheduled."""

    error_code = "TASK_DELETE_500"

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"Task {task_id} could not be cancelled: it is still scheduled. "
            "Try again; the service's log says what went wrong."
        )
        self.task_id = task_id


class NothingHeld(JobSchedulerError):
    """No missed tasks wait for an approval."""

    error_code = "RECOVERY_409"

    def __init__(self) -> None:
        super().__init__(
            "No missed tasks wait for an approval, so that nothing was released. "
            "GET /recovery/plan shows what there is."
        )


class SchedulerUnavailable(JobSchedulerError):
    """APScheduler refused to take or to give back a job."""

    error_code = "SCHEDULER_500"


class Unavailable(JobSchedulerError):
    """Nothing can be promised at the moment; the caller may repeat the request."""

    error_code = "UNAVAILABLE_503"


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached; nothing was changed."""

    error_code = "DATABASE_503"

    def __init__(self) -> None:
        super().__init__("The database cannot be reached; nothing was changed. Try again shortly.")


class CommitOutcomeUnknown(DatabaseUnavailable):
    """The connection broke during COMMIT: the change may or may not have been made."""

    error_code = "DATABASE_503_UNKNOWN"

    def __init__(self) -> None:
        super(DatabaseUnavailable, self).__init__(
            "The connection to the database broke while the change was being committed, so it may "
            "or may not have been made. Repeat the request with the same Idempotency-Key or "
            "task_id: it is done once. If you sent neither, look at GET /tasks first."
        )


class Stopping(Unavailable):
    """The service is about to stop."""

    def __init__(self) -> None:
        super().__init__("The service is about to stop. Repeat the request, at another instance.")


class Overloaded(Unavailable):
    """More work waits than may wait in memory."""

    error_code = "OVERLOADED_503"

    def __init__(self) -> None:
        super().__init__("Too many requests are waiting for their turn. Try again shortly.")
