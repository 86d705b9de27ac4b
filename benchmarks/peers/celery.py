"""Celery, on Redis: tasks with an ETA, a prefork worker of two processes."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from benchmarks.peers.celery_app import app, noop
from benchmarks.peers.kit import Answer, Child, Peer, serve

PROCESSES = 2


class Celery(Peer):
    """Tasks are sent one by one; a result in the backend says that one has ended."""

    threads = True

    def __init__(self) -> None:
        self._child: Child | None = None

    async def work(self) -> Answer:
        """Start a worker, and wait until it takes messages."""
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_app", "worker"]
        command += ["--concurrency", str(PROCESSES), "--loglevel", "INFO"]
        self._child = Child([*command, "--without-gossip", "--without-mingle"], "celery")
        await self._child.until(lambda log: " ready." in log)
        return {"pids": [self._child.pid]}

    async def create_one(self, number: int, due: float) -> None:
        """Send one."""
        noop.apply_async((number,), eta=datetime.fromtimestamp(due, UTC))

    async def store(self, first: int, due: Sequence[float]) -> None:
        """Send one by one, over one connection."""
        with app.producer_pool.acquire(block=True) as producer:
            for number, moment in enumerate(due, first):
                when = datetime.fromtimestamp(moment, UTC)
                noop.apply_async((number,), eta=when, producer=producer)

    async def left(self) -> int:
        """Count what the worker has not acknowledged, or not even taken."""
        client = app.backend.client
        return int(client.hlen("unacked")) + int(client.llen("celery"))

    async def close(self) -> None:
        """Stop the worker."""
        if self._child is not None:
            self._child.stop()


if __name__ == "__main__":
    serve(Celery)
