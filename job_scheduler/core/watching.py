"""Streams of changes: each reads on from its own place; one look for all of them tells when.

So a slow reader holds nothing in memory, and one that was away goes on where it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
    """Where a stream begins; `is_complete` tells whether nothing after its place is missing."""

    place: Place
    is_complete: bool


class Watching:
    """Those who watch. When `is_stopping`, their streams end."""

    def __init__(self, database: Database, is_stopping: Callable[[], bool]) -> None:
        self._database = database
        self._is_stopping = is_stopping
        self.streams = 0
        """How many there are."""
        self._last: Place | None = None
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
        if last is not None and await self._database.read(events.is_complete_from, last):
            return Start(last, is_complete=True)
        await self._database.write(events.note_changes)
        return Start(await self._database.read(events.beginning), is_complete=last is None)

    async def changes_after(self, place: Place) -> AsyncIterator[Sequence[EventRow]]:
        """Read on from a place as changes come, until the service stops."""
        while not self._is_stopping():
            changed = self._changed
            try:
                rows = await self._database.read(events.changes_after, place, _PAGE)
            except DatabaseUnavailable:
                # It is not known to be complete any more only if it takes very long.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
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
            self._renewed_at = time.monotonic()
            if self.streams:
                await self._database.write(events.note_changes)
            # Also what was noted for those who have gone, perhaps with their instance.
            while await self._database.read(events.is_any_old):
                await self._database.write(events.forget_changes)
        if not self.streams:
            return
        last = await self._database.read(events.last_place)
        if last != self._last:
            self._last = last
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
