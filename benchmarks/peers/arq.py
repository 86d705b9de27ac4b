"""arq, on Redis: deferred jobs."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.peers.kit import REDIS_URL, Peer, ran, serve

MAX_JOBS = 100
CALLERS = 32


async def noop(_context: dict[str, Any], number: int) -> None:
    """Note that it has started."""
    ran(number)


class Arq(Peer):
    """One worker; jobs are enqueued one by one: there is no call for many."""

    def __init__(self) -> None:
        self._pool: Any = None

    async def _connected(self) -> Any:
        if self._pool is None:
            self._pool = await create_pool(RedisSettings.from_dsn(REDIS_URL))
        return self._pool

    async def work(self) -> None:
        """One worker, with the polling of its defaults (0.5 s)."""
        worker = Worker(
            [func(noop, name="noop")],
            redis_settings=RedisSettings.from_dsn(REDIS_URL),
            max_jobs=MAX_JOBS,
            handle_signals=False,
        )
        await self.keep_working(worker.async_run())

    async def create_one(self, number: int, due: float) -> None:
        """Enqueue one job."""
        pool = await self._connected()
        await pool.enqueue_job("noop", number, _defer_until=datetime.fromtimestamp(due, UTC))

    async def store(self, first: int, due: Sequence[float]) -> None:
        """Enqueue from a few callers at once."""
        waiting = enumerate(due, first)

        async def caller() -> None:
            for number, moment in waiting:
                await self.create_one(number, moment)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def left(self) -> int:
        """Count what is still in the queue: a job is taken out when it has ended."""
        return int(await (await self._connected()).zcard("arq:queue"))

    async def close(self) -> None:
        """Stop the worker."""
        await super().close()


if __name__ == "__main__":
    serve(Arq)
