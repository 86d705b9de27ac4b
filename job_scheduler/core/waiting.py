"""Callers that wait for the end of a task: one look at the database serves them all.

It need not be run by this instance.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from job_scheduler.constants import ENDED
from job_scheduler.core.store import tasks
from job_scheduler.database import Database

WAIT_MAX_SECONDS = 60
"""How long a caller may wait at most."""
CALLERS_MAX = 1_000
"""How many may wait in this process at a time; whoever comes then is answered at once."""

_PREFERENCE = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)


def wanted_seconds(prefer: str | None) -> int:
    """Return how long the header ``Prefer`` (RFC 7240, section 4.3) asks to wait: 0 if not at all.

    A preference that cannot be understood is none, as the RFC has it.
    """
    found = _PREFERENCE.search(prefer or "")
    return min(int(found.group(1)), WAIT_MAX_SECONDS) if found else 0


class Waiting:
    """Those who wait, by task. When `is_stopping`, nobody waits any longer."""

    def __init__(self, database: Database, is_stopping: Callable[[], bool]) -> None:
        self._database = database
        self._is_stopping = is_stopping
        self._callers: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._number = 0
        self._somebody = asyncio.Event()

    async def until_ended(self, task_id: str, seconds: float) -> None:
        """Return when a task has ended or is gone, but after some seconds at the latest."""
        if self._number >= CALLERS_MAX:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        self._callers[task_id].add(ended)
        self._somebody.set()
        try:
            await asyncio.wait([ended], timeout=seconds)
        finally:
            self._number -= 1
            self._callers[task_id].discard(ended)
            if not self._callers[task_id]:
                del self._callers[task_id]

    async def look(self) -> None:
        """Answer those whose tasks have ended; return when somebody has waited.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        if not self._callers:
            self._somebody.clear()
        await self._somebody.wait()
        asked = list(self._callers)
        if self._is_stopping():
            going: Sequence[str] = []
        else:
            going = await self._database.read(_going, asked)
        for task_id in set(asked).difference(going):
            for ended in self._callers.get(task_id, ()):
                ended.set_result(None)


def _going(connection: Connection, task_ids: Sequence[str]) -> list[str]:
    """Return which of these tasks have not ended."""
    going = select(tasks.c.task_id).where(
        tasks.c.task_id.in_(task_ids), tasks.c.status.not_in([status.value for status in ENDED])
    )
    return list(connection.scalars(going))
