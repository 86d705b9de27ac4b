"""The ``If-Match`` of a request: the versions of which the present one is to be (RFC 9110)."""

import re
from typing import Any

from fastapi import Request

from job_scheduler.exceptions import InvalidField

_HEADER = "If-Match"
# RFC 9110, sections 8.8.3 and 5.6.1: an opaque tag may hold commas, a list may have empty members.
_TAG = r'(?:W/)?"[!#-~\x80-\xff]*"'
_LIST = rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*"

_BAD_VERSION = InvalidField(
    "header",
    _HEADER,
    f"{_HEADER} holds what is no entity tag, or none. Send the task's ETag as it came, with its "
    "double quotes; several with commas between them; or * for any version.",
)


def versions_of(request: Request) -> frozenset[str] | None:
    """Return the entity tags that a request names, as they stand there; None: any will do.

    Raises:
        InvalidField: they are no entity tags, or there are none.
    """
    lines = request.headers.getlist(_HEADER)
    if not lines:
        return None
    value = ", ".join(lines).strip(" \t")
    if value == "*":
        return None
    if not re.fullmatch(_LIST, value):
        raise _BAD_VERSION
    return frozenset(re.findall(_TAG, value))


DOCUMENTED: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "required": False,
            "description": "The `ETag` of `GET /tasks/{task_id}`, so that nobody's change in the "
            "meantime is lost: then this answers 412.",
            "schema": {"title": _HEADER, "type": "string", "pattern": rf"^(?:\*|{_LIST})$"},
        }
    ]
}
"""The header in the OpenAPI document: the ``openapi_extra`` of a route that takes it."""
