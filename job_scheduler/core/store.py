"""The statements that list, show and cancel tasks, and find what is due.

Each function works inside the transaction of the connection that it is given.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Connection, Table, delete, select, tuple_, update

from job_scheduler.constants import TaskStatus
from job_scheduler.core.given import returning
from job_scheduler.core.models import NOW_SQL, ScheduledTask, UtcDateTime, database_now, later_sql
from job_scheduler.exceptions import TaskNotCancellable, TaskNotFound, TaskNotRetryable

tasks = cast("Table", ScheduledTask.__table__)
SHOWN = [column for column in tasks.c if column.name != "claim_token"]
"""What a caller may see of a task: all but the token that guards its result."""

TaskRow = dict[str, Any]
FETCHED_AT_ONCE = 500
"""Rows that the driver makes in one go: it lets no other thread run meanwhile."""


class DueTask(NamedTuple):
    """A scheduled task and the instant from which it may run; the most urgent sorts first.

    A tuple, since many are made, and compared, at one time.
    """

    due: datetime
    task_id: str
    name: str


def get_task(connection: Connection, task_id: str) -> TaskRow:
    """Return one task.

    Raises:
        TaskNotFound: there is none.
    """
    row = connection.execute(select(*SHOWN).where(tasks.c.task_id == task_id)).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    return dict(row._mapping)


def list_tasks(
    connection: Connection,
    limit: int,
    after: tuple[datetime, str] | None,
    status: TaskStatus | None,
    name: str | None,
) -> list[TaskRow]:
    """Return up to `limit` tasks by (run_at, task_id), those that come after `after`."""
    conditions: list[ColumnElement[bool]] = []
    if after is not None:
        conditions.append(tasks_after(after))
    if status is not None:
        conditions.append(tasks.c.status == status.value)
    if name is not None:
        conditions.append(tasks.c.name == name)
    statement = (
        select(*SHOWN).where(*conditions).order_by(tasks.c.run_at, tasks.c.task_id).limit(limit)
    )
    return [dict(row._mapping) for row in connection.execute(statement)]


def tasks_after(place: tuple[datetime, str]) -> ColumnElement[bool]:
    """Return the condition for what comes after `place` by (run_at, task_id)."""
    values = tuple_(*place, types=[tasks.c.run_at.type, tasks.c.task_id.type])
    return tuple_(tasks.c.run_at, tasks.c.task_id) > values


def cancel_task(connection: Connection, task_id: str) -> None:
    """Delete a task that is scheduled.

    Raises:
        TaskNotFound: there is none.
        TaskNotCancellable: it is running or finished.
    """
    deletion = delete(tasks).where(tasks.c.task_id == task_id, tasks.c.status == "scheduled")
    if connection.execute(deletion).rowcount:
        return
    status = connection.scalar(select(tasks.c.status).where(tasks.c.task_id == task_id))
    if status is None:
        raise TaskNotFound(task_id)
    raise TaskNotCancellable(task_id, TaskStatus(status))


def retry_task(connection: Connection, task_id: str) -> TaskRow:
    """Schedule a task that is failed or unknown once more, for now; return it.

    Raises:
        TaskNotFound: there is none.
        TaskNotRetryable: it has not ended, or is done.
    """
    again = (
        update(tasks)
        .where(tasks.c.task_id == task_id, tasks.c.status.in_(["failed", "unknown"]))
        .values(
            dict.fromkeys(("result", "claim_token", "instance_id", "started_at"))
            | {"finished_at": None, "missed_at": None, "status": "scheduled"}
            | {"retry_at": database_now(), "updated_at": database_now()}
        )
        .returning(*SHOWN)
    )
    row = connection.execute(again).one_or_none()
    if row is not None:
        return dict(row._mapping)
    raise TaskNotRetryable(task_id, TaskStatus(get_task(connection, task_id)["status"]))


def due_tasks(connection: Connection, horizon: timedelta, limit: int) -> list[DueTask]:
    """Return up to `limit` tasks that are, or within `horizon` will be, due; urgent first.

    Served by the partial index of scheduled tasks: finished ones cost nothing.
    """
    found = connection.execute(
        _DUE[connection.dialect.name], {"seconds": horizon.total_seconds(), "limit": limit}
    )
    return [DueTask._make(row) for part in found.partitions(FETCHED_AT_ONCE) for row in part]


def _due_statement(dialect: str) -> Any:
    horizon = later_sql(dialect, ":seconds")
    return returning(
        dialect,
        f"""
        SELECT coalesce(retry_at, run_at) AS due, task_id, name
        FROM scheduled_tasks
        WHERE status = 'scheduled' AND missed_at IS NULL
            AND coalesce(retry_at, run_at) <= {horizon}
        ORDER BY coalesce(retry_at, run_at)
        LIMIT :limit
        """,  # noqa: S608 (made of constants)
        due=UtcDateTime,
    )


_DUE = {dialect: _due_statement(dialect) for dialect in NOW_SQL}
