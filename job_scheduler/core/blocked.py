"""The statements that find, of the tasks which limits have set aside, those with room now."""

from collections.abc import Collection

from sqlalchemy import Connection, text

from job_scheduler.core.limited import blocked_tasks, usage_of
from job_scheduler.core.limits import KEY, Limits, Usage, room_of
from job_scheduler.core.store import DueTask

NAMES_MAX = 200
"""Limits that one look goes through."""
_TASKS_MAX = 200
"""Tasks that one look finds for each."""


def blocking(connection: Connection, after: str) -> list[str]:
    """Return the names of limits that block tasks: up to ``NAMES_MAX``, those after a name."""
    return list(connection.scalars(_BLOCKING, {"after": after, "number": NAMES_MAX}))


def startable(connection: Connection, names: Collection[str], limits: Limits) -> list[DueTask]:
    """Return the most urgent tasks that these limits block, as many as they have room for now.

    Nothing is changed by that: whoever claims them looks once more, and takes the block away.
    """
    usage = usage_of(connection, names)
    return [task for name in names for task in _first_of(connection, name, limits, usage)]


def _first_of(connection: Connection, name: str, limits: Limits, usage: Usage) -> list[DueTask]:
    room = room_of(name, limits, usage)
    if room is not None and room <= 0:
        return []
    number = _TASKS_MAX if room is None else min(room, _TASKS_MAX)
    first: list[DueTask] = []
    for *members, max_running in connection.execute(blocked_tasks(name, number)):
        if name.startswith(KEY) and usage.running[name] + len(first) >= (max_running or 1):
            break
        first.append(DueTask._make(members)._replace(is_limited=True))
    return first


# From one name to the next along the index, however many tasks there are of each: with min(), the
# planner may choose to read them all.
_NEXT = (
    "(SELECT blocked_by FROM scheduled_tasks WHERE status = 'scheduled' "
    "AND blocked_by IS NOT NULL AND blocked_by > {} ORDER BY blocked_by LIMIT 1)"
)
_BLOCKING = text(
    f"""
    WITH RECURSIVE names(name) AS (
        SELECT {_NEXT.format(":after")}
        UNION ALL
        SELECT {_NEXT.format("names.name")} FROM names WHERE names.name IS NOT NULL
    )
    SELECT name FROM names WHERE name IS NOT NULL LIMIT :number
    """  # noqa: S608 (made of constants)
)
