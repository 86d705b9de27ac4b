"""The routes by which a person changes a task that is not running, or has it run now."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue, ValidationError

from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import TaskStatus
from job_scheduler.core import changes
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.new_task import changed_members, request_of
from job_scheduler.core.recurring import keeps_time
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_task import Task
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import Services, ServicesDep, TaskIdDep
from job_scheduler.errors import located, problems
from job_scheduler.exceptions import (
    InvalidField,
    TaskChangedMeanwhile,
    TaskNotChangeable,
    TaskNotPausable,
    TaskNotResumable,
    TaskNotRunnable,
)

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

_FIXED = {
    "task_id": "A task keeps its id. Leave it out.",
    "on_conflict": "It goes with POST /tasks. Leave it out.",
}
_SCHEMA = TaskCreate.model_json_schema(ref_template="#/components/schemas/{model}")
for _left_out in ("$defs", "required", "examples"):
    _SCHEMA.pop(_left_out, None)
for _fixed in _FIXED:
    _SCHEMA["properties"].pop(_fixed)
_SCHEMA |= {
    "title": "TaskChange",
    "description": "What is to be another: each as in `POST /tasks`; null takes it away.",
    "examples": [{"run_at": "2027-07-02T10:00:00Z"}, {"payload": {"hours": 48}, "priority": 2}],
}
CHANGE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
}
"""The body of a change, for the OpenAPI document."""


@router.patch(
    "/{task_id}",
    operation_id="changeTask",
    summary="Change a task that has not started",
    response_model=Task,
    openapi_extra=CHANGE_BODY,
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
    services: ServicesDep,
    if_match: Annotated[
        str | None,
        Header(
            description="The `ETag` of `GET /tasks/{task_id}`, so that nobody's change in the "
            "meantime is lost: then this answers 412."
        ),
    ] = None,
) -> TaskRow:
    """Change a task that is scheduled or paused: what is given replaces what was (RFC 7396).

    Another time begins anew: the attempts that were count no more.
    """
    versions = None if if_match is None else _versions(if_match)
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
    response.headers["ETag"] = f'"{changes.version_of(row)}"'
    return row


def _versions(if_match: str) -> list[str] | None:
    """Return the versions that a header names (RFC 9110, section 13.1.1); None: any will do."""
    if if_match.strip() == "*":
        return None
    tags = [tag.strip() for tag in if_match.split(",")]
    return [tag.strip('"') for tag in tags if not tag.startswith("W/")]


def changed(services: Services, change: dict[str, Any], row: TaskRow) -> dict[str, Any]:
    """Return the new values of a task's columns.

    Raises:
        InvalidRequest: it would not be taken like this.
        RequestValidationError: likewise.
    """
    for name, remedy in _FIXED.items():
        if name in change:
            raise InvalidField("body", name, remedy)
    try:
        wanted = TaskCreate.model_validate(request_of(row, change) | change)
    except ValidationError as error:
        raise RequestValidationError(located(error)) from None
    if (refusal := services.refusal_of(wanted)) is not None:
        raise refusal
    members = changed_members(services.new_task(wanted, row["task_id"]))
    if members["recurrence"] is not None:
        members["run_count"] = row["run_count"] or 0
        if wanted.max_runs is not None and wanted.max_runs <= members["run_count"]:
            raise InvalidField(
                "body", "max_runs", f"It has run {members['run_count']} times already."
            )
    if not keeps_time(members, row):
        return members | {"attempt": 0, "missed_at": None, "blocked_by": None}
    return {name: members[name] for name in members.keys() - {"run_at", "retry_at"}}
