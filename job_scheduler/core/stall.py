"""The watch over the process's own event loop: one that hangs for long is beyond help.

Its heart goes on beating in a thread, so nobody would take it for dead, and nothing that it
has claimed would ever end. So the process ends itself: that makes its rescue safe.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import traceback

_logger = logging.getLogger(__name__)

EXIT_STALLED = 70  # EX_SOFTWARE of sysexits.h


class StallWatch:
    """Ends the process when the loop has not turned for `limit` seconds.

    Made in the loop's own thread; `check` is called from another one, now and then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self._loop = loop
        self._limit = limit
        self._thread_id = threading.get_ident()
        self._asked_at: float | None = None

    def check(self) -> None:
        """Ask the loop for a sign of life, and look how long the last one has been due."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self._loop.call_soon_threadsafe(self._note_turn)
        elif now - self._asked_at >= self._limit:
            stack = traceback.format_stack(sys._current_frames()[self._thread_id])
            _logger.critical(
                "the event loop has not turned for %g s: this process ends itself, so that the "
                "others can take over. An async handler must not block. It hangs here:\n%s",
                now - self._asked_at,
                "".join(stack),
            )
            os._exit(EXIT_STALLED)

    def _note_turn(self) -> None:
        self._asked_at = None
