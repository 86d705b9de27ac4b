"""Starts tasks that a limit has set aside, when there is room for them."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from job_scheduler.core.blocked import NAMES_MAX, blocking, startable
from job_scheduler.core.limits import Limits
from job_scheduler.core.store import DueTask
from job_scheduler.database import Database

_ROUND_SECONDS = 0.5


class Unblocking:
    """Looks for what may start, and hands it to `offer`.

    The limits under which a run has ended here are looked at first. All others, some in each round,
    only so often: there may be many, and there is room for them for other reasons.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        offer: Callable[[Sequence[DueTask]], None],
        round_seconds: float = _ROUND_SECONDS,
    ) -> None:
        self._round_seconds = round_seconds
        self._database = database
        self._limits = limits
        self._offer = offer
        self._freed: set[str] = set()
        self._after = ""
        self._next_round = 0.0

    def note_room(self, names: Iterable[str]) -> None:
        """Take note of limits under which there may be room; look at them next."""
        self._freed.update(names)

    async def look(self) -> None:
        """Look once.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        freed, self._freed = self._freed, set()
        if freed:
            await self._start(freed)
        now = time.monotonic()
        if now < self._next_round:
            return
        self._next_round = now + self._round_seconds
        names = await self._database.read(blocking, self._after)
        self._after = names[-1] if len(names) == NAMES_MAX else ""
        if names:
            await self._start(names)

    async def _start(self, names: Collection[str]) -> None:
        if found := await self._database.read(startable, names, self._limits):
            self._offer(found)
