"""The route of a task's attempts."""

from fastapi import APIRouter

from job_scheduler.core import runs
from job_scheduler.core.runs import RunRow
from job_scheduler.core.schemas_runs import Run
from job_scheduler.dependencies import ServicesDep, TaskIdDep
from job_scheduler.errors import problems

router = APIRouter(prefix="/tasks", tags=["tasks"])


@router.get(
    "/{task_id}/runs",
    operation_id="listRuns",
    summary="List a task's attempts",
    response_model=list[Run],
    responses=problems(404, 500, 503),
)
async def list_runs(task_id: TaskIdDep, services: ServicesDep) -> list[RunRow]:
    """List a task's attempts, the oldest first, that which is under way included."""
    rows = await services.database.read(runs.list_runs, task_id)
    return [row | _durations(row) for row in rows]


def _durations(row: RunRow) -> dict[str, float | None]:
    """Return the times that are derived, in seconds."""
    finished_at = row["finished_at"]
    return {
        "late": (row["started_at"] - row["scheduled_for"]).total_seconds(),
        "duration": finished_at and (finished_at - row["started_at"]).total_seconds(),
    }
