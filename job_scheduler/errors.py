"""Every error as a problem document (RFC 9457), and the one place of HTTP status codes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from job_scheduler import exceptions as domain
from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.core.fields import EXAMPLE_ID, INSTANT_REMEDY, REMEDIES
from job_scheduler.core.schemas_problem import Problem
from job_scheduler.strict_json import UnusableJson

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

_STATUS: dict[type[domain.JobSchedulerError], HTTPStatus] = {
    domain.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    domain.InvalidBody: HTTPStatus.BAD_REQUEST,
    UnusableJson: HTTPStatus.UNPROCESSABLE_ENTITY,
    domain.BodyTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    domain.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    domain.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    domain.TaskNotFound: HTTPStatus.NOT_FOUND,
    domain.WrongState: HTTPStatus.CONFLICT,
    domain.TaskConflict: HTTPStatus.CONFLICT,
    domain.NothingHeld: HTTPStatus.CONFLICT,
    domain.TaskChangedMeanwhile: HTTPStatus.PRECONDITION_FAILED,
    domain.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    domain.JobSchedulerError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_FRAMEWORK_CODES = {404: "ROUTE_404", 405: "METHOD_405"}
_FRAMEWORK_DETAILS = {
    404: "There is nothing at this address. GET /docs shows what there is.",
    405: "This address does not take that method; the Allow header names those it takes.",
}

_DESCRIPTIONS = {
    400: "The body is not JSON (`BODY_400`).",
    404: "There is no such task (`TASK_404`).",
    408: "The body, or the next part of an import, took too long to arrive (`BODY_408`).",
    409: "The present state does not allow it (`TASK_CREATE_409`, `TASK_DELETE_409`, "
    "`TASK_CANCEL_409`, `TASK_RETRY_409`, `TASK_CHANGE_409`, `TASK_PAUSE_409`, "
    "`TASK_RESUME_409`, `TASK_RUN_409`, `TASK_UNIQUE_409`, `RECOVERY_409`).",
    412: "It is not any more what `If-Match` says (`TASK_412`).",
    413: "The body is too large (`BODY_413`).",
    415: "The body is not declared as JSON (`BODY_415`).",
    422: "A value cannot be used; `errors` names each field (`VALIDATION_422`, `BODY_422`, "
    "`TASK_NAME_422`, `PAYLOAD_422`, `IDEMPOTENCY_422`).",
    500: "Something went wrong on our side (`TASK_CREATE_500`, `TASK_DELETE_500`, "
    "`INTERNAL_500`). Nothing was changed; of an import, what the answer says.",
    503: "Nothing can be promised at the moment (`DATABASE_503`, `OVERLOADED_503`, "
    "`UNAVAILABLE_503`): repeat the request after `Retry-After` seconds. `DATABASE_503_UNKNOWN`: "
    "it may have been done; repeat it with the same `Idempotency-Key` or `task_id`.",
}


_EXAMPLES: list[domain.JobSchedulerError] = [
    domain.InvalidBody("The body is not valid JSON: Expecting value at line 1, column 10."),
    domain.TaskNotFound(EXAMPLE_ID),
    domain.BodyTooSlow(60.0),
    domain.BodyTooLarge(BODY_MAX_BYTES),
    domain.UnsupportedMediaType("text/plain"),
    domain.InvalidField("body", "run_at", f"Not an ISO 8601 date and time. {INSTANT_REMEDY}"),
    domain.JobSchedulerError("Something went wrong on our side; the service's log says what."),
    domain.DatabaseUnavailable(),
]
"""An error of each status, where a route has no better one."""


def problems(*errors: int | domain.JobSchedulerError) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documentation of a route's errors, for its ``responses``.

    Each is given as its status, or as an example of the route's own.
    """
    usual = {_status(error): error for error in _EXAMPLES}
    chosen = [usual[error] if isinstance(error, int) else error for error in errors]
    return {
        (status := _status(error)): {
            "description": _DESCRIPTIONS[status],
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _document(status, error.error_code, str(error), _fields(error)),
                }
            },
        }
        for error in chosen
    }


def problem_of(error: domain.JobSchedulerError) -> dict[str, Any]:
    """Return an error as a problem document, to be part of an answer."""
    return _document(_status(error), error.error_code, str(error), _fields(error))


def problem(
    status: int,
    error_code: str,
    detail: str,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document as a response."""
    content = _document(status, error_code, detail, errors)
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)


def _document(
    status: int, error_code: str, detail: str, errors: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "error_code": error_code,
    }
    if errors:
        content["errors"] = list(errors)
    return content


def _status(error: domain.JobSchedulerError) -> int:
    return next(int(_STATUS[kind]) for kind in type(error).__mro__ if kind in _STATUS)


def _fields(error: domain.JobSchedulerError) -> list[dict[str, str]]:
    return [asdict(fault) for fault in error.faults]


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with a problem document."""
    app.exception_handler(domain.JobSchedulerError)(_domain_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(ClientDisconnect)(_disconnect)
    app.exception_handler(Exception)(_unexpected_error)
    app.add_middleware(ReadableStartFailure, app=app)


async def _domain_error(_: Request, error: domain.JobSchedulerError) -> Response:
    headers = {}
    if isinstance(error, domain.Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return problem(_status(error), error.error_code, str(error), _fields(error), headers)


def located(error: ValidationError, *place: str | int) -> list[Any]:
    """Return what is wrong with a body, or some `place` in it, for a ``RequestValidationError``."""
    return [
        {**details, "loc": ("body", *place, *details["loc"])}
        for details in error.errors(include_url=False, include_input=False)
    ]


def refusal_of(error: RequestValidationError | ValidationError) -> domain.InvalidFields:
    """Return what is wrong with a request, or with the body of one, as an error of ours."""
    details = located(error) if isinstance(error, ValidationError) else error.errors()
    return domain.InvalidFields([_fault(each) for each in details])


def _fault(details: Mapping[str, Any]) -> domain.Fault:
    location, *place = details["loc"]
    # A body, other than a member that is an object, cannot be left out.
    kind = details["type"] if place else _OF_BODIES.get(details["type"], details["type"])
    return domain.Fault(
        str(location), ".".join(map(str, place)), REMEDIES.get(kind, details["msg"])
    )


_OF_BODIES = {"dict_type": "model_type"}


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    refusal = refusal_of(error)
    if refusal.faults == [domain.Fault("body", "", REMEDIES["missing"])]:
        refusal = domain.InvalidFields(refusal.faults, "A JSON body is required.")
    return await _domain_error(request, refusal)


async def _http_error(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods_of(request)):
        headers["Allow"] = ", ".join(methods)
    return problem(
        status,
        _FRAMEWORK_CODES.get(status, f"HTTP_{status}"),
        _FRAMEWORK_DETAILS.get(status, HTTPStatus(status).phrase),
        headers=headers,
    )


def _methods_of(request: Request) -> list[str]:
    """Return the methods that this address takes; Starlette names those of one route only."""
    if literal := request.app.openapi()["paths"].get(request.url.path):
        # Such as /tasks/batch, which is no value of /tasks/{task_id}.
        return [method.upper() for method in literal]
    return [
        method
        for method in HTTPMethod
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _disconnect(_: Request, _error: Exception) -> Response:
    """Answer nobody: the client has gone before its body was complete."""
    return problem(HTTPStatus.BAD_REQUEST, "BODY_400", "The body ended early.")


async def _unexpected_error(_: Request, _error: Exception) -> Response:
    """Answer without a word of the exception's own; the server logs it with its traceback."""
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "INTERNAL_500",
        "Something went wrong on our side; the service's log says what.",
    )


def add_problem_schema(openapi: dict[str, Any]) -> None:
    """Put the schema that ``problems`` refers to into an OpenAPI document.

    What FastAPI says by itself about a 422 is taken out: it has another form here, and a path's
    parameter is never answered so.
    """
    for path in openapi["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        openapi["components"]["schemas"].pop(name, None)
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")
    openapi["components"]["schemas"].update(definitions, Problem=schema)


class ReadableStartFailure:
    """ASGI middleware: a start that fails for a known reason is one line, not a traceback.

    The lifespan leaves the line in ``app.state.start_failure``.
    """

    def __init__(self, inner: ASGIApp, app: FastAPI) -> None:
        self._inner = inner
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with the message of a failed start replaced."""
        if scope["type"] != "lifespan":
            await self._inner(scope, receive, send)
            return

        async def send_readable(message: Message) -> None:
            failure = getattr(self._app.state, "start_failure", None)
            if message["type"] == "lifespan.startup.failed" and failure:
                message = {"type": message["type"], "message": failure}
            await send(message)

        await self._inner(scope, receive, send_readable)
