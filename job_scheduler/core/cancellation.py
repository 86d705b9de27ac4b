"""The cancellation of runs: whoever asks for it writes it into the task's row, whoever runs it
looks there.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress

from job_scheduler.core.store import cancelled_runs
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)

_INTERVAL = 0.5


class Cancellation:
    """Has the runs of this instance cancelled whose end is asked for, wherever that was.

    It looks twice a second, and when it is woken; `cancel` gets the tokens of the runs.
    """

    def __init__(
        self,
        database: Database,
        instance_id: Callable[[], str],
        cancel: Callable[[Collection[str]], None],
    ) -> None:
        self._database = database
        self._instance_id = instance_id
        self._cancel = cancel
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Look at once: somebody says that there is something to find."""
        self._wanted.set()

    async def run(self) -> None:
        """Look for ever; an outage of the database is waited out."""
        while True:
            self._wanted.clear()
            try:
                await self.look()
            except DatabaseUnavailable:
                pass  # The sweep says so aloud.
            except Exception:
                _logger.exception("a look for cancelled runs failed; the next one follows")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), _INTERVAL)

    async def look(self) -> None:
        """Look once.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        if tokens := await self._database.read(cancelled_runs, self._instance_id()):
            self._cancel(set(tokens))
