"""The statements that count what falls due in the time to come.

What runs once is counted in the database, along the index of what is due, and for each interval
only the most frequent names are brought. However many tasks wait, a bounded number is looked at:
the first ones.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    case,
    cast,
    extract,
    func,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.types import Double

from job_scheduler.core.columns import database_time
from job_scheduler.core.forecast import Counts, Grid, Recurring
from job_scheduler.core.models import DUE_WHERE
from job_scheduler.core.overdue import ALONG_THE_INDEX
from job_scheduler.core.store import DUE_AT, tasks


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is looked at for one forecast."""

    tasks: int = 1_000_000
    """Tasks that are still to fall due."""
    overdue: int = 100_000
    """Tasks that are due, and have not started."""
    recurring: int = 10_000
    """Recurring tasks."""
    names: int = 20
    """Names of an interval that are brought from the database; fewer are told."""


@dataclass(frozen=True, slots=True)
class Due:
    """What falls due in a grid of intervals.

    `totals` counts the tasks that run once, by intervals, `counts` those of the most frequent
    names, and `overdue` all that are due and have not started. Before `complete_until` none is left
    out.
    """

    grid: Grid
    totals: Counter[int]
    counts: Counts
    overdue: int
    recurring: list[Recurring]
    complete_until: datetime


def read_due(
    connection: Connection, hours: int, intervals: int | None, bounds: Bounds = Bounds()
) -> Due:
    """Return what falls due in the next `hours`, in about so many intervals.

    On PostgreSQL it wants a transaction, which `connection` may not have by itself.
    """
    if connection.dialect.name == "postgresql":
        # To sort all that waits for the sake of the first million takes longer.
        connection.execute(ALONG_THE_INDEX)
    grid = Grid.of(database_time(connection), hours, intervals)
    totals: Counter[int] = Counter()
    counts: Counts = defaultdict(Counter)
    complete_until = grid.until
    for row in connection.execute(_once(grid, bounds, connection.dialect.name)):
        if row.seen > bounds.tasks:
            complete_until = row.last
        if not row.recurs:
            totals[row.place] = row.total
            counts[row.place][row.name] = row.tasks
    recurring = [_recurring_of(row) for row in connection.execute(_recurring(grid, bounds))]
    if len(recurring) > bounds.recurring:
        recurring.pop()
        complete_until = min(complete_until, max(grid.begin, recurring[-1].due or grid.begin))
    overdue = connection.execute(_overdue(grid, bounds)).scalar_one()
    if overdue > bounds.overdue:
        # Recurring ones may be among those that were not looked at.
        complete_until = grid.begin
    return Due(grid, totals, counts, min(overdue, bounds.overdue), recurring, complete_until)


_WAITS: ColumnElement[bool] = literal_column(f"({DUE_WHERE})")
_BLOCKED: ColumnElement[bool] = literal_column("(status = 'scheduled' AND blocked_by IS NOT NULL)")
_RUNS: ColumnElement[bool] = literal_column("(status = 'running')")


def _once(grid: Grid, bounds: Bounds, dialect: str) -> Select[Any]:
    """Return the count by intervals and names."""
    found = _pending(grid, bounds).add_columns(
        tasks.c.name, tasks.c.recurrence.is_not(None).label("recurs")
    )
    due = found.subquery()
    place = _place(due.c.due, grid, dialect).label("place")
    counted = (
        select(
            place,
            due.c.name,
            due.c.recurs,
            func.count().label("tasks"),
            func.max(due.c.due).label("last"),
        )
        .group_by(place, due.c.name, due.c.recurs)
        .subquery()
    )
    within = (counted.c.place, counted.c.recurs)
    ranked = select(
        counted.c.place,
        counted.c.name,
        counted.c.recurs,
        counted.c.tasks,
        cast(func.sum(counted.c.tasks).over(partition_by=within), BigInteger).label("total"),
        cast(func.sum(counted.c.tasks).over(), BigInteger).label("seen"),
        func.max(counted.c.last).over().label("last"),
        func.row_number()
        .over(partition_by=within, order_by=(counted.c.tasks.desc(), counted.c.name))
        .label("rank"),
    ).subquery()
    return select(ranked).where(ranked.c.rank <= case((ranked.c.recurs, 1), else_=bounds.names))


def _pending(grid: Grid, bounds: Bounds) -> Select[Any]:
    """Return the first tasks that are still to fall due, by their times."""
    return (
        select(DUE_AT.label("due"))
        .where(_WAITS, grid.begin <= DUE_AT, grid.until > DUE_AT)
        .order_by(DUE_AT)
        .limit(bounds.tasks + 1)
    )


def _place(due: ColumnElement[Any], grid: Grid, dialect: str) -> ColumnElement[int]:
    """Return, as SQL, which interval a time lies in."""
    origin = int(grid.origin.timestamp())
    if dialect == "sqlite":
        # Without the fraction, by which SQLite would round up.
        whole = cast(func.strftime("%s", func.substr(due, 1, 19)), Integer)
        return (whole - origin) // grid.seconds
    seconds = cast(extract("epoch", due), Double) - origin
    return cast(func.floor(seconds / grid.seconds), Integer)


def _recurring(grid: Grid, bounds: Bounds) -> Select[Any]:
    """Return what recurs: what is due in that time or overdue, waits for a limit, or runs."""
    columns = [
        *(tasks.c.task_id, tasks.c.name, DUE_AT.label("due"), tasks.c.run_at),
        *(tasks.c.recurrence, tasks.c.run_count, tasks.c.status),
    ]
    pending = _pending(grid, bounds).with_only_columns(*columns)
    overdue = select(*columns).where(_WAITS, grid.begin > DUE_AT).order_by(DUE_AT)
    looks = [
        overdue.limit(bounds.overdue),
        select(*columns).where(_BLOCKED).limit(bounds.overdue),
        select(*columns).where(_RUNS).limit(bounds.overdue),
        pending,
    ]
    parts = []
    for look in looks:
        found = look.subquery()
        parts.append(select(found).where(found.c.recurrence.is_not(None)))
    return select(union_all(*parts).subquery()).limit(bounds.recurring + 1)


def _recurring_of(row: Any) -> Recurring:
    due = None if row.status == "running" else row.due
    return Recurring(row.task_id, row.name, due, row.run_at, row.recurrence, row.run_count or 0)


def _overdue(grid: Grid, bounds: Bounds) -> Select[Any]:
    """Return the count of what is due and has not started."""
    waits = select(tasks.c.task_id).where(_WAITS, grid.begin > DUE_AT)
    blocked = select(tasks.c.task_id).where(_BLOCKED)
    parts = [select(each.limit(bounds.overdue + 1).subquery()) for each in (waits, blocked)]
    return select(func.count()).select_from(union_all(*parts).subquery())
