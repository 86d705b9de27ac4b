"""Retention: finished tasks, and with them their attempts, are removed when they are old. Attempts
of recurring tasks, which do not finish, are removed by themselves (`run_retention.py`).

Candidates are found along the list's index, from the oldest `run_at` on: whatever finished long
ago was to run long ago, and no index of its own is needed. Every instance walks by itself; two
that meet take different rows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select
from sqlalchemy.exc import IntegrityError

from job_scheduler.constants import TaskStatus
from job_scheduler.core.columns import database_time
from job_scheduler.core.run_retention import age_of_runs, old_runs, remove_runs
from job_scheduler.core.store import tasks, tasks_after
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)

_INTERVAL = 120.0
_PAUSE = 0.05

Ages = Mapping[TaskStatus, timedelta]
Place = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is done at once."""

    looked_at: int = 5_000
    """Rows that one statement looks at."""
    removed: int = 1_000
    """Rows that one transaction removes."""
    passed_over: int = 50_000
    """Rows that stay, after which a pass ends: the next one goes on from there."""


@dataclass(frozen=True, slots=True)
class _Page:
    """What one look along the index found."""

    expired: list[str]
    rows: int
    last: Place | None
    """Where to go on; None at the end."""


class Retention:
    """Removes tasks that finished longer ago than `ages` says for their status.

    `rest` waits between two transactions, for a number of seconds: as long as the one before
    took, so that at least half of the database's time is left to the tasks that run.
    """

    def __init__(
        self,
        database: Database,
        ages: Ages,
        bounds: Bounds | None = None,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
        interval: float = _INTERVAL,
    ) -> None:
        self._database = database
        self._ages = ages
        self._bounds = bounds or Bounds()
        self._rest = rest
        self._interval = interval
        self._after: Place | None = None

    async def run(self) -> None:
        """Prune every few minutes, for ever; an outage of the database is waited out."""
        while self._ages:
            try:
                await self.prune()
            except DatabaseUnavailable:
                _logger.debug("retention waits: the database is away")  # The sweep says it aloud.
            except Exception:
                _logger.exception("retention failed; the next pass follows in a few minutes")
            await asyncio.sleep(self._interval)

    async def prune(self) -> int:
        """Make one pass; return how many tasks were removed.

        It ends when nothing older is left, or when it has passed over many rows that stay
        (missed ones that are still scheduled, say): what is kept is not walked through from the
        beginning by every pass.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        expired = removed = passed_over = 0
        while passed_over < self._bounds.passed_over:
            page = await self._database.read(_look, self._ages, self._after, self._bounds.looked_at)
            # Before the removal: rows that cannot be removed are not to hold up those behind.
            self._after = page.last
            gone = await self._remove_in_batches(page.expired)
            expired += len(page.expired)
            removed += gone
            passed_over += page.rows - gone
            if page.last is None:
                break
        if expired:
            _logger.info("retention: %d tasks removed, %d left", removed, expired - removed)
        await self._remove_old_runs()
        return removed

    async def _remove_old_runs(self) -> None:
        age = age_of_runs(self._ages)
        limit, found = self._bounds.removed, self._bounds.removed
        while age is not None and found == limit:
            keys = await self._database.read(old_runs, age, limit)
            if found := len(keys):
                async with self._resting():
                    await self._database.write(remove_runs, keys)

    async def _remove_in_batches(self, task_ids: Sequence[str]) -> int:
        removed = 0
        for first in range(0, len(task_ids), self._bounds.removed):
            async with self._resting():
                removed += await self._remove(task_ids[first : first + self._bounds.removed])
        return removed

    @asynccontextmanager
    async def _resting(self) -> AsyncIterator[None]:
        """Rest for as long as the block took."""
        clock = asyncio.get_running_loop()
        began = clock.time()
        yield
        await self._rest(max(_PAUSE, clock.time() - began))

    async def _remove(self, task_ids: Sequence[str]) -> int:
        """Remove tasks; one that a row of another program's table refers to stays alone."""
        try:
            return await self._database.write(_remove, self._ages, task_ids)
        except IntegrityError:
            if len(task_ids) == 1:
                return 0
        half = len(task_ids) // 2
        return await self._remove(task_ids[:half]) + await self._remove(task_ids[half:])


def _look(connection: Connection, ages: Ages, after: Place | None, limit: int) -> _Page:
    """Look at up to `limit` rows behind `after`, in the order of the list's index."""
    now = database_time(connection)
    conditions = [tasks.c.run_at < now - min(ages.values())]
    if after is not None:
        conditions.append(tasks_after(after))
    rows = connection.execute(
        select(tasks.c.run_at, tasks.c.task_id, _expired(ages, now).label("expired"))
        .where(*conditions)
        .order_by(tasks.c.run_at, tasks.c.task_id)
        .limit(limit)
    ).all()
    return _Page(
        expired=[row.task_id for row in rows if row.expired],
        rows=len(rows),
        last=(rows[-1].run_at, rows[-1].task_id) if len(rows) == limit else None,
    )


def _remove(connection: Connection, ages: Ages, task_ids: Sequence[str]) -> int:
    """Remove those of the tasks that are still expired, and that nobody else holds.

    Their rows are locked in the order of their ids, and none is waited for: so it cannot
    deadlock with a claim, a rescue or another instance's retention.
    """
    now = database_time(connection)
    locked = connection.scalars(
        select(tasks.c.task_id)
        .where(tasks.c.task_id.in_(task_ids), _expired(ages, now))
        .order_by(tasks.c.task_id)
        .with_for_update(skip_locked=True)
    ).all()
    return connection.execute(delete(tasks).where(tasks.c.task_id.in_(locked))).rowcount


def _expired(ages: Ages, now: datetime) -> ColumnElement[bool]:
    return or_(
        *(
            and_(tasks.c.status == status.value, tasks.c.finished_at < now - age)
            for status, age in ages.items()
        )
    )
