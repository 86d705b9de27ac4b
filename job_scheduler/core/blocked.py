"""The statements that let tasks go which a limit has set aside."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, literal_column, select, text, update

from job_scheduler.core.columns import database_now
from job_scheduler.core.limited import blocked_tasks, usage_of
from job_scheduler.core.limits import KEY, Limits, Usage, room_of
from job_scheduler.core.store import DUE_COLUMNS, DueTask, tasks

_NAMES_MAX = 200
"""Limits that one look goes through."""
_FREED_MAX = 200
"""Tasks that one look lets go for each."""
_LETTING_GO = 5_214_786_390_120  # the next number after the election's own


def is_any_blocked(connection: Connection) -> bool:
    """Tell whether any task is set aside by a limit."""
    return connection.execute(_ANY_BLOCKED).first() is not None


def let_go(connection: Connection, limits: Limits, after: str) -> tuple[list[DueTask], str]:
    """Let tasks go that were set aside, as far as there is room for them now; return them.

    It goes through some limits, those that come after the name `after`; the second answer is where
    to go on. One instance does this at a time: another that comes meanwhile lets nothing go.
    """
    if not _is_alone(connection):
        return [], after
    names = list(connection.scalars(_BLOCKED_BY, {"after": after, "number": _NAMES_MAX}))
    usage = usage_of(connection, names)
    ids = [task_id for name in names for task_id in _first_of(connection, name, limits, usage)]
    freed = _free(connection, ids) if ids else []
    return freed, names[-1] if len(names) == _NAMES_MAX else ""


def _is_alone(connection: Connection) -> bool:
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LETTING_GO))))


def _first_of(connection: Connection, name: str, limits: Limits, usage: Usage) -> list[str]:
    """Return the ids of the most urgent tasks that a limit blocks, as many as there is room for."""
    room = room_of(name, limits, usage)
    if room is not None and room <= 0:
        return []
    number = _FREED_MAX if room is None else min(room, _FREED_MAX)
    first: list[str] = []
    for row in connection.execute(blocked_tasks(name, number)):
        if name.startswith(KEY) and usage.running[name] + len(first) >= (row.max_running or 1):
            break
        first.append(row.task_id)
    return first


def _free(connection: Connection, ids: Sequence[str]) -> list[DueTask]:
    # In the order of their ids, as every statement about several tasks, so that no two deadlock.
    locked = (
        select(tasks.c.task_id)
        .where(tasks.c.task_id.in_(ids), tasks.c.status == literal_column("'scheduled'"))
        .order_by(tasks.c.task_id)
        .with_for_update(key_share=True)
        .cte("locked")
    )
    freed = connection.execute(
        update(tasks)
        .where(tasks.c.task_id.in_(select(locked.c.task_id)))
        .values(blocked_by=None, updated_at=database_now())
        .returning(*DUE_COLUMNS)
    )
    return [DueTask._make(row) for row in freed]


_BLOCKED = "status = 'scheduled' AND blocked_by IS NOT NULL"
# In order, so that PostgreSQL goes by the index, however many there are.
_ANY_BLOCKED = text(
    f"SELECT 1 FROM scheduled_tasks WHERE {_BLOCKED} ORDER BY blocked_by LIMIT 1"  # noqa: S608
)
# From one name to the next along the index, however many tasks there are of each.
_BLOCKED_BY = text(
    f"""
    WITH RECURSIVE names(name) AS (
        SELECT min(blocked_by) FROM scheduled_tasks WHERE {_BLOCKED} AND blocked_by > :after
        UNION ALL
        SELECT (
            SELECT min(blocked_by) FROM scheduled_tasks
            WHERE {_BLOCKED} AND blocked_by > names.name
        ) FROM names WHERE names.name IS NOT NULL
    )
    SELECT name FROM names WHERE name IS NOT NULL LIMIT :number
    """  # noqa: S608 (made of constants)
)
