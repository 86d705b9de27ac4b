"""Request bodies: bounded, JSON, and parsed by the rules of ``strict_json``."""

from collections.abc import Callable, Coroutine
from email.message import Message as MimeHeaders
from functools import lru_cache
from typing import Any

from fastapi import Request, Response

from job_scheduler import strict_json
from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.exceptions import BodyTooLarge, UnsupportedMediaType
from job_scheduler.queries import StrictRoute

_DISCARD_MAX_BYTES = 64 * BODY_MAX_BYTES


class JsonRoute(StrictRoute):
    """A route whose body, if it has one, is read and parsed by this module's rules."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler behind the reading of the body."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            raw = await read_json(request, BODY_MAX_BYTES)
            document = strict_json.parse(raw) if raw else None
            return await handle(_ParsedRequest(request, raw, document))

        return handle_json


class _ParsedRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, raw: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = raw  # where its parent keeps a body that was read
        self._document = document

    async def json(self) -> Any:
        """Return the parsed document."""
        return self._document


async def read_json(request: Request, limit: int) -> bytes:
    """Return the body, which is declared to be JSON unless it is empty, as it came.

    Raises:
        UnsupportedMediaType: it is declared to be something else.
        BodyTooLarge: it is longer than `limit`. Its rest is read and forgotten first (within
            reason): most clients only look for an answer when they have sent everything.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > _DISCARD_MAX_BYTES:
            break
    if size > limit:
        raise BodyTooLarge(limit)
    raw = b"".join(chunks)
    if raw:
        _require_json(request.headers.get("content-type"))
    return raw


def declared_size(request: Request, limit: int) -> int:
    """Return how many bytes the body may have: what was declared, or else `limit`."""
    declared = request.headers.get("content-length", "")
    return min(int(declared), limit) if declared.isdecimal() else limit


def _require_json(content_type: str | None) -> None:
    if not _is_json(content_type or ""):
        raise UnsupportedMediaType(content_type)


@lru_cache(maxsize=64)  # everybody sends one of a few, and to take one apart takes long
def _is_json(content_type: str) -> bool:
    headers = MimeHeaders()
    headers["content-type"] = content_type
    kind = headers.get_content_type()
    charset = headers.get_content_charset("utf-8")
    is_json = kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
    return is_json and charset in ("utf-8", "utf8", "us-ascii")
