"""The shapes of requests and responses."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    SkipValidation,
)
from pydantic.config import JsonDict
from pydantic.json_schema import WithJsonSchema
from pydantic_core import PydanticCustomError

from job_scheduler.constants import (
    LIST_DEFAULT_LIMIT,
    LIST_MAX_LIMIT,
    MAX_ATTEMPTS_LIMIT,
    NAME_MAX_LENGTH,
    OnCrash,
    TaskStatus,
)
from job_scheduler.identifiers import parse_uuid

EXAMPLE_ID = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
_EXAMPLE_TASK: JsonDict = {
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
    "retry_at": None,
    "instance_id": None,
    "started_at": None,
    "finished_at": None,
    "missed_at": None,
}

# RFC 3339, section 5.6, with two liberties: seconds and offset may be left out.
_INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
INSTANT_REMEDY = "Write it like 2027-07-01T10:00:00Z or 2027-07-01T12:00:00+02:00."

REMEDIES = {
    "missing": "This field is required.",
    "extra_forbidden": "There is no such field here. Remove it, or correct its name.",
    "string_pattern_mismatch": "Must not contain NUL, and not be white space alone.",
    "string_type": "Must be text (a JSON string).",
    "string_unicode": "Must be text without halves of surrogate pairs.",
    "string_too_short": "Must not be empty.",
    "string_too_long": f"Must have at most {NAME_MAX_LENGTH} characters.",
    "dict_type": "Must be a JSON object, or be left out.",
    "model_attributes_type": "Must be a JSON object, with a name and a run_at at least.",
}
"""What to do about a value that is refused, by pydantic's type of the error."""


def parse_instant(value: object) -> datetime:
    """Return the instant that `value` names, in UTC; a time without offset is taken as UTC.

    Raises:
        PydanticCustomError: it is no text, no time, or one outside the years 1 to 9999 in UTC.
    """
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise PydanticCustomError("instant", f"Not an ISO 8601 date and time. {INSTANT_REMEDY}")
    try:
        moment = datetime.fromisoformat(value.upper())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "instant", f"There is no such date and time in UTC. {INSTANT_REMEDY}"
        ) from None


def _canonical_uuid(text: str) -> str:
    canonical = parse_uuid(text)
    if canonical is None:
        raise PydanticCustomError("uuid", f"Not a UUID. Write it like {EXAMPLE_ID}.")
    return canonical


def _decimal(value: object) -> object:
    # pydantic would take 1.0, 1_000 and " 5 " for numbers as well.
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,18}", value):
        raise PydanticCustomError(
            "limit", f"Must be a whole number from 1 to {LIST_MAX_LIMIT}, in digits."
        )
    return value


_UUID_SCHEMA = {"type": "string", "format": "uuid"}
_UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

Instant = Annotated[
    datetime,
    BeforeValidator(parse_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
GivenUuid = Annotated[
    str,
    AfterValidator(_canonical_uuid),
    WithJsonSchema(_UUID_SCHEMA | {"pattern": _UUID_PATTERN}),
]
Uuid = Annotated[str, WithJsonSchema(_UUID_SCHEMA)]


_WITHOUT_NUL = r"^[^\x00]*$"
_OBJECT = Field(json_schema_extra={"propertyNames": {"pattern": _WITHOUT_NUL}})


class PayloadValue(
    RootModel[
        None
        | bool
        | Annotated[str, Field(pattern=_WITHOUT_NUL)]
        | float
        | list["PayloadValue"]
        | Annotated[dict[str, "PayloadValue"], _OBJECT]
    ]
):
    """Any JSON. An integer beyond 64 bits is refused: send it as a string."""


class TaskCreate(BaseModel):
    """A task to be scheduled."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "send_report", "run_at": "2027-07-01T10:00:00Z"}],
        },
    )

    name: Annotated[
        str,
        Field(
            strict=True,
            min_length=1,
            max_length=NAME_MAX_LENGTH,
            pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
            description="What to run: the name of a registered handler. A task of any other name "
            "only keeps the time.",
            examples=["send_report"],
        ),
    ]
    run_at: Annotated[
        Instant,
        Field(
            description="When to run it (ISO 8601). Without an offset it is UTC; a time in the "
            "past runs at once.",
            examples=["2027-07-01T10:00:00Z"],
        ),
    ]
    payload: Annotated[
        # strict_json has examined the values already: this is for the documentation.
        Annotated[dict[str, SkipValidation[PayloadValue]], _OBJECT] | None,
        Field(description="Keyword arguments for the handler.", examples=[{"hours": 24}]),
    ] = None
    max_attempts: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=MAX_ATTEMPTS_LIMIT,
            description="How often it may be started. 1: at most once, a run that is cut off is "
            "not repeated. More: at least once, a run that is cut off is repeated.",
        ),
    ] = 1
    on_crash: Annotated[
        OnCrash | None,
        Field(
            description="What becomes of the task when its run is cut off by a crash or a stop: "
            "`fail`; `retry`, as long as attempts are left; or `hold`, status `unknown`, for a "
            "person to decide. By default `retry` while attempts are left, else `fail`."
        ),
    ] = None
    task_id: Annotated[
        GivenUuid | None,
        Field(
            description="An id of your choice. Repeating the same request then yields the same "
            "task, once; another body under the same id is refused with 409.",
            examples=[EXAMPLE_ID],
        ),
    ] = None


class Task(BaseModel):
    """A task as it stands. All times are UTC."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_TASK]})

    task_id: Uuid
    name: str
    run_at: Annotated[datetime, Field(description="The time you asked for.")]
    status: TaskStatus
    result: Annotated[
        JsonValue,
        Field(
            description="When done: what the handler returned. When failed: the error or the "
            "reason, as text; likewise when unknown. Else null."
        ),
    ]
    created_at: datetime
    updated_at: datetime
    payload: dict[str, JsonValue] | None
    attempt: Annotated[int, Field(description="How often it has been started.")]
    max_attempts: Annotated[int, Field(description="How often it may be started.")]
    on_crash: OnCrash | None
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
            "service was down (RECOVER_PAST_TASKS=skip)."
        ),
    ]


class ListQuery(BaseModel):
    """Which tasks to list."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[TaskStatus | None, Field(description="Only tasks with this status.")] = None
    name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=NAME_MAX_LENGTH,
            pattern=r"^[^\x00]+$",
            description="Only tasks with exactly this name.",
        ),
    ] = None
    limit: Annotated[
        int,
        BeforeValidator(_decimal),
        Field(ge=1, le=LIST_MAX_LIMIT, description="How many tasks to return, at most."),
    ] = LIST_DEFAULT_LIMIT
    cursor: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where to go on: taken from the Link header of the page before.",
            json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"},
        ),
    ] = None


class Message(BaseModel):
    """A sentence about what was done."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"message": f"Task {EXAMPLE_ID} is cancelled."}]}
    )

    message: str


class FieldProblem(BaseModel):
    """What is wrong with one field, and what to write instead."""

    location: Annotated[str, Field(description="body, query, path or header.")]
    field: Annotated[str, Field(description="Its name; dots lead into nested objects.")]
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `error_code` is stable: programs may rely on it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": f"There is no task '{EXAMPLE_ID}'. "
                    "GET /tasks lists those that exist.",
                    "error_code": "TASK_404",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    error_code: str
    errors: list[FieldProblem] | None = None


class PartHealth(BaseModel):
    """How one part of the service does."""

    status: Annotated[str, Field(description="ok, degraded or unavailable.")]
    backend: str
    latency_ms: float | None = None
    since: Annotated[datetime | None, Field(description="Since when it is not ok.")] = None


class SchedulerHealth(BaseModel):
    """How the scheduler does."""

    status: str
    stopping: Annotated[bool, Field(description="The service was told to stop.")]
    last_sweep_at: datetime | None
    held: Annotated[int, Field(description="Tasks that the timer holds in memory.")]
    queued: Annotated[int, Field(description="Due tasks that wait for capacity.")]
    running: int


class ClockHealth(BaseModel):
    """The database's clock, which decides when tasks run, as it is known here."""

    offset_ms: Annotated[
        float,
        Field(
            description="How far it is ahead of this machine's wall clock (negative: behind). "
            "The true value lies between this and this plus `error_ms`."
        ),
    ]
    error_ms: Annotated[
        float,
        Field(
            description="By how much a task may start late because the clock is not known any "
            "better. None starts early."
        ),
    ]


class Health(BaseModel):
    """How the service does: ok and degraded answer 200, unavailable 503."""

    status: str
    time: datetime
    version: str
    instance_id: Uuid
    database: PartHealth
    lock: PartHealth
    scheduler: SchedulerHealth
    clock: ClockHealth


class Probe(BaseModel):
    """The answer to a load balancer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: str
