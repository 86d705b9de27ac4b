"""The shapes of requests for some tasks: which, and of a list, in which order and how many."""

import re
from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from job_scheduler.constants import (
    LIST_DEFAULT_LIMIT,
    LIST_MAX_LIMIT,
    LIST_MAX_VALUES,
    MANY_MAX,
    Sort,
    TaskStatus,
)
from job_scheduler.core.fields import REMEDIES, Name, Tag, parse_instant
from job_scheduler.core.filters import TaskFilter


def decimal(value: object) -> object:
    """Refuse what pydantic takes for whole numbers as well: 1.0, 1_000 and " 5 "."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,18}", value):
        raise PydanticCustomError(
            "limit", f"Must be a whole number from 1 to {LIST_MAX_LIMIT}, in digits."
        )
    return value


def _instant(value: object) -> object:
    if isinstance(value, str) and re.search(r"\d \d\d:\d\d$", value):
        raise PydanticCustomError(
            "instant", "In an address a + stands for a blank: write %2B, or the time in UTC with Z."
        )
    return parse_instant(value)


def _each_a(kind: Any) -> BeforeValidator:
    """Return a check of a parameter's values that names the parameter, not the value's place."""
    adapter = TypeAdapter(kind)

    def check(values: Any) -> Any:
        if len(values) > LIST_MAX_VALUES:
            raise PydanticCustomError(
                "values", f"Must be given at most {LIST_MAX_VALUES} times. Ask several times."
            )
        try:
            for value in values:
                adapter.validate_python(value)
        except ValidationError as error:
            [details] = error.errors()
            remedy = REMEDIES.get(details["type"], details["msg"])
            raise PydanticCustomError(
                "values", f"{remedy} Several: repeat the parameter."
            ) from None
        return values

    return BeforeValidator(check)


_Moment = Annotated[
    datetime | None,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
_SEVERAL = Field(max_length=LIST_MAX_VALUES)
_FILTERS = {member.name for member in fields(TaskFilter)}


Cursor = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Where to go on: taken from the answer before. It belongs to that list's "
        "filters and sort.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"},
    ),
]


class FilterQuery(BaseModel):
    """Which tasks are meant."""

    status: Annotated[
        list[TaskStatus],
        _each_a(TaskStatus),
        _SEVERAL,
        Field(description="Only tasks with this status; given several times, with one of them."),
    ] = []
    name: Annotated[
        list[Name],
        _each_a(Name),
        _SEVERAL,
        Field(description="Only tasks with exactly this name; several times: with one of them."),
    ] = []
    tag: Annotated[
        list[Tag],
        _each_a(Tag),
        _SEVERAL,
        Field(description="Only tasks with this tag; several times: with all of them."),
    ] = []
    key: Annotated[
        list[Name],
        _each_a(Name),
        _SEVERAL,
        Field(
            description="Only tasks with this `concurrency_key`; several times: with one of them."
        ),
    ] = []
    q: Annotated[
        Name | None,
        Field(description="Only tasks whose name has this text in it, in large or small letters."),
    ] = None
    due_after: Annotated[_Moment, Field(description="Only with this `run_at` or a later one.")] = (
        None
    )
    due_before: Annotated[_Moment, Field(description="Only with an earlier `run_at`.")] = None
    created_after: Annotated[_Moment, Field(description="Only what was created then or later.")] = (
        None
    )
    created_before: Annotated[_Moment, Field(description="Only what was created before.")] = None
    finished_after: Annotated[_Moment, Field(description="Only what finished then or later.")] = (
        None
    )
    finished_before: Annotated[_Moment, Field(description="Only what finished before.")] = None

    @property
    def wanted(self) -> TaskFilter:
        """The filter itself."""
        return TaskFilter(**{name: getattr(self, name) for name in _FILTERS})


class ListQuery(FilterQuery):
    """Which tasks to list, and how."""

    sort: Annotated[
        Sort,
        Field(
            description="What the list goes by; with a minus, the last comes first. By "
            "`finished_at` it holds only what has finished."
        ),
    ] = Sort.RunAt
    limit: Annotated[
        int,
        Field(ge=1, le=LIST_MAX_LIMIT, description="How many tasks to return, at most."),
        BeforeValidator(decimal),
    ] = LIST_DEFAULT_LIMIT
    cursor: Cursor = None


class ManyQuery(FilterQuery):
    """Which tasks are to be changed or removed."""

    limit: Annotated[
        int,
        Field(
            ge=1,
            le=MANY_MAX,
            description="How many at most. The answer tells where to go on.",
        ),
        BeforeValidator(decimal),
    ] = MANY_MAX
    cursor: Cursor = None
    dry_run: Annotated[bool, Field(description="Only count them; nothing is changed.")] = False


class ManyResult(BaseModel):
    """How many tasks were changed or removed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tasks": 120, "cursor": None, "dry_run": False}]}
    )

    tasks: Annotated[
        int,
        Field(
            description="How many it was, or would be. What is as wanted already does not count."
        ),
    ]
    cursor: Annotated[
        str | None,
        Field(description="Where to go on: repeat the request with it. Null: there are no more."),
    ]
    dry_run: bool
