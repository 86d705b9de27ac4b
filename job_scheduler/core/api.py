"""The routes of tasks: create, list, show, cancel."""

import logging
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import ENDED, LIST_MAX_LIMIT, TaskStatus
from job_scheduler.core import idempotency, listing, store
from job_scheduler.core.cursors import read_cursor, write_cursor
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.manage_api import with_version
from job_scheduler.core.schemas import Message, TaskCreate
from job_scheduler.core.schemas_list import ListQuery
from job_scheduler.core.schemas_task import Task, as_json
from job_scheduler.core.store import TaskRow
from job_scheduler.core.waiting import WAIT_MAX_SECONDS, wanted_seconds
from job_scheduler.dependencies import ServicesDep, TaskIdDep, services_of
from job_scheduler.errors import problems
from job_scheduler.exceptions import (
    InvalidField,
    NamedTwice,
    Refusal,
    SchedulerUnavailable,
    TaskConflict,
    TaskNotCancellable,
    TaskNotCreated,
    TaskNotDeletable,
    TaskNotDeleted,
)
from job_scheduler.identifiers import new_task_id, task_id_of_key

_logger = logging.getLogger(__name__)

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

_LINKS = {
    "show": "showTask",
    "runs": "listRuns",
    "next": "listTimes",
    "explain": "explainTask",
    "change": "changeTask",
    "pause": "pauseTask",
    "resume": "resumeTask",
    "run": "runTask",
    "cancel": "cancelTask",
    "delete": "deleteTask",
}


@router.post(
    "",
    operation_id="createTask",
    openapi_extra=idempotency.DOCUMENTED,
    summary="Schedule a task",
    status_code=201,
    response_model=Task,
    responses={
        200: {
            "model": Task,
            "description": "The task that has the `unique_key` already, as `on_conflict` asks.",
        },
        201: {
            "headers": {
                "Location": {"description": "The task's address.", "schema": {"type": "string"}}
            },
            "links": {
                name: {
                    "operationId": operation,
                    "parameters": {"task_id": "$response.body#/task_id"},
                }
                for name, operation in _LINKS.items()
            },
        },
        **problems(400, TaskConflict(EXAMPLE_ID), 413, 415, 422, TaskNotCreated(EXAMPLE_ID), 503),
    },
)
async def create_task(wanted: TaskCreate, request: Request) -> Response:
    """Schedule a task. When this answers 201, the task is stored and will run at its time.

    With an `Idempotency-Key` or a `task_id` the request may be repeated: it makes one task.
    """
    services = services_of(request)
    key = idempotency.key_of(request)
    if key is not None and wanted.task_id is not None:
        raise NamedTwice
    if (refusal := services.refusal_of(wanted)) is not None:
        raise refusal
    chosen_id = wanted.task_id if key is None else task_id_of_key(key)
    task_id = chosen_id or new_task_id(services.clock.now())
    new = services.new_task(wanted, task_id)
    try:
        with services.timer.reserved(new.due):
            stored = await services.creates.submit(new)
            if isinstance(stored, Refusal):
                raise idempotency.as_told(stored, key)
    except (SchedulerUnavailable, SQLAlchemyError) as error:
        _logger.exception("task %s could not be created", task_id)
        raise TaskNotCreated(task_id) from error
    status = HTTPStatus.CREATED
    if stored["task_id"] != task_id:
        services.look_again(stored["task_id"])  # That which has its unique_key.
        status = HTTPStatus.OK
    location = f"{request.scope['path']}/{stored['task_id']}"
    return Response(as_json(stored), status, {"Location": location}, "application/json")


@router.post(
    "/{task_id}/cancel",
    operation_id="cancelTask",
    summary="Cancel a task",
    response_model=Task,
    responses={
        200: {"description": "It is cancelled."},
        202: {
            "model": Task,
            "description": "It is running: its end is asked for (`cancel_requested_at`).",
        },
        **problems(404, TaskNotCancellable(EXAMPLE_ID, TaskStatus.Done), 500, 503),
    },
)
async def cancel_task(task_id: TaskIdDep, response: Response, services: ServicesDep) -> TaskRow:
    """Cancel a task, also while it runs, on whichever instance.

    One that is scheduled never runs. One that is running is ended: an async handler or a webhook is
    cancelled, a command or a worker process is killed, and a plain handler is asked by
    `context.should_stop`. If it has done its work all the same, it is `done`.
    """
    # The timer may keep it: what it fires finds nothing to claim.
    row = await services.database.write(store.request_cancellation, task_id)
    if row["status"] == TaskStatus.Running:
        response.status_code = HTTPStatus.ACCEPTED
        services.cancellation.wake()
    return row


@router.get(
    "",
    operation_id="listTasks",
    summary="List tasks",
    response_model=list[Task],
    responses={
        200: {
            "headers": {
                "Link": {
                    "description": 'The next page, if there is one: `<…>; rel="next"` (RFC 8288).',
                    "schema": {"type": "string"},
                }
            }
        },
        **problems(
            InvalidField("query", "limit", f"Must be a whole number from 1 to {LIST_MAX_LIMIT}."),
            500,
            503,
        ),
    },
)
async def list_tasks(
    query: Annotated[ListQuery, Query()],
    request: Request,
    response: Response,
    services: ServicesDep,
) -> list[TaskRow]:
    """List tasks, scheduled and completed, by run_at or as `sort` says.

    Filters narrow it down; a task must meet them all. For several values of `status`, `name`, `key`
    or `tag` repeat the parameter: `status=failed&status=unknown`. Ranges begin with `…_after`, and
    end before `…_before`.

    The Link header leads to the next page: the list is complete when there is none. Pages stay
    right while tasks come and go. For one page a bounded number of tasks is looked at, so that
    among millions a page may hold fewer than `limit` tasks, or none, and lead on all the same.
    """
    wanted = query.wanted
    after = read_cursor(query.cursor, wanted, query.sort)
    page = await services.database.read(listing.list_tasks, wanted, query.sort, query.limit, after)
    if page.following is not None:
        following = query.model_dump(mode="json", exclude_defaults=True)
        following["cursor"] = write_cursor(page.following, wanted, query.sort)
        parameters = urlencode(following, doseq=True)
        response.headers["Link"] = f'<{request.url.path}?{parameters}>; rel="next"'
    return page.rows


@router.get(
    "/{task_id}",
    operation_id="showTask",
    summary="Show a task",
    response_model=Task,
    responses=problems(404, 500, 503),
)
async def show_task(
    task_id: TaskIdDep,
    response: Response,
    services: ServicesDep,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=30`: answer when the task has ended, but after 30 seconds at the "
            f"latest (RFC 7240), {WAIT_MAX_SECONDS} at most.",
            examples=["wait=30"],
        ),
    ] = None,
) -> TaskRow:
    """Show one task. Its `ETag` changes with all that shows of it."""
    row = await services.database.read(store.get_task, task_id)
    if seconds := wanted_seconds(prefer):
        response.headers["Preference-Applied"] = f"wait={seconds}"
        if row["status"] not in ENDED:
            await services.waiting.until_ended(task_id, seconds)
            row = await services.database.read(store.get_task, task_id)
    return with_version(row, response)


@router.delete(
    "/{task_id}",
    operation_id="deleteTask",
    summary="Remove a task that has not started",
    response_model=Message,
    responses=problems(
        404,
        TaskNotDeletable(EXAMPLE_ID, TaskStatus.Running),
        TaskNotDeleted(EXAMPLE_ID),
        503,
    ),
)
async def delete_task(task_id: TaskIdDep, services: ServicesDep) -> Message:
    """Remove a task that has not started: it never runs, and nothing of it is kept."""
    try:
        with services.timer.withdrawn(task_id):
            await services.database.write(store.delete_task, task_id)
    except (SchedulerUnavailable, SQLAlchemyError) as error:
        _logger.exception("task %s could not be cancelled", task_id)
        raise TaskNotDeleted(task_id) from error
    return Message(message=f"Task {task_id} is cancelled.")
