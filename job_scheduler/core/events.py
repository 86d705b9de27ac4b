"""What changed: how changes are noted for a while, read in their order, and forgotten.

Places are ordered as the changes became visible, so that whoever reads on from a place misses none.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    delete,
    func,
    literal_column,
    select,
    text,
    tuple_,
)

from job_scheduler.core.columns import NOW_SQL, UtcDateTime, later_sql
from job_scheduler.core.event_models import EventWatch, TaskEvent

events = cast("Table", TaskEvent.__table__)
watch = cast("Table", EventWatch.__table__)

WATCHED = timedelta(minutes=10)
"""How long changes are noted after somebody has watched: so long a reader may be away."""
KEPT = timedelta(minutes=15)

EventRow = Mapping[str, Any]


def _number(xid8: str) -> str:
    return f"CAST(CAST({xid8} AS text) AS bigint)"


_XID = {"postgresql": _number("pg_current_xact_id()"), "sqlite": "0"}
_OLDEST_XID = _number("pg_snapshot_xmin(pg_current_snapshot())")
_NEXT_XID = _number("pg_snapshot_xmax(pg_current_snapshot())")
# A snapshot knows the transactions of the whole server. Those of its other databases, which may
# take hours, change nothing here: the lock that each holds on its own id tells where its session
# is. One that has just ended holds none any more, and counts as one of ours until the next look.
_OLDEST_XID_HERE = text(f"""
    SELECT coalesce(min({_number("under_way.xid")}), {_NEXT_XID})
    FROM pg_snapshot_xip(pg_current_snapshot()) AS under_way (xid)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_locks AS held, pg_stat_get_activity(held.pid) AS session
        WHERE held.locktype = 'transactionid' AND held.mode = 'ExclusiveLock'
            AND held.transactionid = CAST(under_way.xid AS xid)
            AND session.datid <> (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    """)  # noqa: S608 (made of constants)
_LAST_EVENT = {
    "postgresql": "(SELECT coalesce(max(event_id), 0) FROM task_events)",
    # Also when the last ones are forgotten.
    "sqlite": "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'task_events')",
}
_FLOOR_EVENT = {"postgresql": "0", "sqlite": _LAST_EVENT["sqlite"]}


class Place(NamedTuple):
    """A place in the sequence of changes."""

    xid: int
    event_id: int

    def __str__(self) -> str:
        """Return it as the id of an event."""
        return f"{self.xid}-{self.event_id}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """Return the place that an event's id tells; None if it is none of ours."""
        xid, dash, event_id = text.partition("-")
        is_place = dash and all(
            part.isascii() and part.isdecimal() and len(part) < 19 for part in (xid, event_id)
        )
        return cls(int(xid), int(event_id)) if is_place else None


def note_changes(connection: Connection) -> None:
    """Have changes noted for some more minutes; if they were not, they are known from now on."""
    dialect = connection.dialect.name
    if dialect == "sqlite":
        for statement in _LEAVE_AN_ID_OUT:
            connection.execute(statement)
    connection.execute(_NOTE[dialect], {"seconds": WATCHED.total_seconds()})


def beginning(connection: Connection) -> Place:
    """Return the place from which on everything comes that becomes visible from now on.

    What became visible a moment ago may come, too.
    """
    if connection.dialect.name == "postgresql":
        return Place(settled(connection), 0)
    return Place(0, _last_event(connection))


def settled(connection: Connection) -> int:
    """Return a transaction all before which have ended, as far as they are of this database.

    The answer may be lower than one before it; that one still holds.
    """
    if connection.dialect.name == "postgresql":
        return int(connection.execute(_OLDEST_XID_HERE).scalar_one())
    return 0


def floor(connection: Connection) -> Place | None:
    """Return the first place after which no change is missing; None: none are noted now."""
    row = connection.execute(
        select(watch.c.floor_xid, watch.c.floor_event).where(
            watch.c.until > literal_column(NOW_SQL[connection.dialect.name], UtcDateTime())
        )
    ).one_or_none()
    return None if row is None else Place(*row)


def is_complete_from(connection: Connection, place: Place) -> bool:
    """Tell whether all that came after a place is still there."""
    lowest = floor(connection)
    return lowest is not None and lowest <= place <= _end(connection)


def last_place(connection: Connection, known: int = 0) -> Place | None:
    """Return the place of the last change, if there is one; `known` is what has `settled`."""
    row = connection.execute(
        select(events.c.xid, events.c.event_id)
        .where(*_is_visible(connection, known))
        .order_by(events.c.xid.desc(), events.c.event_id.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Place(*row)


def changes_after(
    connection: Connection, place: Place, limit: int, known: int = 0
) -> Sequence[EventRow]:
    """Return up to `limit` changes after a place, in their order; `known` is what has `settled`."""
    here = tuple_(events.c.xid, events.c.event_id)
    types = [events.c.xid.type, events.c.event_id.type]
    found = connection.execute(
        select(events)
        .where(here > tuple_(*place, types=types), *_is_visible(connection, known))
        .order_by(events.c.xid, events.c.event_id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in found]


def is_any_old(connection: Connection) -> bool:
    """Tell whether there are changes of so long ago that they are to be forgotten."""
    oldest = select(events.c.at).order_by(events.c.xid, events.c.event_id).limit(1).subquery()
    old = select(oldest.c.at).where(oldest.c.at < _cutoff(connection))
    return connection.execute(old).one_or_none() is not None


def forget_changes(connection: Connection, at_once: int = 10_000) -> None:
    """Forget changes of some time ago, up to `at_once` of them."""
    place = (events.c.xid, events.c.event_id)
    oldest = select(*place, events.c.at).order_by(*place).limit(at_once).subquery()
    last = connection.execute(
        select(oldest.c.xid, oldest.c.event_id)
        .where(oldest.c.at < _cutoff(connection))
        .order_by(oldest.c.xid.desc(), oldest.c.event_id.desc())
        .limit(1)
    ).one_or_none()
    if last is not None:
        connection.execute(_RAISE, {"xid": last.xid, "event_id": last.event_id})
        types = [column.type for column in place]
        connection.execute(delete(events).where(tuple_(*place) <= tuple_(*last, types=types)))


def _cutoff(connection: Connection) -> ColumnElement[Any]:
    return literal_column(
        later_sql(connection.dialect.name, str(-KEPT.total_seconds())), UtcDateTime()
    )


def _end(connection: Connection) -> Place:
    """Return a place behind which nothing can be yet: no id of ours lies there."""
    if connection.dialect.name == "sqlite":
        return beginning(connection)
    next_xid = connection.execute(select(literal_column(_NEXT_XID, BigInteger()))).scalar_one()
    return Place(next_xid, _last_event(connection))


def _last_event(connection: Connection) -> int:
    last = literal_column(_LAST_EVENT[connection.dialect.name], BigInteger())
    return connection.execute(select(last)).scalar_one()


def _is_visible(connection: Connection, known: int) -> list[Any]:
    if connection.dialect.name == "sqlite":
        return []
    return [events.c.xid < func.greatest(literal_column(_OLDEST_XID), known)]


def _note_statement(dialect: str) -> Any:
    still = f"event_watch.until > {NOW_SQL[dialect]}"
    return text(f"""
        INSERT INTO event_watch (singleton, until, floor_xid, floor_event)
        VALUES (1, {later_sql(dialect, ":seconds")}, {_XID[dialect]}, {_FLOOR_EVENT[dialect]})
        ON CONFLICT (singleton) DO UPDATE SET
            floor_xid = CASE WHEN {still} THEN event_watch.floor_xid ELSE excluded.floor_xid END,
            floor_event = CASE WHEN {still}
                THEN event_watch.floor_event ELSE excluded.floor_event END,
            until = excluded.until
        """)  # noqa: S608 (made of constants)


_NOTE = {dialect: _note_statement(dialect) for dialect in NOW_SQL}
# What was not noted has no ids. So an id is left out, and the floor lies above all that any reader
# has had before; on PostgreSQL, transactions have numbers that do so.
_LEAVE_AN_ID_OUT = (
    text("""
    INSERT INTO sqlite_sequence (name, seq) SELECT 'task_events', 0
    WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'task_events')
    """),
    text(f"""
    UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'task_events'
    AND NOT EXISTS (SELECT 1 FROM event_watch WHERE until > {NOW_SQL["sqlite"]})
    """),  # noqa: S608 (made of constants)
)
_RAISE = text("""
    UPDATE event_watch SET floor_xid = :xid, floor_event = :event_id
    WHERE floor_xid < :xid OR (floor_xid = :xid AND floor_event < :event_id)
    """)
