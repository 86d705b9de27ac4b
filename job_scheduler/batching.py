"""The micro-batcher: what arrives while one flush is under way goes together in the next.

It is the trick of a database's group commit: an idle batcher adds no delay, a busy one makes
each round trip serve many callers, and no timer has to be tuned.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from job_scheduler.exceptions import Overloaded, Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items and flushes them in order, one batch at a time.

    `flush` gets from 1 to `max_size` items and returns their results in the same order. When
    it raises ``Unavailable``, every caller of the batch gets that error; on any other error
    the items are flushed one by one, so that a bad one fails alone: a flush that raises must
    therefore have changed nothing.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        max_size: int = 500,
        max_waiting: int = 20_000,
    ) -> None:
        self._flush = flush
        self._max_size = max_size
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._flushing: asyncio.Task[None] | None = None

    def submit(self, item: T) -> asyncio.Future[R]:
        """Take `item` into the next batch; the future brings its result.

        Raises:
            Overloaded: `max_waiting` items wait already; this one was not taken.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, result))
        if self._flushing is None:
            # The task begins at the next turn of the loop, when all that this turn brings is in.
            self._flushing = loop.create_task(self._flush_all())
        return result

    async def drain(self) -> None:
        """Return when nothing waits and no flush is under way."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def _flush_all(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), self._max_size)
                await self._flush_batch([self._waiting.popleft() for _ in range(size)])
        finally:
            self._flushing = None

    async def _flush_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 (handed to the callers, or tried one by one)
            if len(batch) > 1 and not isinstance(error, Unavailable):
                for single in batch:
                    await self._flush_batch([single])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
