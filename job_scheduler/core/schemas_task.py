"""The shape of a task as it is shown."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import to_json

from job_scheduler.constants import OnCrash, TaskStatus
from job_scheduler.core.fields import EXAMPLE_ID, RetryDelay, Tags, Uuid
from job_scheduler.core.schemas_problem import Problem

EXAMPLE_TASK: JsonDict = {
    "task_id": EXAMPLE_ID,
    "name": "send_report",
    "run_at": "2027-07-01T10:00:00Z",
    "status": "scheduled",
    "result": None,
    "created_at": "2026-11-23T08:15:30.123456Z",
    "updated_at": "2026-11-23T08:15:30.123456Z",
    "payload": None,
    "attempt": 0,
    "max_attempts": 1,
    "on_crash": None,
    "retry_delay": None,
    "retry_max_delay": None,
    "start_before": None,
    "timeout": None,
    "priority": 0,
    "concurrency_key": None,
    "max_running": None,
    "blocked_by": None,
    "webhook": None,
    "command": None,
    "on_done": None,
    "on_failed": None,
    "caused_by": None,
    "progress": None,
    "cancel_requested_at": None,
    "retry_at": None,
    "instance_id": None,
    "started_at": None,
    "finished_at": None,
    "missed_at": None,
    "recurrence": None,
    "run_count": None,
    "last_status": None,
    "tags": None,
    "unique_key": None,
}


_REQUEST: JsonDict = {"anyOf": [{"type": "object"}, {"type": "null"}]}


class Progress(BaseModel):
    """How far a run has come."""

    fraction: Annotated[float, Field(description="From 0 to 1.")]
    message: str | None


class Task(BaseModel):
    """A task as it stands. All times are UTC."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_TASK]})

    task_id: Uuid
    name: str
    run_at: Annotated[datetime, Field(description="The time you asked for.")]
    status: TaskStatus
    result: Annotated[
        JsonValue,
        Field(
            description="When done: what the handler returned. When failed: the error or the "
            "reason, as text; likewise when unknown. While scheduled: why it waits, if its "
            "handler is missing. Else null."
        ),
    ]
    created_at: datetime
    updated_at: datetime
    payload: dict[str, JsonValue] | None
    attempt: Annotated[int, Field(description="How often it has been started.")]
    max_attempts: Annotated[int, Field(description="How often it may be started.")]
    on_crash: OnCrash | None
    # A row that was written by hand is shown as it is.
    retry_delay: Annotated[JsonValue, WithJsonSchema(TypeAdapter(RetryDelay | None).json_schema())]
    retry_max_delay: float | None
    start_before: datetime | None
    timeout: float | None
    priority: int
    concurrency_key: str | None
    max_running: int | None
    blocked_by: Annotated[
        str | None,
        Field(
            description="What it waits for after its time: `key:…` (others with its "
            "concurrency_key run), `handler:…` (as many of its name run as may), `rate:…` (as many "
            "have started as may)."
        ),
    ]
    # These, too: as they are stored.
    webhook: Annotated[JsonValue, WithJsonSchema(_REQUEST)]
    command: Annotated[JsonValue, WithJsonSchema(TypeAdapter(list[str] | None).json_schema())]
    on_done: Annotated[JsonValue, WithJsonSchema(_REQUEST)]
    on_failed: Annotated[JsonValue, WithJsonSchema(_REQUEST)]
    caused_by: Annotated[
        Uuid | None, Field(description="The task whose end this one tells of (`on_done` …).")
    ]
    progress: Annotated[
        Progress | None, Field(description="How far the run has come, as its handler says.")
    ]
    cancel_requested_at: Annotated[
        datetime | None, Field(description="When its cancellation was asked for.")
    ]
    retry_at: Annotated[
        datetime | None, Field(description="When it is to start, if not at run_at.")
    ]
    instance_id: Annotated[Uuid | None, Field(description="The instance that ran it last.")]
    started_at: datetime | None
    finished_at: datetime | None
    missed_at: Annotated[
        datetime | None,
        Field(
            description="When start-up set it aside, because its time had passed while the "
            "service was down: for good (RECOVER_PAST_TASKS=skip), or until it is released."
        ),
    ]
    recurrence: Annotated[
        JsonValue,
        Field(
            description="Of a recurring task: its `cron` or `interval_seconds`, and what else was "
            "asked. Its `run_at` is its next time."
        ),
        WithJsonSchema(_REQUEST),
    ]
    run_count: Annotated[int | None, Field(description="How often it has recurred.")]
    last_status: Annotated[
        TaskStatus | None,
        Field(description="How its last run has ended, whose result is `result`."),
    ]
    tags: Annotated[JsonValue, WithJsonSchema(TypeAdapter(Tags | None).json_schema())]
    unique_key: Annotated[
        str | None,
        Field(description="While it has not ended, it is the only task with this key."),
    ]


def as_json(shown: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    """Return the row of a task, or rows, as JSON, in the form that ``Task`` has.

    They are written as they are. To examine what we have stored ourselves takes longer than to
    store it.
    """
    return to_json(shown)


class TaskOutcome(BaseModel):
    """What became of one of many tasks: either it is there, or a problem."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": 201, "task": EXAMPLE_TASK}]}
    )

    status: Annotated[
        int, Field(description="As `POST /tasks` would answer: 201, 200, 409 or 422.")
    ]
    task: Task | None = None
    problem: Problem | None = None
