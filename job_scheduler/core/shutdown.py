"""The stop in order: nothing new begins, what runs may end, and the rest is given back or noted."""

import asyncio
import logging
from contextlib import suppress

from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.handlers.calling import Caller

_logger = logging.getLogger(__name__)

_RECORD_SECONDS = 5.0
"""How long the stop waits for results to be written, after the grace period."""
_REASON = "interrupted: the service stopped before it finished"


class Shutdown:
    """Begins with the signal to stop; `grace` seconds from then, what still runs is cut off.

    Belongs to the event loop's thread.
    """

    def __init__(self, dispatcher: Dispatcher, caller: Caller, grace: float) -> None:
        self._dispatcher = dispatcher
        self._caller = caller
        self._grace = grace
        self._deadline = 0.0
        self._hurry = asyncio.Event()
        self.begun = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether nothing new is to begin."""
        return self.begun.is_set()

    def note_signal(self) -> None:
        """Begin; at the second time, end the grace period at once."""
        if self.has_begun:
            self._hurry.set()
        self.begin()

    def begin(self) -> None:
        """Claim nothing any more, and let handlers know; repeating it changes nothing."""
        if self.has_begun:
            return
        self.begun.set()
        self._deadline = asyncio.get_running_loop().time() + self._grace
        self._dispatcher.stop()
        self._caller.stop()
        if self._dispatcher.running:
            _logger.info(
                "stopping: waiting up to %g s for %d running tasks",
                self._grace,
                self._dispatcher.running,
            )

    async def finish(self) -> None:
        """Return when the runs have ended, or were cut off and that has been recorded."""
        self.begin()
        await self._grace_period()
        self._caller.cut_off(_REASON)
        if not await self._dispatcher.drain(_RECORD_SECONDS):
            _logger.error(
                "%d results could not be written: others mark these runs as interrupted",
                self._dispatcher.running,
            )

    async def _grace_period(self) -> None:
        left = self._deadline - asyncio.get_running_loop().time()
        ended = asyncio.ensure_future(self._dispatcher.drain(max(left, 0.0)))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([ended, hurry], return_when=asyncio.FIRST_COMPLETED)
        for waiting in (ended, hurry):
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
