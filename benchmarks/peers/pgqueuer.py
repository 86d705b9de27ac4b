"""pgqueuer, on PostgreSQL with asyncpg; BENCH_BATCH is how many jobs it takes at once."""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import Queries, QueueManager
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver

from benchmarks.peers.kit import LIBPQ_URL, Peer, ran, serve, slices

BATCH = int(os.environ.get("BENCH_BATCH", "10"))
CONNECTIONS = 32


async def noop(job: Any) -> None:
    """Note that it has started."""
    ran(int(job.payload))


class PgQueuer(Peer):
    """The worker has a connection of its own, those who enqueue share a pool."""

    def __init__(self) -> None:
        self._queries: Any = None
        self._manager: Any = None

    async def _enqueuing(self) -> Any:
        if self._queries is None:
            pool = await asyncpg.create_pool(LIBPQ_URL, min_size=1, max_size=CONNECTIONS)
            self._queries = Queries(AsyncpgPoolDriver(pool))
        return self._queries

    async def setup(self) -> None:
        """Its own schema, durable as it comes."""
        await (await self._enqueuing()).install()

    async def work(self) -> None:
        """One queue manager."""
        self._manager = QueueManager(Queries(AsyncpgDriver(await asyncpg.connect(LIBPQ_URL))))
        self._manager.entrypoint("noop")(noop)
        await self.keep_working(self._manager.run(batch_size=BATCH))

    async def create_one(self, number: int, due: float) -> None:
        """Enqueue one job."""
        queries = await self._enqueuing()
        after = timedelta(seconds=due - time.time())
        await queries.enqueue("noop", b"%d" % number, execute_after=after)

    async def store(self, first: int, due: Sequence[float]) -> None:
        """Enqueue 1,000 in a statement."""
        queries = await self._enqueuing()
        for pairs in slices(first, due):
            now = time.time()
            await queries.enqueue(
                ["noop"] * len(pairs),
                [b"%d" % number for number, _ in pairs],
                [0] * len(pairs),
                [timedelta(seconds=moment - now) for _, moment in pairs],
            )

    async def left(self) -> int:
        """Count what is due and still in the queue: a job that is done is moved to a log."""
        queries = await self._enqueuing()
        rows = await queries.driver.fetch(
            "SELECT count(*) AS number FROM pgqueuer WHERE execute_after <= now()"
        )
        return int(rows[0]["number"])

    async def close(self) -> None:
        """Stop the worker."""
        await super().close()


if __name__ == "__main__":
    serve(PgQueuer)
