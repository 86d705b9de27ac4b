"""A loop that takes a step now and then, for ever."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)


class Loop:
    """Takes `step` every `interval` seconds, and when it is woken.

    An outage of the database is waited out (the sweep says so aloud); a step that fails otherwise
    is logged as `what` it is.
    """

    def __init__(self, step: Callable[[], Awaitable[Any]], interval: float, what: str) -> None:
        self._step = step
        self._interval = interval
        self._what = what
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Take a step at once: there may be something to do."""
        self._wanted.set()

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            # Cleared before, not after: a wish that comes up meanwhile is for another step.
            self._wanted.clear()
            try:
                await self._step()
            except DatabaseUnavailable:
                pass
            except Exception:
                _logger.exception("%s failed; the next one follows", self._what)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._interval)
