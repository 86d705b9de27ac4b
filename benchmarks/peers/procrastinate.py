"""Procrastinate, on PostgreSQL: its asynchronous worker, deferred jobs."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from procrastinate import App, PsycopgConnector

from benchmarks.peers.kit import LIBPQ_URL, Peer, ran, serve, slices

CONCURRENCY = 16
STORING = 16


async def noop(number: int) -> None:
    """Note that it has started."""
    ran(number)


class Procrastinate(Peer):
    """Jobs of one instant are stored in batches, others one by one: its call takes one instant."""

    def __init__(self) -> None:
        self._app = App(connector=PsycopgConnector(conninfo=LIBPQ_URL, min_size=4, max_size=34))
        self._task = self._app.task(noop, name="noop")
        self._open = False

    async def _opened(self) -> App:
        if not self._open:
            await self._app.open_async()
            self._open = True
        return self._app

    async def setup(self) -> None:
        """Its own schema."""
        await (await self._opened()).schema_manager.apply_schema_async()

    async def work(self) -> None:
        """One worker, with the polling of its defaults (5 s)."""
        app = await self._opened()
        await self.keep_working(
            app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
        )

    async def create_one(self, number: int, due: float) -> None:
        """Defer one job."""
        await self._opened()
        when = datetime.fromtimestamp(due, UTC)
        await self._task.configure(schedule_at=when).defer_async(number=number)

    async def store(self, first: int, due: Sequence[float]) -> None:
        """Defer many jobs."""
        await self._opened()
        by_instant: dict[float, list[int]] = defaultdict(list)
        for number, moment in enumerate(due, first):
            by_instant[moment].append(number)
        waiting = iter(by_instant.items())

        async def caller() -> None:
            for moment, numbers in waiting:
                deferrer = self._task.configure(schedule_at=datetime.fromtimestamp(moment, UTC))
                for pairs in slices(0, numbers):
                    await deferrer.batch_defer_async(*({"number": number} for _, number in pairs))

        await asyncio.gather(*(caller() for _ in range(STORING)))

    async def left(self) -> int:
        """Count what is due and neither succeeded nor failed."""
        rows = await self._app.connector.execute_query_all_async(
            "SELECT count(*) AS number FROM procrastinate_jobs "
            "WHERE status IN ('todo', 'doing') AND scheduled_at <= now()"
        )
        return int(rows[0]["number"])

    async def close(self) -> None:
        """Stop the worker."""
        await super().close()
        if self._open:
            await self._app.close_async()


if __name__ == "__main__":
    serve(Procrastinate)
