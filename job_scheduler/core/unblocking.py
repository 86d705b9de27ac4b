"""Lets tasks go that a limit has set aside, when there is room for them."""

from collections.abc import Callable, Sequence

from job_scheduler.core.blocked import is_any_blocked, let_go
from job_scheduler.core.limits import Limits
from job_scheduler.core.store import DueTask
from job_scheduler.database import Database


class Unblocking:
    """Looks for what can be let go, and hands it to `offer`; other instances find it by a sweep."""

    def __init__(
        self, database: Database, limits: Limits, offer: Callable[[Sequence[DueTask]], None]
    ) -> None:
        self._database = database
        self._limits = limits
        self._offer = offer
        self._after = ""

    async def look(self) -> None:
        """Look once.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        if not await self._database.read(is_any_blocked):
            return
        freed, self._after = await self._database.write(let_go, self._limits, self._after)
        if freed:
            self._offer(freed)
