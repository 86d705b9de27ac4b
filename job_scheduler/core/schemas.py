"""The shapes of requests to schedule tasks, one or many."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from job_scheduler.constants import BATCH_MAX_TASKS, OnConflict, OnCrash
from job_scheduler.core.fields import (
    EXAMPLE_ID,
    Attempts,
    Command,
    GivenUuid,
    Name,
    NullMeans,
    PayloadObject,
    Places,
    Priority,
    RetryDelay,
    Seconds,
    Tags,
    Timeout,
)
from job_scheduler.core.schemas_webhook import Hook, Webhook
from job_scheduler.core.schemas_when import When


class TaskCreate(When):
    """A task to be scheduled."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "send_report", "run_at": "2027-07-01T10:00:00Z"},
                {
                    "name": "nightly",
                    "run_at": "2027-07-01T10:00:00Z",
                    "max_attempts": 5,
                    "webhook": {"url": "https://example.com/nightly", "body": {"full": True}},
                },
                {"name": "send_report", "cron": "0 9 * * MON-FRI", "timezone": "Europe/Berlin"},
            ],
        },
    )

    payload: Annotated[
        PayloadObject | None,
        Field(description="Keyword arguments for the handler.", examples=[{"hours": 24}]),
    ] = None
    max_attempts: Annotated[
        Attempts | None,
        Field(
            description="How often it may be started; by default what the handler says, else 1. "
            "1: at most once, a run that fails or is cut off is not repeated. More: at least "
            "once, a run that fails or is cut off is repeated.",
        ),
    ] = None
    on_crash: Annotated[
        OnCrash | None,
        Field(
            description="What becomes of the task when its run is cut off by a crash or a stop: "
            "`fail`; `retry`, as long as attempts are left; or `hold`, status `unknown`, for a "
            "person to decide. By default `retry` while attempts are left, else `fail`."
        ),
    ] = None
    retry_delay: Annotated[
        RetryDelay | None,
        Field(
            description="Seconds before a failed run is repeated: a number, which is doubled with "
            "each attempt, and of which a random part is waited; or a list of fixed delays, the "
            "last of which stands for all that follow. By default what the handler says, else 5.",
            examples=[10, [1, 10, 60]],
        ),
    ] = None
    retry_max_delay: Annotated[
        Seconds | None,
        Field(
            description="Where retry_delay is a number: the seconds that its doubling never "
            "exceeds. By default what the handler says, else 3600.",
        ),
    ] = None
    timeout: Annotated[
        Timeout | None,
        Field(
            description="Seconds that a run may take; by default what the handler says, else "
            "there is no limit. A run that takes longer has failed, and may be repeated.",
            examples=[30],
        ),
    ] = None
    priority: Annotated[
        Priority,
        NullMeans(0),
        Field(
            description="From 0 to 3: of the tasks that are due, those of a higher priority start "
            "first when not all of them can at once."
        ),
    ] = 0
    concurrency_key: Annotated[
        Name | None,
        Field(
            description="Of the tasks with the same key only `max_running` run at a time, on all "
            "instances together. The others wait, the most urgent first.",
            examples=["customer-4711"],
        ),
    ] = None
    max_running: Annotated[
        Places | None,
        Field(
            description="How many tasks with this `concurrency_key` may run while this one does, "
            "itself included; by default 1."
        ),
    ] = None
    webhook: Annotated[
        Webhook | None,
        Field(
            description="A request to send, in place of a handler. An answer of 2xx makes the task "
            "`done`; one of 408, 425, 429 or 5xx, and no answer, is repeated while attempts are "
            "left. Without a `timeout`, it may take 30 seconds."
        ),
    ] = None
    command: Annotated[
        Command | None,
        Field(
            description="A program of `COMMAND_ALLOW` to run on the service's machine, in place of "
            "a handler: its name and its arguments. No shell reads them.",
            examples=[["pg_dump", "--file", "/backup/shop.sql", "shop"]],
        ),
    ] = None
    on_done: Annotated[
        Hook | None,
        Field(description="A webhook that tells when the task is done: a task of its own."),
    ] = None
    on_failed: Annotated[
        Hook | None,
        Field(description="Likewise when it has failed, or its outcome is unknown."),
    ] = None
    tags: Annotated[
        Tags | None,
        Field(
            description="Words to find it by: `GET /tasks?tag=…`.",
            examples=[["billing", "customer:4711"]],
        ),
    ] = None
    unique_key: Annotated[
        Name | None,
        Field(
            description="Against doubles: of the tasks with the same key only one at a time is "
            "scheduled, paused or running. What becomes of a second request says `on_conflict`.",
            examples=["invoice-4711"],
        ),
    ] = None
    on_conflict: Annotated[
        OnConflict,
        NullMeans(OnConflict.Reject),
        Field(
            description="Where a task with this `unique_key` has not ended: `reject` the request "
            "(409); `return` that task (200); `replace` it, so that it becomes what is asked for "
            "here, under its id; or `reschedule` it, to the time asked for here. What is running "
            "is too late for the last two (409)."
        ),
    ] = OnConflict.Reject
    task_id: Annotated[
        GivenUuid | None,
        Field(
            description="An id of your choice. Repeating the same request then yields the same "
            "task, once; another body under the same id is refused with 409. Leave it out where "
            "you send an Idempotency-Key.",
            examples=[EXAMPLE_ID],
        ),
    ] = None

    @field_validator("max_running")
    @classmethod
    def _has_key(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("concurrency_key") is None:
            raise PydanticCustomError("max_running", "Needs a concurrency_key: what it counts.")
        return value

    @field_validator("on_conflict")
    @classmethod
    def _has_unique_key(cls, value: OnConflict, info: ValidationInfo) -> OnConflict:
        # Some programs send each default with its name.
        if value is not OnConflict.Reject and info.data.get("unique_key") is None:
            raise PydanticCustomError(
                "on_conflict", "Needs a unique_key: it tells of a second one."
            )
        return value

    @field_validator("webhook", "command")
    @classmethod
    def _stands_alone(cls, value: Any, info: ValidationInfo) -> Any:
        given = [name for name in ("payload", "webhook") if info.data.get(name) is not None]
        if value is not None and given:
            raise PydanticCustomError(
                "one_kind", f"Cannot stand beside {given[0]}: a task runs one thing. Keep one."
            )
        return value


class TaskBatch(BaseModel):
    """Tasks to be scheduled together: all of them, or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "tasks": [
                        {"name": "send_report", "run_at": "2027-07-01T10:00:00Z"},
                        {
                            "name": "send_report",
                            "run_at": "2027-07-02T10:00:00Z",
                            "payload": {"hours": 48},
                        },
                    ]
                }
            ]
        },
    )

    # Each is examined by itself, so that this can end after some errors.
    tasks: Annotated[
        list[SkipValidation[TaskCreate]],
        Field(
            min_length=1,
            max_length=BATCH_MAX_TASKS,
            description="Each as in `POST /tasks`. The answer has one task for each, in the same "
            "order.",
        ),
    ]


class Message(BaseModel):
    """A sentence about what was done."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"message": f"Task {EXAMPLE_ID} is cancelled."}]}
    )

    message: str
