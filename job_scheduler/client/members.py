"""What a request may hold: the members of a task, and the filters of a list.

The service examines them, and names what it refuses. A time without offset is one of the task's
`timezone`, or else UTC.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Required, TypedDict
from uuid import UUID

from job_scheduler.client.errors import NotFound
from job_scheduler.clock import in_iso_8601
from job_scheduler.identifiers import parse_uuid

Time = datetime | str
OneOrMore = str | Sequence[str]
Query = list[tuple[str, str]]


class TaskMembers(TypedDict, total=False):
    """What a task may say of itself beside its name: as in ``POST /tasks``."""

    timezone: str | None
    cron: str | None
    interval_seconds: float | None
    run_at: Time | None
    start_at: Time | None
    end_at: Time | None
    max_runs: int | None
    jitter_seconds: float | None
    dst_gap: str | None
    dst_fold: str | None
    overlap: str | None
    catch_up: str | None
    payload: Mapping[str, Any] | None
    max_attempts: int | None
    on_crash: str | None
    retry_delay: float | Sequence[float] | None
    retry_max_delay: float | None
    start_before: Time | None
    timeout: float | None
    priority: int
    concurrency_key: str | None
    max_running: int | None
    webhook: Mapping[str, Any] | None
    command: Sequence[str] | None
    on_done: Mapping[str, Any] | None
    on_failed: Mapping[str, Any] | None
    tags: Sequence[str] | None
    unique_key: str | None
    on_conflict: str


class TaskChange(TaskMembers, total=False):
    """What of a task is to be another; None takes it away."""

    name: str


class NewTask(TaskMembers, total=False):
    """One task among many to be made."""

    name: Required[str]
    task_id: str | UUID


class TaskMatch(TypedDict, total=False):
    """Which tasks are meant, those that meet all of this: as in ``GET /tasks``."""

    status: OneOrMore
    name: OneOrMore
    tag: OneOrMore
    key: OneOrMore
    q: str | None
    due_after: Time | None
    due_before: Time | None
    created_after: Time | None
    created_before: Time | None
    finished_after: Time | None
    finished_before: Time | None


class TaskFilter(TaskMatch, total=False):
    """Which tasks to list, and in which order."""

    sort: str


class EventFilter(TypedDict, total=False):
    """Which changes to tell of, those that meet all of this: as in ``GET /events``."""

    status: OneOrMore
    name: OneOrMore
    tag: OneOrMore
    key: OneOrMore
    task_id: OneOrMore | UUID | Sequence[UUID]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a list goes on; `left` tells how many more tasks are wanted (None: all)."""

    query: Query
    left: int | None


WHEN = ("run_at", "cron", "interval_seconds")
"""Of these a task has one."""


def as_json(body: Any) -> bytes:
    """Return a request's body.

    Raises:
        TypeError, ValueError: something in it has no JSON form.
    """
    return json.dumps(body, default=_plain, allow_nan=False, separators=(",", ":")).encode()


def as_query(filters: Mapping[str, Any]) -> Query:
    """Return filters as a query's parameters; None asks for nothing."""
    return [
        (name, value if isinstance(value, str) else str(_plain(value)))
        for name, given in filters.items()
        for value in _several(given)
    ]


def key_header(key: str | None) -> dict[str, str]:
    """Return the header by which a request may be repeated, if there is a key."""
    return {} if key is None else {"Idempotency-Key": key}


def path_of(task_id: str | UUID) -> str:
    """Return a task's address below the service's.

    Raises:
        NotFound: it is no id, and might lead to another address.
    """
    known = parse_uuid(str(task_id))
    if known is None:
        raise NotFound(
            HTTPStatus.NOT_FOUND,
            "TASK_404",
            f"There is no task {str(task_id)!r}: an id is a UUID. A list shows those that exist.",
        )
    return f"/tasks/{known}"


def _several(given: Any) -> Iterable[Any]:
    if given is None:
        return ()
    return given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        # Not every offset can be written: zones once had some with seconds.
        return value.isoformat() if value.tzinfo is None else in_iso_8601(value.astimezone(UTC))
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{value!r} has no JSON form. Pass plain JSON values, times or UUIDs.")
