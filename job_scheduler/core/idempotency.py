"""The ``Idempotency-Key`` of a request (draft-ietf-httpapi-idempotency-key-header)."""

import re
from datetime import datetime
from typing import Any

from fastapi import Request

from job_scheduler.core.schemas import TaskCreate
from job_scheduler.exceptions import (
    IdempotencyKeyReused,
    InvalidField,
    JobSchedulerError,
    Refusal,
    UniqueKeyTaken,
)
from job_scheduler.identifiers import new_task_id, task_id_in_batch

_HEADER = "Idempotency-Key"
_MAX_LENGTH = 255

# The draft's form is a string of RFC 8941, section 3.3.3, in which \" and \\ stand for " and \;
# here without blanks. What everyone sends is the key as it is: a quote does not begin it.
_BARE = rf"[!#-~][!-~]{{0,{_MAX_LENGTH - 1}}}"
_QUOTED = rf'"((?:[!#-\[\]-~]|\\["\\]){{1,{_MAX_LENGTH}}})"'
_FORM = re.compile(f"{_QUOTED}|{_BARE}")


def parse_key(value: str) -> str:
    """Return the key that a header's value holds; `"a"` and `a` are the same key.

    Raises:
        InvalidField: it is neither of the two forms.
    """
    found = _FORM.fullmatch(value)
    if found is None:
        raise InvalidField(
            "header",
            _HEADER,
            f"{_HEADER} must be 1 to {_MAX_LENGTH} visible ASCII characters without blanks, "
            "such as a new UUID. They may stand between double quotes.",
        )
    quoted: str | None = found[1]
    return value if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def key_of(request: Request) -> str | None:
    """Return the key of a request, if it has one.

    Not a parameter of the routes, whose handling by the framework would take a twentieth of the
    time of each request: those that use it have ``DOCUMENTED`` instead.

    Raises:
        InvalidField: it is given more than once, or is no key.
    """
    values = request.headers.getlist(_HEADER)
    if len(values) > 1:
        raise InvalidField(
            "header", _HEADER, f"{_HEADER} is given {len(values)} times. Keep one of them."
        )
    # Blanks around a value are no part of it (RFC 9110, section 5.5); not every server takes
    # them away.
    return parse_key(values[0].strip(" \t")) if values else None


def id_of(wanted: TaskCreate, key: str | None, place: int, now: datetime) -> str:
    """Return the id of one of many tasks: its own, or that of its `place` under the key, or a new
    one.
    """
    if wanted.task_id is not None:
        return wanted.task_id
    return new_task_id(now) if key is None else task_id_in_batch(key, place)


def as_told(refusal: Refusal, key: str | None) -> JobSchedulerError:
    """Return a refusal as whoever sent a request with this key, or none, is told of it."""
    if key is None or isinstance(refusal, UniqueKeyTaken | InvalidField):
        return refusal
    return IdempotencyKeyReused(key)


DOCUMENTED: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "required": False,
            "description": "A key of your choice, new for each task or batch. Repeating the same "
            "request with the same key then yields the same tasks, once; with another body it is "
            "refused with 422. It holds for as long as the tasks exist. Instead of `task_id`.",
            "schema": {
                "title": _HEADER,
                "type": "string",
                "pattern": f"^(?:{_QUOTED}|{_BARE})$",
                "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
            },
        }
    ]
}
"""The key in the OpenAPI document: the ``openapi_extra`` of a route that takes it."""
