"""The routes of recovery: what it would do now, and the approval of what it holds."""

from fastapi import APIRouter

from job_scheduler.core import catch_up, recovery_plan
from job_scheduler.core.recovery import Rules
from job_scheduler.core.schemas_recovery import RecoveryApproval, RecoveryPlan
from job_scheduler.dependencies import ServicesDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import NothingHeld
from job_scheduler.queries import StrictRoute

router = APIRouter(prefix="/recovery", tags=["recovery"], route_class=StrictRoute)


@router.get(
    "/plan",
    operation_id="planRecovery",
    summary="What start-up recovery would do now",
    response_model=RecoveryPlan,
    responses=problems(500, 503),
)
async def plan(services: ServicesDep) -> RecoveryPlan:
    """Tell what a start would do with the tasks that are overdue now. Nothing is done."""
    settings = services.settings
    return await services.database.read(
        recovery_plan.plan, Rules.of(settings), settings.lease_seconds
    )


@router.post(
    "/approve",
    operation_id="approveRecovery",
    summary="Run the missed tasks that are held",
    response_model=RecoveryApproval,
    responses=problems(NothingHeld(), 500, 503),
)
async def approve(services: ServicesDep) -> RecoveryApproval:
    """Release the missed tasks that are held, at RECOVERY_RATE. A repeat is answered the same."""
    approved = await services.database.write(catch_up.approve, services.settings.recovery_rate)
    services.release.wake()
    return RecoveryApproval(
        message=f"{approved.tasks} missed tasks are released.",
        tasks=approved.tasks,
        approved_at=approved.at,
        until=approved.until,
    )
