"""Which tasks are meant: a filter, and the conditions in SQL that it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, literal_column, select, type_coerce

from job_scheduler.constants import TaskStatus
from job_scheduler.core.store import tasks

RANGES = {"run_at": "due", "created_at": "created", "finished_at": "finished"}
"""The columns whose time can be bounded, and what the bounds are called."""
_VALUES = {"status": "status", "name": "name", "key": "concurrency_key"}


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """What a task must be like; what is empty or None asks for nothing.

    Of several values of `status`, `name` and `key` one is enough; of `tag` all must be there. A
    range begins with its `…_after`, and ends before its `…_before`. `q` is a part of the name.
    """

    status: Sequence[TaskStatus] = ()
    name: Sequence[str] = ()
    tag: Sequence[str] = ()
    key: Sequence[str] = ()
    q: str | None = None
    due_after: datetime | None = None
    due_before: datetime | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None


def conditions(
    wanted: TaskFilter, dialect: str, *, hidden: bool = False
) -> dict[str, ColumnElement[bool]]:
    """Return the conditions on a task, by what they are about: a member, or a column of times.

    With `hidden`, SQLite looks for no index by them.
    """
    found: dict[str, ColumnElement[bool]] = {}

    def column(name: str) -> ColumnElement[Any]:
        if hidden and dialect == "sqlite":
            return literal_column(f"+scheduled_tasks.{name}", tasks.c[name].type)
        return tasks.c[name]

    for member, name in _VALUES.items():
        if values := getattr(wanted, member):
            found[member] = column(name).in_([str(value) for value in values])
    for name in RANGES:
        if bounds := within(column(name), wanted, name):
            found[name] = and_(*bounds)
    if wanted.tag:
        found["tag"] = _has_tags(wanted.tag, dialect)
    if wanted.q is not None:
        found["q"] = tasks.c.name.icontains(wanted.q, autoescape=True)
    return found


def within(
    moment: ColumnElement[Any], wanted: TaskFilter, column: str
) -> list[ColumnElement[bool]]:
    """Return the bounds of a column's time as conditions on `moment`."""
    after = getattr(wanted, f"{RANGES[column]}_after")
    before = getattr(wanted, f"{RANGES[column]}_before")
    bounds = [] if after is None else [moment >= after]
    return bounds if before is None else [*bounds, moment < before]


def _has_tags(tags: Sequence[str], dialect: str) -> ColumnElement[bool]:
    if dialect == "postgresql":
        wanted = type_coerce(list(dict.fromkeys(tags)), tasks.c.tags.type)
        return tasks.c.tags.op("@>", is_comparison=True)(wanted)
    each = func.json_each(tasks.c.tags).table_valued("value")
    return and_(*(exists(select(1).select_from(each).where(each.c.value == tag)) for tag in tags))
