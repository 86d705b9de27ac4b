"""Admission: how much that large requests need is given out at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from job_scheduler.exceptions import Overloaded


class Admission:
    """Room in memory for `max_bytes` of bodies; `turn` lets `at_once` of them be worked on.

    Whoever finds no room is refused at once. Whoever has room waits for its turn. A body that is
    not complete after `upload_seconds` is waited for no longer: a few callers could hold all room.
    """

    def __init__(self, at_once: int, max_bytes: int, upload_seconds: float) -> None:
        self.upload_seconds = upload_seconds
        self.turn = asyncio.Semaphore(at_once)
        self._free = max_bytes

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Take room for `size` bytes.

        Raises:
            Overloaded: there is not so much left.
        """
        if size > self._free:
            raise Overloaded
        self._free -= size
        try:
            yield
        finally:
            self._free += size
