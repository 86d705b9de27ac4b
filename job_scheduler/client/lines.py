"""Tasks as lines of JSON (NDJSON): sent while they are made, and read as they come.

Never more than a piece of them is held, however many there are.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import IO, Any, cast

from job_scheduler.client.members import NewTask, as_json
from job_scheduler.client.shapes import Task

MEDIA_TYPE = "application/x-ndjson"

Line = NewTask | Task | Mapping[str, Any] | str | bytes
"""A task to be imported: a dict of its members, one that was exported, or its line of JSON."""
Source = Iterable[Line] | AsyncIterable[Line] | IO[str] | IO[bytes]
"""Tasks to be imported; an open file holds a line for each."""

_PIECE_BYTES = 64 * 1024


class Lines:
    """A body of lines, made of a source piece by piece as it is sent.

    A container, or a file that can be wound back, can be sent again from its beginning. An iterator
    cannot: once it has begun, it `is_spent`.
    """

    def __init__(self, source: Source) -> None:
        self._source: Any = source
        self._file = cast("IO[Any]", source) if hasattr(source, "read") else None
        self._start = 0
        self._has_begun = False
        self._is_lasting = not isinstance(source, Iterator | AsyncIterator)
        if self._file is not None:
            self._is_lasting = self._file.seekable()
            self._start = self._file.tell() if self._is_lasting else 0

    @property
    def is_spent(self) -> bool:
        """Tell whether it cannot be sent from its beginning any more."""
        return self._has_begun and not self._is_lasting

    def pieces(self) -> Iterator[bytes]:
        """Return the body.

        Raises:
            TypeError, ValueError: something in a task has no JSON form.
        """
        if self._has_begun and self._file is not None:
            self._file.seek(self._start)
        self._has_begun = True
        if self._file is not None:
            while piece := self._file.read(_PIECE_BYTES):
                yield _encoded(piece)
            return
        waiting = bytearray()
        for line in self._source:
            waiting += _written(line)
            if len(waiting) >= _PIECE_BYTES:
                yield bytes(waiting)
                waiting.clear()
        yield bytes(waiting)

    async def awaited_pieces(self) -> AsyncIterator[bytes]:
        """Return the body, also of a source that is awaited itself.

        Raises:
            TypeError, ValueError: something in a task has no JSON form.
        """
        if isinstance(self._source, AsyncIterable):
            self._has_begun = True
            async for line in self._source:
                yield _written(line)
        else:
            for piece in self.pieces():
                yield piece


class Cut:
    """Bytes that come in pieces, cut into lines; `rest` is the line that has not ended yet."""

    def __init__(self) -> None:
        self.rest = b""

    def ended(self, piece: bytes) -> list[bytes]:
        """Take a piece; return the lines that have ended with it."""
        *lines, self.rest = (self.rest + piece).split(b"\n")
        return lines


def _written(line: Line) -> bytes:
    if not isinstance(line, str | bytes):
        return as_json(line.raw if isinstance(line, Task) else line) + b"\n"
    content = _encoded(line)
    return content if content.endswith(b"\n") else content + b"\n"


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
