"""What a receiver's answer makes of the task."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import httpx

from job_scheduler import strict_json
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.exceptions import InvalidBody

BODY_MAX_BYTES = 64 * 1024
"""Bytes of a response's body that are read and kept; with more to come, the rest is left."""
RETRY_AFTER_MAX = 86_400.0
"""The longest time, in seconds, for which a receiver can put us off."""

NETWORK_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    OSError,  # broken TLS
)
"""What a connection that breaks off raises."""

_KEPT_HEADERS = (
    *("content-type", "content-encoding", "date", "etag", "location", "retry-after"),
    "x-request-id",
)
_HEADER_MAX_LENGTH = 1_000
_HEAD_LENGTH = 300
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TO_BE_REPEATED = frozenset({408, 425, 429})
_NOT_ON_ONE_LINE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as far as it is kept. `is_whole` tells whether its body is all there."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool

    @classmethod
    async def read(cls, response: httpx.Response) -> "Answer":
        """Read a response, up to the limit; what has come counts, if the connection breaks."""
        body, is_whole = bytearray(), False
        try:
            async for part in response.aiter_raw():
                body += part
                if len(body) > BODY_MAX_BYTES:
                    break
            else:
                is_whole = True
        except NETWORK_ERRORS:
            pass  # The status decides, and that is there.
        return cls(response.status_code, response.headers, bytes(body[:BODY_MAX_BYTES]), is_whole)

    @property
    def target(self) -> str | None:
        """Where the receiver redirects, if it does."""
        return self.headers.get("location") if self.status in _REDIRECTS else None

    def result(self, sent: object, now: datetime) -> dict[str, Any]:
        """Return the task's result.

        Raises:
            Fail: the receiver refuses what was `sent`, and will again.
            RetryLater: it may take it later.
        """
        if 200 <= self.status < 300:
            return self._result()
        reason = httpx.codes.get_reason_phrase(self.status)
        words = f"{sent} answered {self.status} {reason}".strip()
        if self.target is not None:
            words += " (set follow_redirects to go where it leads)"
        head = _NOT_ON_ONE_LINE.sub(" ", self._text() or "").strip()
        words += f": {head[:_HEAD_LENGTH]}" if head else ""
        if self.status < 500 and self.status not in _TO_BE_REPEATED:
            raise Fail(words)
        raise RetryLater(retry_after(self.headers.get("retry-after", ""), now), words)

    def _result(self) -> dict[str, Any]:
        headers = {
            name: self.headers[name][:_HEADER_MAX_LENGTH]
            for name in _KEPT_HEADERS
            if name in self.headers
        }
        result = {"status": self.status, "headers": headers, "body": self._value()}
        return result if self.is_whole else result | {"truncated": True}

    def _value(self) -> Any:
        """Return the body: JSON if it is declared as such and is whole, else text, or nothing."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media_type == "application/json" or media_type.endswith("+json")
        text = self._text()
        if text and is_json and self.is_whole:
            try:
                return strict_json.parse(self.body)
            except InvalidBody:
                pass  # It is text, then.
        return text

    def _text(self) -> str | None:
        # Nothing compressed was asked for, and no body may grow beyond its limit here.
        if not self.body or self.headers.get("content-encoding", "identity") != "identity":
            return None
        # NUL is more than a database takes in a text.
        return self.body.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds that a ``Retry-After`` (RFC 9110, section 10.2.3) asks for.

    None, where it asks for nothing, or nothing that can be understood: the task knows a delay.
    """
    if re.fullmatch("[0-9]+", text):
        seconds = float(text[:18])  # of a thousand digits, the first say enough
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(seconds, RETRY_AFTER_MAX) if seconds > 0 else None
