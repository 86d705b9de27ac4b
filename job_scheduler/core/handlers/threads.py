"""The bounded pool of threads in which plain handlers run.

Unlike those of ThreadPoolExecutor, the threads are daemons that nobody joins: a handler that
hangs can hold up neither the shutdown nor the exit of the process.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from job_scheduler.core.outcomes import Outcome

_Job = tuple[Callable[[], Outcome], "asyncio.Future[Outcome]"]


class HandlerThreads:
    """Up to `size` threads, started as they are needed.

    Belongs to the event loop's thread; the dispatcher keeps the number of jobs within `size`.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._unfinished = 0
        self._threads = 0

    def submit(self, call: Callable[[], Outcome]) -> asyncio.Future[Outcome]:
        """Run `call`, which must not raise, in a thread; the future brings its outcome."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        context = contextvars.copy_context()
        self._jobs.put((lambda: context.run(call), outcome))
        self._unfinished += 1
        if self._unfinished > self._threads and self._threads < self._size:
            self._threads += 1
            name = f"handler-{self._threads}"
            threading.Thread(
                target=self._work, args=[asyncio.get_running_loop()], name=name, daemon=True
            ).start()
        return outcome

    def close(self) -> None:
        """Let each thread end after what it is at; wait for none."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            call, future = job
            outcome = call()
            try:
                loop.call_soon_threadsafe(self._finish, future, outcome)
            except RuntimeError:
                return  # The loop is closed: the service has stopped without this handler.

    def _finish(self, future: asyncio.Future[Any], outcome: Outcome) -> None:
        self._unfinished -= 1
        if not future.done():
            future.set_result(outcome)
