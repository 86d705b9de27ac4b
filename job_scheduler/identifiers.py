"""Identifiers: UUIDs as canonical lower-case text."""

import os
import uuid
from collections import deque
from datetime import datetime

_VERSION_4 = 0x4 << 76
_VERSION_7 = 0x7 << 76
_VARIANT = 0x2 << 62
# Never to be changed: a key that is repeated after an update must find its task.
_KEY_NAMESPACE = uuid.UUID("6f8c1b52-4d0e-4b57-9a3e-2c7d51e8f094")
_FETCHED_AT_ONCE = 256
# Random numbers of 16 bytes, each used once. Another process never shares them.
_spare: deque[bytes] = deque()
os.register_at_fork(after_in_child=_spare.clear)


def new_task_id(now: datetime) -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7) made at `now`.

    Its first 48 bits are Unix milliseconds, so ids made one after the other are neighbours in
    the index. Order by it means nothing more than that: clocks differ.
    """
    return _version_7(now, int.from_bytes(_random_bytes()[:10], "big"))


def new_claim_token(now: datetime) -> str:
    """Return the token of a claim made at `now`: also a UUIDv7, so that a task's attempts stand in
    the index in their order. 74 of its bits are random: nobody guesses it.
    """
    return new_task_id(now)


def least_claim_token(moment: datetime) -> str:
    """Return what is no more than the token of any claim made at `moment` or later."""
    return _version_7(moment, 0)


def task_id_of_key(key: str) -> str:
    """Return the id of the task that is made under an ``Idempotency-Key``, the same each time.

    It is a UUIDv5 (RFC 9562, section 5.5): the primary key alone then sees to it that one key
    makes one task, over all instances and restarts, with nothing else to be stored.
    """
    return str(uuid.uuid5(_KEY_NAMESPACE, key))


def task_id_in_batch(key: str, index: int) -> str:
    """Return the id of one of the tasks that are made together under an ``Idempotency-Key``.

    There is no blank in a key: so no key has the id of another key's batch.
    """
    return task_id_of_key(f"{key} {index}")


def new_token() -> str:
    """Return a random UUID (version 4): unguessable, used once."""
    value = int.from_bytes(_random_bytes(), "big") & ~(0xF << 76 | 0x3 << 62)
    return _as_text(value | _VERSION_4 | _VARIANT)


def parse_uuid(text: str) -> str | None:
    """Return `text` in canonical form when it is a UUID as RFC 9562 writes it, else None."""
    try:
        parsed = str(uuid.UUID(text))
    except ValueError:
        return None
    return parsed if parsed == text.lower() else None


def _version_7(moment: datetime, random: int) -> str:
    milliseconds = int(moment.timestamp() * 1000)
    value = (milliseconds & (1 << 48) - 1) << 80
    value |= _VERSION_7 | (random >> 62 & 0xFFF) << 64 | _VARIANT | random & (1 << 62) - 1
    return _as_text(value)


def _as_text(value: int) -> str:
    """Do what ``uuid.UUID`` would, which checks a number before it writes it."""
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _random_bytes() -> bytes:
    """Return 16 bytes fit for secrets, from a small supply.

    The system is asked for many at once: to ask lets another thread run meanwhile, which under
    load takes longer than all else that is done for an id.
    """
    try:
        return _spare.pop()
    except IndexError:
        block = os.urandom(16 * _FETCHED_AT_ONCE)
        first, *others = (block[at : at + 16] for at in range(0, len(block), 16))
        _spare.extend(others)
        return first
