"""Signals to stop, heard as they arrive: uvicorn runs the lifespan's end only seconds later."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(heard: Callable[[], None]) -> Iterator[None]:
    """Call `heard` on the running loop at each SIGTERM and SIGINT inside the block.

    Whoever handled them before (the server) still gets them. Signals that nobody handled, and
    those of a process whose main thread is not this one, are left alone.
    """
    loop = asyncio.get_running_loop()
    servers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        servers = {number: handler for number, handler in handlers.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(heard)
        servers[signal.Signals(number)](number, frame)

    for number in servers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, server in servers.items():
            signal.signal(number, server)
