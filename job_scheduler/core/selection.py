"""Tasks that a filter means: looked up page by page, then changed or removed in one transaction.

Between the two anything may happen to a task. So the statement that changes it looks once more.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, select

from job_scheduler.constants import WAITING, Sort
from job_scheduler.core.filters import TaskFilter, conditions
from job_scheduler.core.listing import Place, list_tasks
from job_scheduler.core.store import SHOWN, TaskRow, tasks, update_task
from job_scheduler.core.unique import one_of_a_key
from job_scheduler.database import Database


@dataclass(frozen=True, slots=True)
class Selection:
    """The ids of some tasks, and where to look for more of them; None: there are none."""

    ids: list[str]
    following: Place | None


async def pages(
    database: Database, wanted: TaskFilter, sort: Sort, size: int, after: Place | None = None
) -> AsyncIterator[Sequence[TaskRow]]:
    """Read all tasks that are wanted, up to `size` at a time; a page may be empty.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    place = after
    while True:
        page = await database.read(list_tasks, wanted, sort, size, place)
        yield page.rows
        place = page.following
        if place is None:
            return


async def select_ids(
    database: Database, wanted: TaskFilter, limit: int, after: Place | None
) -> Selection:
    """Return up to `limit` tasks that are wanted, by run_at, those that come after `after`.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    rows: list[TaskRow] = []
    async for page in pages(database, wanted, Sort.RunAt, limit, after):
        rows += page
        if len(rows) >= limit:
            last = rows[limit - 1]
            ids = [row["task_id"] for row in rows[:limit]]
            return Selection(ids, Place(last["run_at"], last["task_id"]))
    return Selection([row["task_id"] for row in rows], None)


def delete_tasks(connection: Connection, ids: Sequence[str], wanted: TaskFilter) -> list[str]:
    """Delete those of these tasks that are wanted and have not begun; return their ids.

    What another transaction is just changing is waited for, and judged by what becomes of it.
    """
    chosen = _chosen(connection, ids, wanted).with_only_columns(tasks.c.task_id)
    # First all locks, in order: then a second statement, which sees what was waited for.
    locked = connection.scalars(chosen.with_for_update()).all()
    connection.execute(delete(tasks).where(tasks.c.task_id.in_(locked)))
    return list(locked)


def look(connection: Connection, ids: Sequence[str], wanted: TaskFilter) -> list[TaskRow]:
    """Return those of these tasks that are wanted and have not begun."""
    return [dict(row._mapping) for row in connection.execute(_chosen(connection, ids, wanted))]


Change = Callable[[Sequence[TaskRow]], Mapping[str, dict[str, Any]]]
"""Tells the new values of tasks' columns, by the ids of those that have others now."""


def change_tasks(
    connection: Connection, ids: Sequence[str], wanted: TaskFilter, change: Change
) -> list[str]:
    """Change those of these tasks that are wanted and have not begun; return the ids of those that
    were changed.

    What another transaction is just changing is waited for, and judged by what becomes of it.

    Raises:
        UniqueKeyTaken: two would have one key.
    """
    locked = _chosen(connection, ids, wanted).with_for_update(key_share=True)
    changes = change([dict(row._mapping) for row in connection.execute(locked)])
    for task_id, values in changes.items():
        with one_of_a_key(task_id):
            update_task(connection, task_id, values)
    return list(changes)


def try_change(
    connection: Connection, ids: Sequence[str], wanted: TaskFilter, change: Change
) -> list[str]:
    """Do what ``change_tasks`` does, and take it back."""
    with connection.begin_nested() as attempt:
        changed = change_tasks(connection, ids, wanted, change)
        attempt.rollback()
    return changed


def _chosen(connection: Connection, ids: Sequence[str], wanted: TaskFilter) -> Select[Any]:
    """Return the look at the tasks once more, in the order of their ids."""
    return (
        select(*SHOWN)
        .where(
            tasks.c.task_id.in_(ids),
            tasks.c.status.in_([status.value for status in WAITING]),
            *conditions(wanted, connection.dialect.name, hidden=True).values(),
        )
        .order_by(tasks.c.task_id)
    )
