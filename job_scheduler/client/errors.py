"""What a client raises.

ApiError                    the service has refused, or could not do, what it was asked
├── NotFound                there is no such task
├── Conflict                the task's state does not allow it, or it has changed meanwhile
├── Invalid                 something in the request cannot be used: see `errors`
├── EventsMissed            changes may have been missed: it is time to read the list anew
└── ServiceUnavailable      nothing can be promised at the moment
    ├── Unreachable         nobody answers at the address
    └── CutOff              an answer has begun, and has not come to its end
NotEnded                    a task has not ended in time (a TimeoutError)
"""

import re
from collections.abc import Mapping, Sequence
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


class CutOff(ServiceUnavailable):
    """An answer has begun, and has not come to its end: what has come of it is not all."""


class EventsMissed(ApiError):
    """Changes may have been missed; what came of the tasks since, the list tells."""


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


def error_in(problem: Mapping[str, Any], status: int) -> ApiError:
    """Return what a problem document means (RFC 9457).

    Raises:
        TypeError, KeyError: it is none of the service's.
    """
    faults = [
        FieldError(str(each["location"]), str(each["field"]), str(each["detail"]))
        for each in problem.get("errors") or ()
    ]
    kind = _KINDS.get(status, ApiError)
    return kind(status, str(problem["error_code"]), str(problem["detail"]), faults)


def error_of(response: httpx.Response) -> ApiError:
    """Return what an answer that is no success means, a problem document or not."""
    try:
        return error_in(dict(response.json()), response.status_code)
    except (ValueError, TypeError, KeyError):
        kind = _KINDS.get(response.status_code, ApiError)
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
    return Unreachable(
        None,
        "UNREACHABLE",
        f"{address} cannot be reached ({_reason(error)}). Check the address, and that the service "
        "runs.",
    )


def cut_off(response: httpx.Response, number: int, error: httpx.RequestError | None) -> CutOff:
    """Return what it means that an answer has ended before its end, after `number` tasks."""
    reason = "in the middle of a line" if error is None else _reason(error)
    return CutOff(
        response.status_code,
        "ANSWER_CUT_OFF",
        f"{_address(response)} was cut off after {number} tasks ({reason}). They are not all: "
        "begin anew.",
    )


def boundless(response: httpx.Response) -> CutOff:
    """Return what it means that an answer does not tell where its end is."""
    return CutOff(
        response.status_code,
        "ANSWER_CUT_OFF",
        f"{_address(response)} answered in a way in which it cannot be seen whether all has come. "
        "Have what stands in between speak HTTP/1.1.",
    )


def events_missed() -> EventsMissed:
    """Return what it means that a stream could not go on where it was."""
    return EventsMissed(
        HTTPStatus.OK,
        "EVENTS_MISSED",
        "Changes may have been missed: they are noted for ten minutes after somebody has watched. "
        "Begin anew, then read the list.",
    )


def with_words(error: ApiError, words: str) -> ApiError:
    """Return an error that says something more."""
    detail = f"{error.detail} {words}"
    return type(error)(error.status, error.error_code, detail, error.errors)


def _reason(error: httpx.RequestError) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _address(response: httpx.Response) -> Any:
    return response.url.copy_with(query=None)
