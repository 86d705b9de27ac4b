"""Lines of JSON (NDJSON): read from a body as it comes, however many there are."""

import asyncio
from collections.abc import AsyncIterator

from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.exceptions import BodyTooSlow

TOO_LONG = None
"""In place of a line that is longer than ``BODY_MAX_BYTES``."""


async def lines_of(
    chunks: AsyncIterator[bytes], patience: float
) -> AsyncIterator[tuple[int, bytes | None]]:
    """Read lines, each with its number from 1 on; blank ones are left out.

    No more than one line, and one chunk, is held.

    Raises:
        BodyTooSlow: nothing has come for `patience` seconds.
    """
    number = 0
    begun = bytearray()
    is_too_long = False
    async for chunk in _patiently(chunks, patience):
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


async def _patiently(chunks: AsyncIterator[bytes], patience: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(patience):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BodyTooSlow(patience) from None
        yield chunk
