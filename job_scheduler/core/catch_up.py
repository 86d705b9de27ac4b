"""The catch-up after a downtime: one row in the database, whoever works at it.

Start-up sets the overdue tasks aside and opens it; if there are too many it is held until a
person approves. Then the tasks are released at a bounded rate, shortly before they are to
start, by whichever instance gets there. The row says up to when releases have been given out,
so that the rate holds whoever dies in the middle and whoever goes on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Table, delete, insert, select, text, update

from job_scheduler.core import overdue
from job_scheduler.core.columns import database_now, database_time
from job_scheduler.core.models import CatchUp
from job_scheduler.exceptions import NothingHeld

catch_up = cast("Table", CatchUp.__table__)

HORIZON = timedelta(seconds=10)
"""How long before they are to start tasks are released: more than the sweep looks ahead."""

_KEPT = timedelta(days=1)
"""How long it is remembered after its end, so that a repeated approval is answered the same."""


@dataclass(frozen=True, slots=True)
class CatchUpRow:
    """The catch-up as it stood at `now`, by the database's clock; see the table."""

    missed_at: datetime
    covers_until: datetime
    held_at: datetime | None
    approved_at: datetime | None
    released_until: datetime | None
    finished_at: datetime | None
    now: datetime

    @property
    def waits(self) -> bool:
        """Whether a person has yet to approve it."""
        return self.held_at is not None and self.approved_at is None

    @property
    def next_release(self) -> datetime:
        """From when on the next tasks may start."""
        return max(self.now, self.released_until or self.now)

    @property
    def is_over(self) -> bool:
        """Whether all its tasks have been released, and the last one's time has come."""
        return self.finished_at is not None and self.next_release == self.now

    @property
    def is_past(self) -> bool:
        """Whether nobody needs to remember it any more."""
        return self.finished_at is not None and self.now - self.finished_at > _KEPT


@dataclass(frozen=True, slots=True)
class Approved:
    """How many tasks an approval released, when, and about when the last of them may start."""

    tasks: int
    at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Released:
    """How many tasks one batch released, and whether they were the last."""

    tasks: int
    finished: bool = False


def current(connection: Connection) -> CatchUpRow | None:
    """Return the catch-up that is under way, or has lately ended."""
    return _fetch(connection, _CURRENT)


def begin(connection: Connection, covers_until: datetime, *, hold: bool) -> CatchUpRow:
    """Open a catch-up, or widen the one that is not over yet: there is one at a time.

    One that waits goes on waiting; with `hold` one that was approved waits again.
    """
    former = _fetch(connection, _CURRENT.with_for_update())
    now = database_time(connection)
    if former is None or former.is_over:
        connection.execute(delete(catch_up))
        values = {"missed_at": now, "covers_until": covers_until, "held_at": now if hold else None}
        connection.execute(insert(catch_up).values(**values))
    else:
        changes: dict[str, Any] = {"covers_until": covers_until, "finished_at": None}
        if hold and not former.waits:
            changes |= {"held_at": now, "approved_at": None}
        connection.execute(update(catch_up).values(**changes))
    return cast("CatchUpRow", current(connection))


def approve(connection: Connection, rate: float) -> Approved:
    """Let the tasks that are held be released; a repetition changes nothing.

    Raises:
        NothingHeld: none are, nor were they lately.
    """
    row = _fetch(connection, _CURRENT.with_for_update())
    if row is None or row.held_at is None:
        raise NothingHeld
    if row.waits:
        tasks = overdue.count_missed(connection, row.missed_at)
        until = row.next_release + timedelta(seconds=tasks / rate)
        values = {"approved_at": row.now, "approved_tasks": tasks, "approved_until": until}
        connection.execute(update(catch_up).values(**values))
    return Approved(*connection.execute(_APPROVED).one())


def release(connection: Connection, rate: float) -> Released:
    """Release one batch: of those that may start within the horizon, the oldest.

    Nothing happens while another instance is at it, or a person has yet to approve.
    """
    row = _fetch(connection, _CURRENT.where(_RELEASABLE).with_for_update(skip_locked=True))
    if row is None:
        return Released(0)
    room = int((row.now + HORIZON - row.next_release).total_seconds() * rate)
    if room <= 0:
        return Released(0)
    tasks = overdue.release_missed(connection, row.missed_at, row.next_release, rate, room)
    if not tasks:
        return Released(0, finished=_finish(connection))
    until = row.next_release + timedelta(seconds=tasks / rate)
    connection.execute(update(catch_up).values(released_until=until))
    return Released(tasks)


def close(connection: Connection, missed_at: datetime) -> None:
    """Forget the catch-up of these tasks; what it has not released stays as it is."""
    connection.execute(delete(catch_up).where(catch_up.c.missed_at == missed_at))


def forget(connection: Connection, missed_at: datetime) -> None:
    """Forget the catch-up of these tasks, if it has ended."""
    ended = (catch_up.c.missed_at == missed_at) & catch_up.c.finished_at.is_not(None)
    connection.execute(delete(catch_up).where(ended))


def _finish(connection: Connection) -> bool:
    # All that were picked may have been deleted, or locked, at that moment.
    finished = connection.execute(update(catch_up).where(_NONE_LEFT).values(finished_at=_NOW))
    return bool(finished.rowcount)


def _fetch(connection: Connection, statement: Any) -> CatchUpRow | None:
    row = connection.execute(statement).one_or_none()
    return None if row is None else CatchUpRow(**row._mapping)


_NOW = database_now()
_CURRENT = select(
    catch_up.c.missed_at,
    catch_up.c.covers_until,
    catch_up.c.held_at,
    catch_up.c.approved_at,
    catch_up.c.released_until,
    catch_up.c.finished_at,
    _NOW.label("now"),
)
_APPROVED = select(catch_up.c.approved_tasks, catch_up.c.approved_at, catch_up.c.approved_until)
_RELEASABLE = text("finished_at IS NULL AND (held_at IS NULL OR approved_at IS NOT NULL)")
_NONE_LEFT = text(
    "NOT EXISTS (SELECT 1 FROM scheduled_tasks AS task "
    "WHERE task.status = 'scheduled' AND task.missed_at = catch_up.missed_at)"
)
