"""What the service answers, as objects that do not change.

Each keeps the JSON that it was read from as `raw`: whatever a newer service says beside what is
known here stands there. All times are aware, and in UTC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar, get_args

from job_scheduler.constants import ENDED

S = TypeVar("S", bound="Shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Something that the service has answered; `raw` is its JSON as it came."""

    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Shape):
    """A task as it stood when the service answered; its members are told in `/docs`.

    `etag` is its version, where the answer has one: hand it over as `if_match` to `change`.
    """

    task_id: str
    name: str
    run_at: datetime
    status: str
    result: Any = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    payload: Mapping[str, Any] | None = None
    attempt: int = 0
    max_attempts: int = 1
    on_crash: str | None = None
    retry_delay: float | Sequence[float] | None = None
    retry_max_delay: float | None = None
    start_before: datetime | None = None
    timeout: float | None = None
    priority: int = 0
    concurrency_key: str | None = None
    max_running: int | None = None
    blocked_by: str | None = None
    webhook: Mapping[str, Any] | None = None
    command: Sequence[str] | None = None
    on_done: Mapping[str, Any] | None = None
    on_failed: Mapping[str, Any] | None = None
    caused_by: str | None = None
    progress: Mapping[str, Any] | None = None
    cancel_requested_at: datetime | None = None
    retry_at: datetime | None = None
    instance_id: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    missed_at: datetime | None = None
    recurrence: Mapping[str, Any] | None = None
    run_count: int | None = None
    last_status: str | None = None
    tags: Sequence[str] | None = None
    unique_key: str | None = None
    etag: str | None = field(default=None, compare=False)

    @property
    def ended(self) -> bool:
        """Whether it has come to its end: it stays as it is, unless a person has it run again."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Shape):
    """One attempt at a task; `late` and `duration` are seconds."""

    attempt: int
    scheduled_for: datetime
    started_at: datetime
    finished_at: datetime | None
    late: float
    duration: float | None
    outcome: str
    result: Any = None
    traceback: str | None = None
    instance_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment(Shape):
    """An instant, and what clocks in the task's time zone show then."""

    utc: datetime
    local: str
    offset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Shape):
    """When a task would run, and what is worth knowing before it is posted."""

    next: Sequence[Moment]
    description: str
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler(Shape):
    """What a task of this name runs; `payload` is the JSON Schema of what it takes."""

    name: str
    description: str
    payload: Mapping[str, Any]
    example: Mapping[str, Any] | None = None
    max_attempts: int = 1
    retry_delay: float | Sequence[float] | None = None
    retry_max_delay: float | None = None
    timeout: float | None = None
    isolation: str | None = None
    max_running: int | None = None
    rate_limit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Shape):
    """A change of a task's status; the stream of changes goes on after its `id`.

    `former` is None for a new task, `status` for one that is gone.
    """

    id: str
    task_id: str
    name: str
    status: str | None
    former: str | None
    attempt: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason(Shape):
    """One reason why a task stands where it stands: a sentence, what to do, and the facts behind
    it, which are told in `/docs`. What does not apply is None.
    """

    code: str
    text: str
    remedy: str
    since: datetime | None = None
    until: datetime | None = None
    expected_at: datetime | None = None
    seconds: float | None = None
    run_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    missed_at: datetime | None = None
    next_at: datetime | None = None
    policy: str | None = None
    name: str | None = None
    instance_id: str | None = None
    limit: str | None = None
    key: str | None = None
    holders: Sequence[str] | None = None
    running: int | None = None
    places: int | None = None
    running_of_name: int | None = None
    places_of_name: int | None = None
    before: int | None = None
    rate: float | None = None
    attempts: int | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    error: str | None = None
    progress: Mapping[str, Any] | None = None
    runs: int | None = None
    count: int | None = None
    times: Sequence[datetime] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Shape):
    """Why a task stands where it stands; the most important reason comes first."""

    task_id: str
    status: str
    summary: str
    reasons: Sequence[Reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastName(Shape):
    """How many of the tasks have this name."""

    name: str
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastInterval(Shape):
    """How many tasks fall due from `at` on, until the next interval begins."""

    at: datetime
    tasks: int
    names: Sequence[ForecastName]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Shape):
    """How many tasks fall due from `begin`, which is now, until `until`, and the busiest intervals.

    After `complete_until` there was more to count than one answer takes.
    """

    begin: datetime
    until: datetime
    interval_seconds: int
    intervals: Sequence[ForecastInterval]
    total: int
    peaks: Sequence[ForecastInterval]
    overdue: int
    truncated: bool
    complete_until: datetime


def read(kind: type[S], document: Mapping[str, Any], **known: Any) -> S:
    """Return a JSON object as an object of a kind; `known` is what was read already.

    Raises:
        TypeError, ValueError, KeyError: it is something else.
    """
    members = {
        name: datetime.fromisoformat(value) if is_time and value is not None else value
        for name, is_time in _members(kind).items()
        if name in document
        for value in [document[name]]
    }
    return kind(raw=document, **(members | known))


def read_all(kind: type[S], documents: Sequence[Mapping[str, Any]]) -> list[S]:
    """Return each of some JSON objects as an object of a kind.

    Raises:
        TypeError, ValueError, KeyError: one is something else.
    """
    return [read(kind, document) for document in documents]


_MEMBERS: dict[type[Shape], dict[str, bool]] = {}
"""The members that an answer of a kind may have, and which of them are times; as asked for."""


def _members(kind: type[Shape]) -> dict[str, bool]:
    if kind not in _MEMBERS:
        _MEMBERS[kind] = {
            each.name: datetime in (each.type, *get_args(each.type))
            for each in fields(kind)
            if each.name not in ("raw", "etag")
        }
    return _MEMBERS[kind]
