"""Bounded pools of threads for calls that block.

Unlike those of ThreadPoolExecutor, the threads are daemons that the interpreter does not join:
a handler that hangs, or a database that never answers, cannot hold up the exit of the process.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class DaemonThreads:
    """Up to `size` threads, started as they are needed; calls beyond that wait their turn."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._unfinished = 0
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """Run `call` in a thread; the future, of the running loop, brings what came of it.

        Cancelling the future leaves the call, once begun, to itself.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()
        self._jobs.put((lambda: context.run(call), future, loop))
        self._unfinished += 1
        if self._unfinished > len(self._threads) and len(self._threads) < self._size:
            name = f"{self._name}-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, patience: float = 0.0) -> None:
        """Let each thread end after what it is at; wait up to `patience` seconds for them all."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, future, loop = job
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 (handed to whoever waits for it)
                error = raised
            try:
                loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:
                return  # The loop is closed: nobody waits any more.

    def _finish(
        self, future: "asyncio.Future[Any]", result: object, error: BaseException | None
    ) -> None:
        self._unfinished -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
