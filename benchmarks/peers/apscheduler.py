"""APScheduler 3.11 with its SQLAlchemyJobStore on PostgreSQL, asyncio scheduler and executor."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from benchmarks.peers.kit import DB_URL, Peer, ran, serve


async def noop(number: int) -> None:
    """Note that it has started."""
    ran(number)


class APScheduler(Peer):
    """Its store belongs to one process: the one that adds the jobs also runs them.

    `misfire_grace_time=None`: with the default of one second it drops most of a burst.
    """

    def __init__(self) -> None:
        self._scheduler: Any = None

    def _started(self, *, paused: bool) -> Any:
        if self._scheduler is None:
            self._scheduler = AsyncIOScheduler(
                jobstores={"default": SQLAlchemyJobStore(DB_URL)},
                executors={"default": AsyncIOExecutor()},
                job_defaults={"misfire_grace_time": None},
                timezone=UTC,
            )
            self._scheduler.start(paused=paused)
        return self._scheduler

    async def work(self) -> None:
        """Start it."""
        self._started(paused=False)

    async def create_one(self, number: int, due: float) -> None:
        """Add one job; it is committed when the call returns. The call blocks the event loop."""
        self._add(number, due, uuid4().hex)

    async def store(self, first: int, due: Sequence[float]) -> None:
        """Add jobs one by one: there is no call for many."""
        for number, moment in enumerate(due, first):
            self._add(number, moment, str(number))

    def _add(self, number: int, due: float, job_id: str) -> None:
        scheduler = self._started(paused=True)
        when = datetime.fromtimestamp(due, UTC)
        scheduler.add_job(noop, "date", run_date=when, args=[number], id=job_id)

    async def left(self) -> int:
        """Count the jobs that are still stored: it removes a job as it hands it out."""
        return len(self._scheduler.get_jobs())

    async def close(self) -> None:
        """Stop it."""
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)


if __name__ == "__main__":
    serve(APScheduler)
