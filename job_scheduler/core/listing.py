"""The list of tasks: any filter, in any order, page by page, and a bounded look for each page.

A page is read along an index in the list's order (a *walk*), from where the page before ended. What
is wanted of a status or a key has walks of its own, in indexes that hold little else. Where a
filter is left over that the walk does not go by, its end is looked up first, some ten thousand rows
on: so a page takes a bounded time, however few tasks match. It may be short then, even empty, and
the next one goes on from there.

Unless one of the filters has an index of its own, and few match it: then these are read and put in
order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    and_,
    func,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
)

from job_scheduler.constants import Sort, TaskStatus
from job_scheduler.core.filters import RANGES, TaskFilter, conditions, within
from job_scheduler.core.models import DUE_WHERE, PUT_OFF_WHERE, RESTS_WHERE
from job_scheduler.core.store import DUE_AT, SHOWN, TaskRow, tasks

Conditions = Mapping[str, ColumnElement[bool]]
_WAITS = "waits"
_KNOWN = {
    # Of PostgreSQL's indexes; those of SQLite know no more than their columns.
    "postgresql": {
        "list": frozenset({"status", "name", "q"}),
        "resting": frozenset({"name", "q"}),
    }
}
_RESTING = {TaskStatus.Failed, TaskStatus.Unknown, TaskStatus.Cancelled, TaskStatus.Paused}


class Place(NamedTuple):
    """Where a page ends: what comes after it, in the list's order, is on the next one."""

    moment: datetime
    task_id: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks, and where the next page begins; None: there is none."""

    rows: list[TaskRow]
    following: Place | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is looked at for one page."""

    walked: int = 200_000
    """Entries of an index that knows all that is asked for."""
    fetched: int = 50_000
    """Tasks along an index that have to be fetched to be looked at."""
    sorted: int = 10_000
    """Tasks that are read for one filter, and then put in order; and those of which most fit."""


@dataclass(frozen=True, slots=True)
class _Walk:
    """A way to some of the tasks: the conditions that lead into its index, and those left over.

    `moment` is what the index goes by; those that are not `ordered` come in no order. The left over
    conditions that are `known` to the index are looked at there.
    """

    into: Sequence[ColumnElement[bool]]
    left_over: Conditions
    moment: ColumnElement[Any]
    ordered: bool = True
    known: frozenset[str] = frozenset()

    @property
    def has_end(self) -> bool:
        """Whether it has to end somewhere, since it may lead past many tasks that do not fit."""
        return self.ordered and bool(self.left_over)

    def length(self, bounds: Bounds) -> int:
        """Return after how many tasks it ends."""
        if self.left_over.keys() <= self.known:
            return bounds.walked
        return bounds.sorted if self.left_over.keys() == {_WAITS} else bounds.fetched


@dataclass(frozen=True, slots=True)
class _Order:
    """The order of a list: a column's time, then the ids."""

    column: str
    descending: bool

    def after(self, moment: ColumnElement[Any], place: Place) -> ColumnElement[bool]:
        """Return the condition for what comes after a place."""
        here, there = _tuples(moment, place)
        beyond = here < there if self.descending else here > there
        if isinstance(moment, Column):
            return beyond
        # By an expression SQLite seeks only so.
        seek = moment <= place.moment if self.descending else moment >= place.moment
        return and_(seek, beyond)

    def up_to(self, moment: ColumnElement[Any], place: Place) -> ColumnElement[bool]:
        """Return the condition for what comes up to a place, that itself included."""
        here, there = _tuples(moment, place)
        return here >= there if self.descending else here <= there

    def by(self, *columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Return what follows ORDER BY."""
        return [column.desc() if self.descending else column.asc() for column in columns]


def _tuples(
    moment: ColumnElement[Any], place: Place
) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    types = [tasks.c.run_at.type, tasks.c.task_id.type]
    return tuple_(moment, tasks.c.task_id), tuple_(*place, types=types)


def list_tasks(
    connection: Connection,
    wanted: TaskFilter,
    sort: Sort,
    limit: int,
    after: Place | None = None,
    bounds: Bounds = Bounds(),
) -> Page:
    """Return up to `limit` tasks that are wanted, those that come after `after`.

    There may be fewer, or none, and a next page all the same.
    """
    order = _Order(sort.removeprefix("-"), sort.startswith("-"))
    dialect = connection.dialect.name
    left_over = conditions(wanted, dialect, hidden=True)
    walks = _walks(wanted, left_over, order, _KNOWN.get(dialect, {}))
    listing = _Listing(wanted, order, after)
    edge = None
    if ends := [walk for walk in walks if walk.has_end]:
        sets = _sets(wanted, conditions(wanted, dialect), order, dialect)
        survey = connection.execute(listing.survey(ends, sets, bounds)).one()._mapping
        sizes = {name: survey[name] for name in sets if survey[name] <= bounds.sorted}
        if sizes:
            smallest = min(sizes, key=lambda name: sizes[name])
            others = _without(left_over, smallest, order.column)
            walks = [_Walk([sets[smallest]], others, tasks.c[order.column], ordered=False)]
        elif survey["moment"] is not None:
            edge = Place(survey["moment"], survey["task_id"])
    rows = [dict(row._mapping) for row in connection.execute(listing.page(walks, edge, limit + 1))]
    if len(rows) <= limit:
        return Page(rows, edge)
    rows.pop()
    return Page(rows, Place(rows[-1][order.column], rows[-1]["task_id"]))


def _walks(
    wanted: TaskFilter, found: Conditions, order: _Order, known: Mapping[str, frozenset[str]]
) -> list[_Walk]:
    """Return walks that lead to all tasks that are wanted, to each by one of them."""
    moment = tasks.c[order.column]
    if order.column != "run_at":
        return [_Walk([], _without(found, order.column), moment)]
    if wanted.key:
        left_over = _without(found, "key", "run_at")
        keys = dict.fromkeys(wanted.key)
        return [_Walk([tasks.c.concurrency_key == key], left_over, moment) for key in keys]
    if wanted.status and TaskStatus.Done not in wanted.status:
        left_over = _without(found, "status", "run_at")
        resting = known.get("resting", frozenset())
        statuses = dict.fromkeys(wanted.status)
        return [walk for status in statuses for walk in _of(status, left_over, resting)]
    known_here = known.get("list", frozenset())
    return [_Walk([], _without(found, "run_at"), moment, known=known_here)]


def _of(status: TaskStatus, left_over: Conditions, known: frozenset[str]) -> list[_Walk]:
    """Return the walks of a status by run_at. (Literals: a partial index is chosen by them.)"""
    match status:
        case TaskStatus.Scheduled:
            # What simply waits stands by run_at in the index of what is due.
            waits = {**left_over, _WAITS: tasks.c.retry_at.is_(None)}
            return [
                _Walk([_literal(DUE_WHERE)], waits, DUE_AT),
                _Walk([_literal(PUT_OFF_WHERE)], left_over, tasks.c.run_at),
            ]
        case TaskStatus.Running:
            into = [_literal("status = 'running'")]
            return [_Walk(into, left_over, tasks.c.run_at, ordered=False)]
        case _:
            into = [_literal(f"status = '{status.value}'"), _literal(RESTS_WHERE)]
            return [_Walk(into, left_over, tasks.c.run_at, known=known)]


def _sets(wanted: TaskFilter, found: Conditions, order: _Order, dialect: str) -> Conditions:
    """Return the conditions that have an index of their own, in another order than the list's."""
    sets = {
        name: found[name]
        for name in (*RANGES, *(["tag"] if dialect == "postgresql" else []))
        if name in found and name != order.column
    }
    if order.column != "run_at":
        if "key" in found:
            sets["key"] = found["key"]
        if wanted.status and _RESTING.issuperset(wanted.status):
            sets["status"] = and_(found["status"], _literal(RESTS_WHERE))
        elif set(wanted.status) == {TaskStatus.Running}:
            sets["status"] = _literal("status = 'running'")
    return sets


def _without(found: Conditions, *names: str) -> Conditions:
    return {name: condition for name, condition in found.items() if name not in names}


def _literal(condition: str) -> ColumnElement[bool]:
    return literal_column(f"({condition})")


@dataclass(frozen=True, slots=True)
class _Listing:
    """The statements of one page."""

    wanted: TaskFilter
    order: _Order
    after: Place | None

    def survey(self, ends: Sequence[_Walk], sets: Conditions, bounds: Bounds) -> Select[Any]:
        """Return the look ahead: how many there are of each set, and where the walks are to end.

        None is counted beyond its bound; and if a set is small enough, no walk is made.
        """
        counted = [
            select(func.count())
            .select_from(select(tasks.c.task_id).where(one).limit(bounds.sorted + 1).subquery())
            .scalar_subquery()
            .label(name)
            for name, one in sets.items()
        ]
        sizes = select(literal_column("1").label("one"), *counted).cte("sizes")
        large = [select(sizes.c[name]).scalar_subquery() > bounds.sorted for name in sets]
        furthest = [self._end(walk, large, walk.length(bounds) // len(ends)) for walk in ends]
        parts = union_all(*(select(part.subquery()) for part in furthest)).subquery()
        edge = (
            select(parts).order_by(*self.order.by(parts.c.moment, parts.c.task_id)).limit(1)
        ).subquery()
        return select(*(sizes.c[name] for name in sets), edge.c.moment, edge.c.task_id).select_from(
            sizes.outerjoin(edge, true())
        )

    def _end(self, walk: _Walk, large: list[ColumnElement[bool]], rows: int) -> Select[Any]:
        return (
            select(walk.moment.label("moment"), tasks.c.task_id)
            .where(*walk.into, *self._span(walk.moment), *large)
            .order_by(*self.order.by(walk.moment, tasks.c.task_id))
            .offset(rows)
            .limit(1)
        )

    def page(self, walks: Sequence[_Walk], edge: Place | None, limit: int) -> Select[Any]:
        """Return the look at the tasks themselves."""
        parts = [self._part(walk, edge, limit) for walk in walks]
        if len(parts) == 1 and walks[0].ordered:
            return parts[0]
        whole = union_all(*(select(part.subquery()) for part in parts)).subquery()
        ordered = self.order.by(whole.c[self.order.column], whole.c.task_id)
        return select(whole).order_by(*ordered).limit(limit)

    def _part(self, walk: _Walk, edge: Place | None, limit: int) -> Select[Any]:
        part = select(*SHOWN).where(*walk.into, *walk.left_over.values(), *self._span(walk.moment))
        if edge is not None:
            part = part.where(self.order.up_to(walk.moment, edge))
        if not walk.ordered:
            # The offset keeps the order outside, and with it a walk along the list's index.
            return part.offset(0)
        ordered = self.order.by(walk.moment, tasks.c.task_id)
        if not walk.left_over:
            return part.order_by(*ordered).limit(limit)
        # The ids first: what the list's index holds of a task (its name, say) is looked at there.
        chosen = part.with_only_columns(tasks.c.task_id).order_by(*ordered).limit(limit)
        return select(*SHOWN).where(tasks.c.task_id.in_(chosen)).order_by(*ordered)

    def _span(self, moment: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        """Return the conditions on the moments of this page and all that follow."""
        span = within(moment, self.wanted, self.order.column)
        if self.order.column == "finished_at":
            span.append(moment.is_not(None))
        return span if self.after is None else [*span, self.order.after(moment, self.after)]
