"""The loop that releases missed tasks at a bounded rate, or says that they wait for a person.

Every instance runs it; one at a time does the work, and when it dies another goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from job_scheduler.core import catch_up, overdue
from job_scheduler.core.catch_up import CatchUpRow
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)

_INTERVAL = 1.0
_REMIND_SECONDS = 60.0
_PAUSE = 0.005
"""Between two batches, so that others get to write: SQLite has one writer at a time."""


class Release:
    """Releases up to `rate` tasks a second of the catch-up that is under way, if there is one."""

    def __init__(
        self, database: Database, rate: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._rate = rate
        self._monotonic = monotonic
        self._wake = asyncio.Event()
        self._reminded_at = 0.0
        self.current: CatchUpRow | None = None
        """The catch-up as it stood at the latest look."""
        self.held = 0
        """How many tasks wait for an approval, as of the latest reminder."""

    async def run(self) -> None:
        """Work for ever; an outage of the database is waited out."""
        while True:
            self._wake.clear()
            try:
                await self.step()
            except DatabaseUnavailable:
                _logger.debug("the database is away: nothing is released")  # The sweep says it.
            except Exception:
                _logger.exception("missed tasks could not be released; the next try follows")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _INTERVAL)

    def wake(self) -> None:
        """Take the next step at once: a person has approved."""
        self._wake.set()

    async def step(self) -> None:
        """Look, and release what may start soon.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        await self.look()
        if self.current is None or self.current.waits or self.current.finished_at:
            return
        while True:
            released = await self._database.write(catch_up.release, self._rate)
            if released.finished:
                _logger.info("recovery: all missed tasks have been released")
            if not released.tasks:
                return
            await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Find out how the catch-up stands; while it waits, say so about every minute.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        former, self.current = self.current, await self._database.read(catch_up.current)
        if self.current is None:
            return
        if self.current.is_past:
            await self._database.write(catch_up.forget, self.current.missed_at)
        if self.current.waits:
            waited = former is not None and former.waits
            if not waited or self._monotonic() - self._reminded_at >= _REMIND_SECONDS:
                await self._remind(self.current)

    async def _remind(self, waiting: CatchUpRow) -> None:
        self.held = await self._database.read(overdue.count_missed, waiting.missed_at)
        self._reminded_at = self._monotonic()
        _logger.warning(
            "recovery waits: %d missed tasks are held since %s; POST /recovery/approve runs them",
            self.held,
            waiting.held_at,
        )
