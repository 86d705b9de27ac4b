"""``WEBHOOK_SECRET``: the keys that webhooks are signed with, as a person writes them."""

import re
from base64 import b64decode

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64
_FORMS = (
    f"must be one or several keys, by comma, each {_PREFIX} and then {_MIN_BYTES} to {_MAX_BYTES} "
    "random bytes in base64"
)


def parse_webhook_secret(text: str) -> tuple[bytes, ...]:
    """Return the keys, in their order.

    Raises:
        ValueError: one of them is none; the message tells which, and never shows it.
    """
    written = [part for part in re.split(r"[\s,]+", text) if part]
    return tuple(_key(number, part) for number, part in enumerate(written, 1))


def _key(number: int, text: str) -> bytes:
    try:
        key = b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(_PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(f"{_FORMS}; number {number} is none")
    return key
