"""Streams of changes: each reads on from its own place; one look for all of them tells when.

So a slow reader holds nothing in memory, and one that was away goes on where it was. A stream that
cannot be complete any more ends: its reader comes back, and is told so as after any other break.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from job_scheduler.core import events
from job_scheduler.core.events import EventRow, Place
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable, Overloaded

STREAMS_MAX = 500
"""Streams that this process serves at a time."""
_PAGE = 500
_RENEWED_SECONDS = 60.0
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins; `is_complete` tells whether nothing after its place is missing.

    `floor` is that of then. It may lie above the place of a stream that begins now: transactions
    are under way that are older than it.
    """

    place: Place
    is_complete: bool
    floor: Place


class Watching:
    """Those who watch. When `is_stopping`, their streams end."""

    def __init__(self, database: Database, is_stopping: Callable[[], bool]) -> None:
        self._database = database
        self._is_stopping = is_stopping
        self.streams = 0
        """How many there are."""
        self._seen: tuple[Place | None, Place | None] | None = None
        self._settled = 0
        self._changed = asyncio.Event()
        self._renewed_at = -_RENEWED_SECONDS

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream, as long as the block lasts.

        Raises:
            Overloaded: there are too many.
        """
        if self.streams >= STREAMS_MAX:
            raise Overloaded
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    async def start(self, last: Place | None) -> Start:
        """Return where a stream begins: after `last`, or now.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        await self._database.write(events.note_changes)
        return await self._database.read(_start, last)

    async def changes_after(self, start: Start) -> AsyncIterator[Sequence[EventRow]]:
        """Read on as changes come, until the service stops, or some have been missed: they were
        forgotten before they were read, or not noted during a long outage of the database.
        """
        place = start.place
        while not self._is_stopping():
            changed = self._changed
            try:
                rows = await self._database.read(_read_on, place, start.floor, self._settled)
            except DatabaseUnavailable:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if rows is None:
                return
            if rows:
                place = Place(rows[-1]["xid"], rows[-1]["event_id"])
                yield rows
            else:
                await changed.wait()

    async def look(self) -> None:
        """Tell the streams whether something has changed, and that they are to end.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        if self._is_stopping():
            self._tell()
            return
        if time.monotonic() - self._renewed_at >= _RENEWED_SECONDS:
            if self.streams:
                await self._database.write(events.note_changes)
            self._renewed_at = time.monotonic()
            # Also what was noted for those who have gone, perhaps with their instance.
            while await self._database.read(events.is_any_old):
                await self._database.write(events.forget_changes)
        if not self.streams:
            return
        # Both at once: a stream that reads up to less than was seen is told of the rest later.
        self._settled, seen = await self._database.read(_look)
        if seen != self._seen:
            self._seen = seen
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _start(connection: Connection, last: Place | None) -> Start:
    now = events.beginning(connection)
    floor = events.floor(connection) or now
    if last is not None and events.is_complete_from(connection, last):
        return Start(last, is_complete=True, floor=floor)
    return Start(now, is_complete=last is None, floor=floor)


def _read_on(
    connection: Connection, place: Place, known: Place, settled: int
) -> Sequence[EventRow] | None:
    """Return the changes after a place, up to a page of them; None: some may be missing.

    `known` is a floor above the place that is known to do no harm.
    """
    rows = events.changes_after(connection, place, _PAGE, settled)
    # Not before: what is forgotten in between would be missed.
    floor = events.floor(connection)
    return None if floor is None or floor > max(place, known) else rows


def _look(connection: Connection) -> tuple[int, tuple[Place | None, Place | None]]:
    """Return what has settled, and what is another one as soon as a stream is to be told."""
    settled = events.settled(connection)
    return settled, (events.last_place(connection, settled), events.floor(connection))
