"""Lines of JSON (NDJSON): read from a body as it comes, however many there are."""

import asyncio
from collections.abc import AsyncIterator

from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.exceptions import BodyTooSlow, Stopping

TOO_LONG = None
"""In place of a line that is longer than ``BODY_MAX_BYTES``."""


async def lines_of(
    chunks: AsyncIterator[bytes], patience: float, stopping: asyncio.Event
) -> AsyncIterator[tuple[int, bytes | None]]:
    """Read lines, each with its number from 1 on; blank ones are left out.

    No more than one line, and one chunk, is held.

    Raises:
        BodyTooSlow: nothing has come for `patience` seconds.
        Stopping: nothing had come when the service began to stop.
    """
    number = 0
    begun = bytearray()
    is_too_long = False
    async for chunk in _patiently(chunks, patience, stopping):
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            number += 1
            line = bytes(begun) + end
            begun.clear()
            if is_too_long or len(line) > BODY_MAX_BYTES:
                is_too_long = False
                yield number, TOO_LONG
            elif line.strip():
                yield number, line
        if not is_too_long:
            begun += rest
            if len(begun) > BODY_MAX_BYTES:
                is_too_long = True
                begun.clear()
    if is_too_long:
        yield number + 1, TOO_LONG
    elif begun.strip():
        yield number + 1, bytes(begun)


async def _patiently(
    chunks: AsyncIterator[bytes], patience: float, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    while True:
        coming = asyncio.ensure_future(anext(chunks, None))
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait((coming, stopped), timeout=patience, return_when=first)
            if not coming.done():
                raise Stopping if stopped.done() else BodyTooSlow(patience)
            chunk = coming.result()
        finally:
            coming.cancel()
            stopped.cancel()
        if chunk is None:
            return
        yield chunk
