"""The routes of a task's attempts: those that were, and one more."""

from typing import Annotated

from fastapi import APIRouter, Query

from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import LIST_DEFAULT_LIMIT, LIST_MAX_LIMIT, TaskStatus
from job_scheduler.core import replay, runs
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.runs import RunRow
from job_scheduler.core.schemas_replay import Replay, ReplayResult
from job_scheduler.core.schemas_runs import Run
from job_scheduler.core.schemas_task import Task
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import ServicesDep, TaskIdDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import TaskNotRetryable, UniqueKeyTaken

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)


@router.get(
    "/{task_id}/runs",
    operation_id="listRuns",
    summary="List a task's attempts",
    response_model=list[Run],
    responses=problems(404, 422, 500, 503),
)
async def list_runs(
    task_id: TaskIdDep,
    services: ServicesDep,
    limit: Annotated[
        int, Query(ge=1, le=LIST_MAX_LIMIT, description="How many of the last ones, at most.")
    ] = LIST_DEFAULT_LIMIT,
) -> list[RunRow]:
    """List a task's last attempts, the oldest first, that which is under way included."""
    rows = await services.database.read(runs.list_runs, task_id, limit)
    hidden = {} if services.settings.show_tracebacks else {"traceback": None}
    return [row | _durations(row) | hidden for row in rows]


@router.post(
    "/{task_id}/retry",
    operation_id="retryTask",
    summary="Run a failed task again",
    response_model=Task,
    responses=problems(404, TaskNotRetryable(EXAMPLE_ID, TaskStatus.Done), 500, 503),
)
async def retry_task(task_id: TaskIdDep, services: ServicesDep) -> TaskRow:
    """Run a task that is failed or unknown once more, now.

    Neither its `max_attempts` nor its `start_before`, which is removed, stand in the way.

    Look at its attempts first: a run whose outcome is unknown may have done its work.
    """
    row = await services.database.write(replay.retry_task, task_id)
    services.sweep.wake()
    return row


@router.post(
    "/retry",
    operation_id="retryTasks",
    summary="Run failed tasks again",
    response_model=ReplayResult,
    responses=problems(400, UniqueKeyTaken.again(EXAMPLE_ID), 413, 415, 422, 500, 503),
)
async def retry_tasks(wanted: Replay, services: ServicesDep) -> ReplayResult:
    """Run many failed tasks once more, at a bounded rate: those that match, oldest first.

    Repeating it is harmless: what is scheduled again has not failed.
    """
    if wanted.dry_run:
        count = await services.database.read(replay.count_retryable, wanted)
        return ReplayResult(tasks=count, until=None, dry_run=True)
    rate = wanted.rate or services.settings.recovery_rate
    done = await services.database.write(replay.retry_tasks, wanted, rate)
    services.sweep.wake()
    return ReplayResult(tasks=done.tasks, until=done.until, dry_run=False)


def _durations(row: RunRow) -> dict[str, float | None]:
    """Return the times that are derived, in seconds."""
    finished_at = row["finished_at"]
    return {
        "late": (row["started_at"] - row["scheduled_for"]).total_seconds(),
        "duration": finished_at and (finished_at - row["started_at"]).total_seconds(),
    }
