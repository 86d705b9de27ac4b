"""Admission: how much that large requests need is given out at a time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

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


class Turns:
    """Lets one piece of work be done at a time; up to `waiting` others wait for their turn."""

    def __init__(self, waiting: int) -> None:
        self._most = 1 + waiting
        self._number = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn.

        Raises:
            Overloaded: too many wait already.
        """
        if self._number >= self._most:
            raise Overloaded
        self._number += 1
        try:
            async with self._turn:
                yield
        finally:
            self._number -= 1
