"""The route that tells why a task has not run, ran late, or ran twice."""

import asyncio

from fastapi import APIRouter

from job_scheduler.bodies import JsonRoute
from job_scheduler.core.explain import explain
from job_scheduler.core.fact_finding import read_facts
from job_scheduler.core.schemas_explain import TaskExplanation
from job_scheduler.core.surroundings import here_of
from job_scheduler.dependencies import ServicesDep, TaskIdDep
from job_scheduler.errors import problems

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)


@router.get(
    "/{task_id}/explain",
    operation_id="explainTask",
    summary="Tell why a task has not run, ran late, or ran twice",
    response_model=TaskExplanation,
    response_model_exclude_unset=True,
    responses=problems(404, 500, 503),
)
async def explain_task(task_id: TaskIdDep, services: ServicesDep) -> TaskExplanation:
    """Tell why a task stands where it stands, in words and as data, and what to do about it.

    What cannot be known is not guessed. Handlers, limits and settings are those of the instance
    that answers.
    """
    facts = await services.database.read_at_once(read_facts, task_id)
    here = here_of(
        facts,
        services.works,
        services.settings,
        services.heartbeat.instance_id,
        services.dispatcher.lost,
    )
    # In a thread: it may take a while to go through a rule's times.
    return TaskExplanation.of(await asyncio.to_thread(explain, facts, here))
