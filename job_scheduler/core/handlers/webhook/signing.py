"""Signatures by the scheme of Standard Webhooks (https://www.standardwebhooks.com)."""

import hmac
from base64 import b64encode
from collections.abc import Sequence


def signature(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header webhook-signature: one signature by each key.

    While a key is replaced, receivers that know only the old one, or only the new one, find theirs.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join("v1," + b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
