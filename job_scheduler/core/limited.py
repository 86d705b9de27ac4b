"""The claim of tasks that are limited.

Who claims one counts what runs, under a lock for each limit that it touches, so that no two
instances can both take the last place. There is no counter that a crash could leave wrong: what is
counted are the rows of the running tasks. A task for which there is no place is set aside: its
``blocked_by`` names the limit, and no sweep sees it until it is claimed after all (``blocked.py``).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, Table, bindparam, func, literal_column, select, text

from job_scheduler import strict_json
from job_scheduler.core import claims
from job_scheduler.core.claims import Claim, ClaimRequest
from job_scheduler.core.columns import NOW_SQL, UtcDateTime, database_time
from job_scheduler.core.given import locked_tasks
from job_scheduler.core.limits import (
    HANDLER,
    KEY,
    RATE,
    Bounds,
    Limited,
    Limits,
    Urgency,
    Usage,
    admit,
    names_of,
)
from job_scheduler.core.models import RateLimit
from job_scheduler.core.store import DUE_AT, DUE_COLUMNS, HANDLER_NAME, DueTask, tasks

rate_limits = cast("Table", RateLimit.__table__)


def claim_within_limits(
    connection: Connection,
    instance_id: str,
    requests: Sequence[ClaimRequest],
    limits: Limits,
    *,
    repeated: bool = False,
) -> list[Claim | DueTask | None]:
    """Claim what is due and within its limits, as ``claims.claim`` does; set the rest aside."""
    ids = [request.task_id for request in requests]
    due = _waiting_to_start(connection, ids)
    names = names_of(due, limits)
    # On SQLite there is only one that writes.
    if names and connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"names": strict_json.dumps(names)})
        # Once more: whoever had the lock may have claimed some of them.
        due = _waiting_to_start(connection, ids)
    asking = {task.task_id for task in due}
    waiting = {name: first for name in names if (first := _front(connection, name, asking))}
    admission = admit(due, limits, usage_of(connection, names), waiting)
    if admission.blocked:
        _set_aside(connection, admission.blocked)
    for name, following in admission.following.items():
        connection.execute(_NOTE_FOLLOWING, {"name": name, "following_at": following})
    # What the same request has claimed before is not due any more, and is found by its token.
    asked = [request for request in requests if request.task_id not in admission.blocked]
    answers = claims.claim(
        connection, instance_id, asked, repeated=repeated, admitted=admission.admitted
    )
    # By their tokens: two may have asked for one task.
    by_token = {request.token: answer for request, answer in zip(asked, answers, strict=True)}
    return [by_token.get(request.token) for request in requests]


def usage_of(connection: Connection, names: Collection[str]) -> Usage:
    """Return how far these limits are taken up."""
    rates = [name for name in names if name.startswith(RATE)]
    return Usage(
        database_time(connection),
        _running(connection) if names else Counter(),
        _following(connection, rates) if rates else {},
    )


def blocked_tasks(name: str, number: int) -> Any:
    """Return the statement for the first tasks, most urgent first, that a limit has set aside."""
    return (
        select(*DUE_COLUMNS, tasks.c.max_running)
        .where(tasks.c.status == literal_column("'scheduled'"), tasks.c.blocked_by == name)
        .order_by(tasks.c.priority.desc(), DUE_AT)
        .limit(number)
    )


def _waiting_to_start(connection: Connection, ids: Sequence[str]) -> list[Limited]:
    rows = connection.execute(
        select(
            *(tasks.c.task_id, HANDLER_NAME, tasks.c.priority, DUE_AT),
            *(tasks.c.concurrency_key, tasks.c.max_running, tasks.c.status),
        ).where(tasks.c.task_id.in_(ids))
    )
    return [
        Limited(task_id, (-priority, due, task_id), Bounds(handler, key, max_running))
        for task_id, handler, priority, due, key, max_running, status in rows
        if status == "scheduled"
    ]


def _running(connection: Connection) -> Counter[str]:
    """Count what runs, by the names of limits: few rows, whatever their limits."""
    rows = connection.execute(
        select(HANDLER_NAME, tasks.c.concurrency_key, func.count())
        .where(tasks.c.status == literal_column("'running'"))
        .group_by(HANDLER_NAME, tasks.c.concurrency_key)
    )
    running: Counter[str] = Counter()
    for handler, key, number in rows:
        if handler is not None:
            running[HANDLER + handler] += number
        if key is not None:
            running[KEY + key] += number
    return running


def _following(connection: Connection, names: Sequence[str]) -> dict[str, datetime]:
    rows = connection.execute(select(rate_limits).where(rate_limits.c.name.in_(names)))
    return {row.name: row.following_at for row in rows}


def _front(connection: Connection, name: str, asking: Collection[str]) -> Urgency | None:
    """Return how urgent the first task is that waits for a place, but for those that ask now."""
    for row in connection.execute(blocked_tasks(name, len(asking) + 1)).all():
        if row.task_id not in asking:
            return -row.priority, row.due, row.task_id
    return None


def _set_aside(connection: Connection, blocked: Mapping[str, str]) -> None:
    given = [{"task_id": task_id, "name": name} for task_id, name in blocked.items()]
    statement = _SET_ASIDE[connection.dialect.name]
    connection.execute(statement, {"given": strict_json.dumps(given)})


def _set_aside_statement(dialect: str) -> Any:
    waiting = locked_tasks(
        dialect,
        {"task_id": "uuid", "name": "text"},
        "task.task_id, given.name",
        "WHEN 'scheduled' THEN true",
        # What somebody else holds locked stays as it is, and comes again.
        skip_locked=True,
    )
    return text(
        f"""
        WITH waiting AS MATERIALIZED ({waiting})
        UPDATE scheduled_tasks AS task
        SET blocked_by = waiting.name, updated_at = {NOW_SQL[dialect]}
        FROM waiting WHERE task.task_id = waiting.task_id
        """  # noqa: S608 (made of constants)
    )


_SET_ASIDE = {dialect: _set_aside_statement(dialect) for dialect in NOW_SQL}
# One transaction at a time counts for a limit. In order, so that no two wait for each other.
_LOCK = text(
    "SELECT pg_advisory_xact_lock(number) FROM (SELECT DISTINCT hashtextextended(value, 0) AS "
    "number FROM json_array_elements_text(CAST(:names AS json)) ORDER BY number) AS numbers"
)
_NOTE_FOLLOWING = text(
    "INSERT INTO rate_limits (name, following_at) VALUES (:name, :following_at) "
    "ON CONFLICT (name) DO UPDATE SET following_at = excluded.following_at"
).bindparams(bindparam("following_at", type_=UtcDateTime))
