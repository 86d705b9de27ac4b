"""The shape of a request's times: once at an instant, or again and again."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError

from job_scheduler.constants import (
    INTERVAL_MIN_SECONDS,
    CatchUp,
    DstFold,
    DstGap,
    Overlap,
)
from job_scheduler.core.cron import Cron
from job_scheduler.core.cron_fields import InvalidCron
from job_scheduler.core.fields import Instant, Name, Runs, Seconds, local_time
from job_scheduler.core.recurrence import Recurrence
from job_scheduler.core.rhythm import UnknownZone, load_zone, local_instants

_FIRST_DAY, _LAST_DAY = datetime(1, 1, 3), datetime(9999, 12, 29)  # noqa: DTZ001 (local times)
"""Beyond, zones may lead out of the years that are counted."""
_FIRST_YEAR, _LAST_YEAR = 1970, 9000
_ONE_OF = "Give exactly one of run_at, cron and interval_seconds."
_OF_RECURRENCES = (
    *("start_at", "end_at", "max_runs", "jitter_seconds"),
    *("dst_gap", "dst_fold", "overlap", "catch_up"),
)
RECURRENCE_FIELDS = frozenset({"timezone", "cron", "interval_seconds", *_OF_RECURRENCES})
"""What is stored together, as a task's ``recurrence``."""


class When(BaseModel):
    """What to run, and when."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        Name,
        Field(
            description="What to run: the name of a registered handler, unless there is a webhook "
            "or a command. A task of any other name only keeps the time.",
            examples=["send_report"],
        ),
    ]
    timezone: Annotated[
        str | None,
        Field(
            description="The time zone (IANA name) in which `cron` counts, and in which times "
            "without offset are read; UTC by default.",
            examples=["Europe/Berlin"],
        ),
    ] = None
    cron: Annotated[
        str | None,
        Field(
            description="In place of `run_at`: when to run it again and again, as a line of cron: "
            "minute, hour, day of the month, month, day of the week (0 and 7 are Sunday), or "
            "`@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.",
            examples=["0 9 * * MON-FRI"],
        ),
    ] = None
    interval_seconds: Annotated[
        Seconds | None,
        Field(
            ge=INTERVAL_MIN_SECONDS,
            description="In place of `run_at`: the seconds from one run's time to the next one's.",
            examples=[900],
        ),
    ] = None
    run_at: Annotated[
        Instant | None,
        Field(
            description="When to run it, once (ISO 8601). Without an offset it is a time of "
            "`timezone`; a time in the past runs at once.",
            examples=["2027-07-01T10:00:00Z"],
            validate_default=True,
        ),
    ] = None
    start_before: Annotated[
        Instant | None,
        Field(
            description="When it is no longer worth starting: from then on it fails instead, and "
            "its result says that it is expired."
        ),
    ] = None
    start_at: Annotated[
        Instant | None,
        Field(
            description="Before this nothing recurs. An interval counts from here, so that this is "
            "its first time."
        ),
    ] = None
    end_at: Annotated[Instant | None, Field(description="After this nothing recurs.")] = None
    max_runs: Annotated[Runs | None, Field(description="How often it recurs, at most.")] = None
    jitter_seconds: Annotated[
        Seconds | None,
        Field(
            description="Each start is put off by a random part of so many seconds: `retry_at` "
            "tells by how much, `run_at` stays."
        ),
    ] = None
    dst_gap: Annotated[
        DstGap | None,
        Field(
            description="What becomes of a fixed hour that does not exist on a day when clocks are "
            "put forward: `shift` (default) runs at the first instant after the gap, `skip` not at "
            "all that day."
        ),
    ] = None
    dst_fold: Annotated[
        DstFold | None,
        Field(
            description="Which of the two counts, where a fixed hour comes twice since clocks are "
            "put back: the `first` (default), the `second`, or `both`."
        ),
    ] = None
    overlap: Annotated[
        Overlap | None,
        Field(
            description="What becomes of a time that comes while the run before it is under way: "
            "it is left out (`skip`, default), waits for its end (`queue`), or is run beside it "
            "(`allow`), as a task of its own."
        ),
    ] = None
    catch_up: Annotated[
        CatchUp | None,
        Field(
            description="What becomes of times that passed while the service was down, where "
            "RECOVER_PAST_TASKS=run: `none` of them is run, the `latest` (default), or `all`, one "
            "after the other, of more than 100 the last."
        ),
    ] = None

    @property
    def recurrence(self) -> Recurrence | None:
        """What is asked of a recurring task; None: it runs once."""
        if self.run_at is not None:
            return None
        asked = {name: getattr(self, name) for name in RECURRENCE_FIELDS}
        return Recurrence(**{name: value for name, value in asked.items() if value is not None})

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        try:
            return None if value is None else load_zone(value).key
        except UnknownZone as error:
            raise PydanticCustomError("timezone", "{words}", {"words": str(error)}) from None

    @field_validator("cron")
    @classmethod
    def _is_line(cls, value: str | None) -> str | None:
        try:
            return value if value is None else Cron.parse(value).line
        except InvalidCron as error:
            raise PydanticCustomError("cron", "{words}", {"words": str(error)}) from None

    @field_validator("run_at", "start_before", "start_at", "end_at", mode="wrap")
    @classmethod
    def _is_local(
        cls, value: Any, parse: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> datetime | None:
        zone = info.data.get("timezone")
        instant: datetime | None = parse(value)
        if zone is None or instant is None or (wall := local_time(value)) is None:
            return instant
        return _instant_of(wall, zone)

    @field_validator("run_at")
    @classmethod
    def _is_the_only_one(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        if not {"cron", "interval_seconds"} <= info.data.keys():
            return value  # One of them is refused.
        given = (value, info.data["cron"], info.data["interval_seconds"])
        if sum(each is not None for each in given) != 1:
            raise PydanticCustomError("when", _ONE_OF)
        return value

    @field_validator("start_before")
    @classmethod
    def _comes_after_run_at(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        run_at = info.data.get("run_at")
        if value is not None and "run_at" in info.data and run_at is None:
            raise PydanticCustomError(
                "start_before", "Goes with run_at. A recurring task has an end_at."
            )
        if value is not None and run_at is not None and value < run_at:
            raise PydanticCustomError(
                "start_before", "Must not lie before run_at: it would never be started."
            )
        return value

    @field_validator(*_OF_RECURRENCES)
    @classmethod
    def _recurs(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("run_at") is not None:
            raise PydanticCustomError("recurs", "Goes with cron or interval_seconds, not run_at.")
        return value

    @field_validator("start_at", "end_at")
    @classmethod
    def _is_near(cls, value: datetime | None) -> datetime | None:
        return None if value is None else near(value)

    @field_validator("end_at")
    @classmethod
    def _comes_after_start(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        start = info.data.get("start_at")
        if value is not None and start is not None and value < start:
            raise PydanticCustomError("end_at", "Must not lie before start_at.")
        return value


def near(moment: datetime) -> datetime:
    """Return a time from which others are sought as it is.

    Raises:
        PydanticCustomError: it is too far away.
    """
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise PydanticCustomError(
            "year", f"Must lie in the years {_FIRST_YEAR} to {_LAST_YEAR}: zones are known there."
        )
    return moment


def _instant_of(wall: datetime, zone: str) -> datetime:
    """Return the instant of a local time.

    Raises:
        PydanticCustomError: there is none, or there are two; the text tells what to write instead.
    """
    place = load_zone(zone)
    if not _FIRST_DAY < wall < _LAST_DAY:
        raise PydanticCustomError("instant", "Too far away. Give it an offset.")
    found = local_instants(wall, place)
    if len(found) == 1:
        return found[0]
    if found:
        words = "comes twice in {zone}, for clocks are put back. Write {one} or {other}."
        choices = found
    else:
        words = "does not exist in {zone}, for clocks are put forward. Write {one} or {other}."
        # Read by the offset that holds before the gap, it lies after it; and the other way round.
        choices = [wall.replace(tzinfo=place, fold=fold) for fold in (1, 0)]
    # By way of UTC: within a zone nothing is converted.
    one, other = (each.astimezone(UTC).astimezone(place).isoformat() for each in choices)
    raise PydanticCustomError(
        "local_time",
        "{wall} " + words,
        {"wall": wall.isoformat(), "zone": zone, "one": one, "other": other},
    )
