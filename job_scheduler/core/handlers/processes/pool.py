"""Worker processes for plain handlers: kept for the next call, replaced when they have ended."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from job_scheduler.constants import RESULT_MAX_BYTES
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.processes.frames import Raised, Returned, pack
from job_scheduler.core.handlers.processes.worker import Worker
from job_scheduler.core.handlers.raised import RetryLater

_LEAVE_SECONDS = 1.0
"""How long a worker that is needed no more may take to end by itself."""


class Workers:
    """Up to `size` worker processes at work, started as they are needed.

    Each imports `modules`, and may take `memory_bytes` of address space, if that is limited. After
    `max_calls` calls, or `idle_seconds` without one, a worker is ended. Of a result that has more
    than `max_result_bytes` the beginning is kept.
    """

    def __init__(
        self,
        size: int,
        modules: Sequence[str],
        memory_bytes: int | None = None,
        log_level: str = "INFO",
        max_calls: int = 100,
        idle_seconds: float = 60.0,
        max_result_bytes: int = RESULT_MAX_BYTES,
    ) -> None:
        self._turns = asyncio.Semaphore(size)
        self._options = (memory_bytes, log_level, modules, max_result_bytes)
        self._max_calls = max_calls
        self._idle_seconds = idle_seconds
        self._at_work: set[Worker] = set()
        self._idle: dict[Worker, asyncio.TimerHandle] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        context: RunContext,
        context_name: str | None = None,
        no_retry_for: tuple[type[BaseException], ...] = (),
    ) -> Any:
        """Call a plain function in a worker, and return what it returned, as a JSON value.

        `context_name` is the parameter that gets the ``RunContext``. An exception of a type in
        `no_retry_for` is final. When this call is cancelled, the worker is killed, with all that
        the function has started.

        Raises:
            Fail: the function has failed for good, or cannot be run in a worker.
            RetryLater: it has failed, or its worker has ended under it.
        """
        work = pack(function, arguments, context_name, no_retry_for)
        async with self._turns:
            worker = await self._idle_or_new()
            self._at_work.add(worker)
            try:
                said = await worker.call(work, context)
            except BaseException:
                await worker.end()
                raise
            finally:
                self._at_work.discard(worker)
            self._put_back(worker, said)
        if isinstance(said, Raised):
            raise said.error()
        return said.result

    async def close(self) -> None:
        """End all workers; a call that is under way raises ``RetryLater``."""
        self._closed = True
        for worker, expiry in list(self._idle.items()):
            expiry.cancel()
            self._retire(worker)
        at_work = [worker.end(_LEAVE_SECONDS) for worker in self._at_work]
        await asyncio.gather(*at_work, *self._leaving)

    async def _idle_or_new(self) -> Worker:
        while self._idle:
            worker, expiry = self._idle.popitem()
            expiry.cancel()
            if worker.is_alive:
                return worker
            await worker.end()
        try:
            worker = await Worker.start(*self._options)
        except OSError as error:
            raise RetryLater(
                None, f"no worker process could be started: {error.strerror}"
            ) from error
        if self._closed:
            await worker.end()
            raise RetryLater(None, "the service is stopping")
        return worker

    def _put_back(self, worker: Worker, said: Returned | Raised) -> None:
        exhausted = isinstance(said, Raised) and said.exhausted
        if exhausted or worker.calls >= self._max_calls:
            self._retire(worker)
        else:
            loop = asyncio.get_running_loop()
            self._idle[worker] = loop.call_later(self._idle_seconds, self._retire, worker)

    def _retire(self, worker: Worker) -> None:
        self._idle.pop(worker, None)
        leaving = asyncio.ensure_future(worker.end(_LEAVE_SECONDS, strays=False))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
