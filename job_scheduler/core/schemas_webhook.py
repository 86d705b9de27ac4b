"""The shape of a webhook: the HTTP request that a task is to make."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from job_scheduler.core.fields import NullMeans
from job_scheduler.urls import URL_MAX_LENGTH, URL_PATTERN, parse_url

HEADERS_MAX = 50
"""Header fields that a webhook may add, at most."""

RESERVED_HEADERS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "te", "trailer", "expect", "upgrade"),
        *("connection", "keep-alive", "proxy-connection", "accept-encoding"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    }
)
RESERVED_PREFIX = "job-scheduler-"
"""What the service itself says of the task."""

# RFC 9110, sections 5.1 and 5.5, in ASCII.
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_FIELD_VALUE = re.compile(r"(?:[!-~](?:[\t -~]{0,8190}[!-~])?)?")


_HEADERS_SCHEMA = {
    "type": "object",
    "maxProperties": HEADERS_MAX,
    "propertyNames": {"pattern": f"^{_FIELD_NAME.pattern}$"},
    "additionalProperties": {"type": "string", "pattern": f"^{_FIELD_VALUE.pattern}$"},
}


def _url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise PydanticCustomError("webhook_url", "{words}", {"words": str(error)}) from None
    return text


def _headers(headers: dict[str, str]) -> dict[str, str]:
    problem = _problem_of(headers)
    if problem is not None:
        raise PydanticCustomError("webhook_headers", "{words}", {"words": problem})
    return headers


def _problem_of(headers: dict[str, str]) -> str | None:
    if len(headers) > HEADERS_MAX:
        return f"Must hold at most {HEADERS_MAX} header fields."
    seen: set[str] = set()
    for name, value in headers.items():
        small = name.lower()
        if not _FIELD_NAME.fullmatch(name):
            return f"{name!r} is no name of a header field: use letters, digits and hyphens."
        if small in RESERVED_HEADERS or small.startswith(RESERVED_PREFIX):
            return f"{name} is set by the service itself. Leave it out."
        if small in seen:
            return f"{name} stands here twice. Keep one of them."
        if not _FIELD_VALUE.fullmatch(value):
            return (
                f"{name}: a value must be ASCII without line breaks, not begin or end with white "
                "space, and have at most 8192 characters."
            )
        seen.add(small)
    return None


class Hook(BaseModel):
    """An HTTP request that tells how a task has ended."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://hooks.example.com/nightly",
                    "headers": {"Authorization": "Bearer 8d1f"},
                }
            ]
        },
    )

    url: Annotated[
        str,
        AfterValidator(_url),
        Field(
            description="Where to send it: http or https, without user name and password. Inside "
            "addresses (loopback, private and the like) are refused unless WEBHOOK_ALLOW opens "
            "them.",
            examples=["https://hooks.example.com/nightly"],
            json_schema_extra={
                "format": "uri",
                "maxLength": URL_MAX_LENGTH,
                "pattern": URL_PATTERN,
            },
        ),
    ]
    method: Annotated[
        Literal["POST", "GET", "PUT", "PATCH", "DELETE", "HEAD"], NullMeans("POST")
    ] = "POST"
    headers: Annotated[
        dict[str, str],
        AfterValidator(_headers),
        WithJsonSchema({"anyOf": [_HEADERS_SCHEMA, {"type": "null"}]}),
        NullMeans({}),
        Field(
            default_factory=dict,
            description="Header fields to add. Those that the service sets itself are refused: "
            "Host, Content-Length, webhook-id, Job-Scheduler-Task-Id and the like.",
            examples=[{"Authorization": "Bearer 8d1f"}],
        ),
    ]
    follow_redirects: Annotated[
        bool,
        Field(
            strict=True,
            description="Whether to go on to where a receiver redirects, five times at most. "
            "Otherwise a redirect is a failure.",
        ),
        NullMeans(False),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, value: Any) -> Any:
        if not isinstance(value, dict | cls):
            raise PydanticCustomError("webhook", "Must be a JSON object, with a url at least.")
        return value


class Webhook(Hook):
    """An HTTP request that the service sends when the task is due."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://hooks.example.com/nightly",
                    "headers": {"Authorization": "Bearer 8d1f"},
                    "body": {"report": "sales", "hours": 24},
                }
            ]
        },
    )

    body: Annotated[
        Any,
        Field(
            description="Sent as JSON. Text is sent as it is where you set a Content-Type of your "
            "own. Left out or null: there is no body.",
            examples=[{"report": "sales", "hours": 24}],
        ),
    ] = None
