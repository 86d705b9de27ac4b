"""What a client raises.

ApiError                    the service has refused, or could not do, what it was asked
├── NotFound                there is no such task
├── Conflict                the task's state does not allow it, or it has changed meanwhile
├── Invalid                 something in the request cannot be used: see `errors`
└── ServiceUnavailable      nothing can be promised at the moment
    └── Unreachable         nobody answers at the address
NotEnded                    a task has not ended in time (a TimeoutError)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from job_scheduler.client.shapes import Task


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field, and what to write instead.

    `location` is body, query, path or header; dots in `field` lead into objects.
    """

    location: str
    field: str
    detail: str


class ApiError(Exception):
    """The service has refused, or could not do, what it was asked.

    `status` is that of HTTP (None: there was no answer), `error_code` is stable and meant for
    programs, `detail` says to people what to do, and `errors` names the fields that are wrong.
    """

    def __init__(
        self,
        status: int | None,
        error_code: str,
        detail: str,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(status, error_code, detail, errors)
        self.status = status
        self.error_code = error_code
        self.detail = detail
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return self.detail


class NotFound(ApiError):
    """There is no such task."""


class Conflict(ApiError):
    """The task's state does not allow it, or the task has changed since it was read."""


class Invalid(ApiError):
    """Something in the request cannot be used; `errors` names each field."""


class ServiceUnavailable(ApiError):
    """Nothing can be promised at the moment; try again later."""


class Unreachable(ServiceUnavailable):
    """Nobody answers at the address."""


class NotEnded(TimeoutError):
    """A task has not ended in time; `task` is how it stood last."""

    def __init__(self, task: Task) -> None:
        super().__init__(f"Task {task.task_id} has not ended in time: it is {task.status}.")
        self.task = task


_KINDS: dict[int, type[ApiError]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.REQUEST_TIMEOUT: Invalid,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.PRECONDITION_FAILED: Conflict,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Invalid,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    # A proxy in front of it says the first or the last.
    HTTPStatus.BAD_GATEWAY: ServiceUnavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: ServiceUnavailable,
    HTTPStatus.GATEWAY_TIMEOUT: ServiceUnavailable,
}


def error_of(response: httpx.Response) -> ApiError:
    """Return what an answer that is no success means, a problem document or not (RFC 9457)."""
    kind = _KINDS.get(response.status_code, ApiError)
    try:
        problem = dict(response.json())
        faults = [
            FieldError(str(each["location"]), str(each["field"]), str(each["detail"]))
            for each in problem.get("errors") or ()
        ]
        return kind(
            response.status_code, str(problem["error_code"]), str(problem["detail"]), faults
        )
    except (ValueError, TypeError, KeyError):
        return kind(
            response.status_code,
            f"HTTP_{response.status_code}",
            f"{_address(response)} answered {response.status_code} {response.reason_phrase}, "
            "and not as the service does. Check the address, and what stands in between.",
        )


def unreadable(response: httpx.Response) -> ApiError:
    """Return what an answer means that is a success, but none of the service's."""
    return ApiError(
        response.status_code,
        "ANSWER_UNREADABLE",
        f"{_address(response)} answered something else than the service does. Check the address.",
    )


def unreachable(address: str, error: httpx.RequestError) -> Unreachable:
    """Return what it means that there was no answer."""
    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    return Unreachable(
        None,
        "UNREACHABLE",
        f"{address} cannot be reached ({reason}). Check the address, and that the service runs.",
    )


def _address(response: httpx.Response) -> Any:
    return response.url.copy_with(query=None)
