"""The shapes of a request to run many failed tasks again, and of its answer."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from job_scheduler.constants import RetryableStatus
from job_scheduler.core.fields import Instant, Name, NullMeans, whole_number

_LIMIT = 10_000
_KNOWN = [status.value for status in RetryableStatus]


def _statuses(value: object) -> object:
    if not isinstance(value, list) or not value or not all(each in _KNOWN for each in value):
        raise PydanticCustomError("status", "Must be an array of failed, unknown, or both.")
    return value


class Replay(BaseModel):
    """Which failed tasks are to be run again, and how fast."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "send_report", "rate": 10, "dry_run": True}]},
    )

    status: Annotated[
        list[RetryableStatus],
        BeforeValidator(_statuses),
        Field(
            min_length=1,
            description="Which of them. A run whose outcome is unknown may have done its work: "
            "look at such tasks first.",
        ),
        NullMeans([RetryableStatus.Failed]),
    ] = [RetryableStatus.Failed]
    name: Annotated[Name | None, Field(description="Only tasks with exactly this name.")] = None
    finished_after: Annotated[
        Instant | None, Field(description="Only what finished at this time or later.")
    ] = None
    finished_before: Annotated[
        Instant | None, Field(description="Only what finished before this time.")
    ] = None
    limit: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=_LIMIT,
            description="How many at most, those that finished first. For more, repeat it after "
            "`until`: the rate holds for one request.",
        ),
        BeforeValidator(whole_number),
        NullMeans(1_000),
    ] = 1_000
    rate: Annotated[
        float | None,
        Field(
            strict=True,
            ge=0.01,
            le=1_000_000,
            allow_inf_nan=False,
            description="How many are started a second; by default RECOVERY_RATE.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Field(strict=True, description="Only count them; nothing is changed."),
        NullMeans(False),
    ] = False


class ReplayResult(BaseModel):
    """How many tasks are run again."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"tasks": 120, "until": "2027-07-01T10:00:12Z", "dry_run": False}]
        }
    )

    tasks: Annotated[int, Field(description="How many are run again, or would be.")]
    until: Annotated[
        datetime | None, Field(description="When the last of them is due; null if there is none.")
    ]
    dry_run: bool
