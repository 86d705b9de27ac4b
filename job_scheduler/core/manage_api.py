"""The routes by which a person changes a task that is not running, or has it run now."""

from functools import partial

from fastapi import APIRouter, Request, Response
from pydantic import JsonValue

from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import TaskStatus
from job_scheduler.core import changes, if_match
from job_scheduler.core.change_body import CHANGE_BODY, changed
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.schemas_task import Task
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import ServicesDep, TaskIdDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import (
    TaskChangedMeanwhile,
    TaskNotChangeable,
    TaskNotPausable,
    TaskNotResumable,
    TaskNotRunnable,
)

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)


@router.patch(
    "/{task_id}",
    operation_id="changeTask",
    summary="Change a task that has not started",
    response_model=Task,
    openapi_extra=CHANGE_BODY | if_match.DOCUMENTED,
    responses=problems(
        400,
        404,
        TaskNotChangeable(EXAMPLE_ID, TaskStatus.Running),
        TaskChangedMeanwhile(EXAMPLE_ID),
        413,
        415,
        422,
        500,
        503,
    ),
)
async def change_task(
    task_id: TaskIdDep,
    change: dict[str, JsonValue],
    response: Response,
    request: Request,
    services: ServicesDep,
) -> TaskRow:
    """Change a task that is scheduled or paused: what is given replaces what was (RFC 7396).

    Another time begins anew: the attempts that were count no more.
    """
    versions = if_match.versions_of(request)
    with services.timer.withdrawn(task_id):  # It may know another time.
        row = await services.database.write(
            changes.change_task, task_id, partial(changed, services, change), versions
        )
    services.sweep.wake()
    return with_version(row, response)


@router.post(
    "/{task_id}/pause",
    operation_id="pauseTask",
    summary="Keep a task from starting",
    response_model=Task,
    responses=problems(404, TaskNotPausable(EXAMPLE_ID, TaskStatus.Running), 500, 503),
)
async def pause_task(task_id: TaskIdDep, services: ServicesDep) -> TaskRow:
    """Keep a task that is scheduled from starting, until it is resumed. May be repeated."""
    return await services.database.write(changes.pause_task, task_id)


@router.post(
    "/{task_id}/resume",
    operation_id="resumeTask",
    summary="Let a paused task start again",
    response_model=Task,
    responses=problems(404, TaskNotResumable(EXAMPLE_ID, TaskStatus.Running), 500, 503),
)
async def resume_task(task_id: TaskIdDep, services: ServicesDep) -> TaskRow:
    """Let a paused task start again at its time. May be repeated.

    If that has passed, it starts at once; a recurring task waits for the next of its times.
    """
    row = await services.database.write(changes.resume_task, task_id)
    services.sweep.wake()
    return row


@router.post(
    "/{task_id}/run",
    operation_id="runTask",
    summary="Run a task now",
    response_model=Task,
    responses=problems(404, TaskNotRunnable(EXAMPLE_ID, TaskStatus.Done), 500, 503),
)
async def run_task(task_id: TaskIdDep, services: ServicesDep) -> TaskRow:
    """Run a task that is scheduled or paused now, not at its time.

    A recurring task is not touched, even when it is paused: an extra run is made, which is a task
    of its own (`caused_by` tells of which). Repeated, it makes another one.
    """
    with services.timer.withdrawn(task_id):  # It may know another time.
        row = await services.database.write(changes.run_task_now, task_id)
    services.sweep.wake()
    return row


def with_version(row: TaskRow, response: Response) -> TaskRow:
    """Return a task, and its version in the answer's ``ETag``."""
    response.headers["ETag"] = changes.etag_of(row)
    return row
