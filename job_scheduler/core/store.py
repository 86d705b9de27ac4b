"""The statements that show and cancel tasks, and find what is due.

Each function works inside the transaction of the connection that it is given.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    case,
    delete,
    func,
    literal_column,
    select,
    tuple_,
    update,
)

from job_scheduler.constants import CHANNEL, PRIORITY_MAX, WAITING, Overlap, TaskStatus
from job_scheduler.core.columns import NOW_SQL, UtcDateTime, database_now, later_sql
from job_scheduler.core.given import returning
from job_scheduler.core.models import DUE_WHERE, HAS_KEY_WHERE, ScheduledTask
from job_scheduler.exceptions import (
    TaskNotCancellable,
    TaskNotDeletable,
    TaskNotFound,
)

tasks = cast("Table", ScheduledTask.__table__)
SHOWN = [column for column in tasks.c if column.name not in ("claim_token", "expects_handler")]
"""What a caller may see of a task: not the token that guards its result, for instance."""

TaskRow = dict[str, Any]
HANDLER, WEBHOOK, COMMAND, PATTERN = "handler", "webhook", "command", "pattern"
"""The kinds of what a task runs. A pattern makes a task of each occurrence, and runs nothing."""
IS_PATTERN = f"recurrence ->> 'overlap' = '{Overlap.Allow.value}'"
"""The condition on a task's row that makes it one, in both dialects."""
DUE_AT = func.coalesce(tasks.c.retry_at, tasks.c.run_at)
"""When a scheduled task is to start."""
HANDLER_NAME = case((tasks.c.webhook.is_(None) & tasks.c.command.is_(None), tasks.c.name))
"""The name of the handler that a task runs; none if it runs something else."""
_DUE_SQL = {
    "due": "coalesce(retry_at, run_at)",
    "task_id": "task_id",
    "name": "name",
    "kind": f"CASE WHEN {IS_PATTERN} THEN '{PATTERN}' WHEN webhook IS NOT NULL THEN '{WEBHOOK}' "
    f"WHEN command IS NOT NULL THEN '{COMMAND}' ELSE '{HANDLER}' END",
    "priority": "priority",
    "is_limited": f"concurrency_key IS NOT NULL AND ({IS_PATTERN}) IS NOT TRUE",
}
"""What a ``DueTask`` is made of, for statements written as text."""
DUE_COLUMNS = [
    literal_column(sql, UtcDateTime() if name == "due" else None).label(name)
    for name, sql in _DUE_SQL.items()
]
"""The same, for others."""
HAS_KEY: ColumnElement[bool] = literal_column(f"({HAS_KEY_WHERE})")
"""The condition on a task that is the one of its unique_key."""
FETCHED_AT_ONCE = 500
"""Rows that the driver makes in one go: it lets no other thread run meanwhile."""


class DueTask(NamedTuple):
    """A scheduled task and the instant from which it may run; the most urgent sorts first.

    `kind` tells what it runs, `priority` how urgent it is among others that are due, and
    `is_limited` whether it has a concurrency key. A tuple, since many are made, and compared, at
    one time.
    """

    due: datetime
    task_id: str
    name: str
    kind: str = HANDLER
    priority: int = 0
    is_limited: bool = False


def get_task(connection: Connection, task_id: str) -> TaskRow:
    """Return one task.

    Raises:
        TaskNotFound: there is none.
    """
    row = connection.execute(select(*SHOWN).where(tasks.c.task_id == task_id)).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    return dict(row._mapping)


def update_task(connection: Connection, task_id: str, changes: Mapping[str, Any]) -> TaskRow:
    """Give columns of a task that exists new values; return it."""
    statement = (
        update(tasks)
        .where(tasks.c.task_id == task_id)
        .values({**changes, "updated_at": database_now()})
        .returning(*SHOWN)
    )
    return dict(connection.execute(statement).one()._mapping)


def tasks_after(place: tuple[datetime, str]) -> ColumnElement[bool]:
    """Return the condition for what comes after `place` by (run_at, task_id)."""
    values = tuple_(*place, types=[tasks.c.run_at.type, tasks.c.task_id.type])
    return tuple_(tasks.c.run_at, tasks.c.task_id) > values


def delete_task(connection: Connection, task_id: str) -> None:
    """Delete a task that is scheduled or paused.

    Raises:
        TaskNotFound: there is none.
        TaskNotDeletable: it is running or finished.
    """
    waits = tasks.c.status.in_([status.value for status in WAITING])
    deletion = delete(tasks).where(tasks.c.task_id == task_id, waits)
    if connection.execute(deletion).rowcount:
        return
    status = connection.scalar(select(tasks.c.status).where(tasks.c.task_id == task_id))
    if status is None:
        raise TaskNotFound(task_id)
    raise TaskNotDeletable(task_id, TaskStatus(status))


def request_cancellation(connection: Connection, task_id: str) -> TaskRow:
    """Cancel a task that is scheduled or paused, ask for the end of one that is running; return it.

    One that is cancelled already is returned as it is.

    Raises:
        TaskNotFound: there is none.
        TaskNotCancellable: it has finished.
    """
    waits = tasks.c.status.in_([status.value for status in WAITING])
    now = database_now()
    request = (
        update(tasks)
        .where(tasks.c.task_id == task_id, waits | (tasks.c.status == "running"))
        .values(
            status=case((waits, "cancelled"), else_=tasks.c.status),
            finished_at=case((waits, now), else_=tasks.c.finished_at),
            blocked_by=None,
            cancel_requested_at=func.coalesce(tasks.c.cancel_requested_at, now),
            updated_at=now,
        )
        .returning(*SHOWN)
    )
    row = connection.execute(request).one_or_none()
    if row is not None:
        if row.status == TaskStatus.Running and connection.dialect.name == "postgresql":
            # A hint for the instance that runs it; without it, it looks within half a second.
            connection.execute(select(func.pg_notify(CHANNEL, "")))
        return dict(row._mapping)
    found = get_task(connection, task_id)
    if found["status"] != TaskStatus.Cancelled:
        raise TaskNotCancellable(task_id, TaskStatus(found["status"]))
    return found


def cancelled_runs(connection: Connection, instance_id: str) -> list[str]:
    """Return the claim tokens of an instance's runs whose end is asked for."""
    asked = select(tasks.c.claim_token).where(
        tasks.c.status == literal_column("'running'"),
        tasks.c.cancel_requested_at.is_not(None),
        tasks.c.instance_id == instance_id,
    )
    return list(connection.scalars(asked))


def due_tasks(
    connection: Connection, horizon: timedelta, limit: int, *, urgent: bool = False
) -> list[DueTask]:
    """Return up to `limit` tasks that are, or within `horizon` will be, due; with `urgent`, only
    those of a raised priority.

    Those of a higher priority come first, and of one priority the longest due. Served by partial
    indexes: finished tasks cost nothing.
    """
    found = connection.execute(
        _DUE[connection.dialect.name, urgent],
        {"seconds": horizon.total_seconds(), "limit": limit},
    )
    return [DueTask._make(row) for part in found.partitions(FETCHED_AT_ONCE) for row in part]


def _due_statement(dialect: str, *, urgent: bool) -> Any:
    horizon = later_sql(dialect, ":seconds")
    columns = ", ".join(f"{sql} AS {name}" for name, sql in _DUE_SQL.items())

    def first(which: str) -> str:
        return f"""
            SELECT * FROM (
                SELECT {columns} FROM scheduled_tasks
                WHERE {DUE_WHERE} AND {which} AND coalesce(retry_at, run_at) <= {horizon}
                ORDER BY coalesce(retry_at, run_at)
                LIMIT :limit
            ) AS part"""  # noqa: S608 (made of constants)

    # One after the other, each along its index, until there are enough.
    parts = [first(f"priority > 0 AND priority = {level}") for level in range(PRIORITY_MAX, 0, -1)]
    if not urgent:
        parts.append(first("priority = 0"))
    types = {column.name: column.type for column in DUE_COLUMNS}
    return returning(dialect, f"{' UNION ALL '.join(parts)} LIMIT :limit", types)


_DUE = {
    (dialect, urgent): _due_statement(dialect, urgent=urgent)
    for dialect in NOW_SQL
    for urgent in (False, True)
}
