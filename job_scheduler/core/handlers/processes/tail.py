"""The end of what a program writes."""

import asyncio
import os
from typing import Self

_CHUNK_BYTES = 64 * 1024


class Tail:
    """A pipe of which only the last `size` bytes are kept, however much is written into it.

    The program gets `write_end`, which is then closed here; `complete` is done when everyone who
    had it has closed it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()
        self.truncated = False
        self._loop = asyncio.get_running_loop()
        self.complete: asyncio.Future[None] = self._loop.create_future()
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self._read_end = os.fdopen(read_end, "rb", buffering=0)
        self.write_end = os.fdopen(write_end, "wb", buffering=0)
        self._loop.add_reader(read_end, self._take)

    def __enter__(self) -> Self:
        """Return itself, to be closed at the block's end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both ends."""
        self._loop.remove_reader(self._read_end.fileno())
        self._read_end.close()
        self.write_end.close()

    def text(self) -> str:
        """Return what is kept, as text that any database takes: what is none becomes U+FFFD."""
        return self._kept.decode("utf-8", "replace").replace("\0", "\ufffd")

    def _take(self) -> None:
        chunk = os.read(self._read_end.fileno(), _CHUNK_BYTES)
        if not chunk:
            self._loop.remove_reader(self._read_end.fileno())
            self.complete.set_result(None)
            return
        self._kept += chunk
        if len(self._kept) > self._size:
            del self._kept[: -self._size]
            self.truncated = True
