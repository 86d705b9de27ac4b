"""The route that creates many tasks: all of them or none, or those that can be.

A batch is large, so nothing of it is done on the event loop that can be done beside it: the
body is parsed, and the answer is written, in threads. A thread that computes hands the
interpreter over every few milliseconds; what would not (a single call into a library) is done
piece by piece.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from job_scheduler import strict_json
from job_scheduler.batch_exceptions import BatchConflict, BatchNotCreated, InvalidBatch
from job_scheduler.bodies import declared_size, read_json
from job_scheduler.constants import BATCH_BODY_MAX_BYTES
from job_scheduler.core import idempotency
from job_scheduler.core.batch_body import Examined, parse
from job_scheduler.core.creation import create_all, create_tasks
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskBatch, TaskCreate
from job_scheduler.core.schemas_task import Task, TaskOutcome, as_json
from job_scheduler.core.store import DueTask, TaskRow
from job_scheduler.core.timer import LOOKAHEAD, Timer
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problem_of, problems
from job_scheduler.exceptions import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidField,
    InvalidRequest,
    JobSchedulerError,
    Refusal,
    SchedulerUnavailable,
    TaskConflict,
)
from job_scheduler.queries import StrictRoute

_logger = logging.getLogger(__name__)

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=StrictRoute)

Outcome = tuple[HTTPStatus, TaskRow] | JobSchedulerError
"""What became of a task: the task with the status that ``POST /tasks`` has for it, or the error."""
_AT_ONCE = 200
"""Tasks that the timer takes, or the answer is written of, in one go: a few milliseconds."""

_SCHEMA = TaskBatch.model_json_schema(ref_template="#/components/schemas/{model}")
del _SCHEMA["$defs"]  # They stand among the components, for the route of a single task.


@router.post(
    "/batch",
    operation_id="createTasks",
    summary="Schedule many tasks",
    status_code=201,
    response_model=list[Task],
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}},
        **idempotency.DOCUMENTED,
    },
    responses={
        200: {
            "model": list[TaskOutcome],
            "description": "With `partial=true`: what became of each, in the same order.",
        },
        **problems(
            400,
            408,
            BatchConflict({1: TaskConflict(EXAMPLE_ID)}),
            BodyTooLarge(BATCH_BODY_MAX_BYTES),
            415,
            InvalidBatch(
                {1: InvalidField("body", "task_id", "The same task_id as that of tasks.0.")}
            ),
            BatchNotCreated(2),
            503,
        ),
    },
)
async def create_batch(
    request: Request,
    services: ServicesDep,
    partial: Annotated[
        bool,
        Query(
            description="Store what can be stored, and tell of each task what became of it, in "
            "place of all or none."
        ),
    ] = False,
) -> Response:
    """Schedule up to 10,000 tasks: all of them, or none.

    The answer lists the tasks as stored, in the order of the request. With an `Idempotency-Key`,
    or with a `task_id` in each task, the request may be repeated: it makes each task once.
    """
    key = idempotency.key_of(request)
    with services.batches.room(declared_size(request, BATCH_BODY_MAX_BYTES)):
        raw = await _read(request, services.batches.upload_seconds)
        async with services.batches.turn:
            wanted = await asyncio.to_thread(
                parse, raw, services.refusal_of, keyed=key is not None, partial=partial
            )
            new, near = await asyncio.to_thread(_identify, wanted, key, services)
            stored = await _store(new, near, key, services, partial=partial)
            if not partial:
                return _json(await asyncio.to_thread(_written, stored), HTTPStatus.CREATED)
            outcomes = _outcomes(wanted, new, stored, key)
            return _json(await asyncio.to_thread(_reported, outcomes), HTTPStatus.OK)


async def _store(
    new: Sequence[NewTask],
    near: Sequence[DueTask],
    key: str | None,
    services: Services,
    *,
    partial: bool,
) -> Sequence[TaskRow | Refusal]:
    """Store all of these tasks or none; with `partial`, those that can be. Those that are `near`
    are held by the timer.

    Raises:
        BatchNotCreated: nothing was stored.
    """
    try:
        async with _reserved(services.timer, near):
            if not partial:
                return await services.database.write(create_all, new, key)
            stored = await services.database.write(create_tasks, new)
    except (SchedulerUnavailable, SQLAlchemyError) as error:
        _logger.exception("%d tasks could not be created", len(new))
        raise BatchNotCreated(len(new)) from error
    # What is another task, or that of another request, may be due at another time.
    services.look_again(
        *(
            task.task_id if isinstance(answer, Refusal) else answer["task_id"]
            for task, answer in zip(new, stored, strict=True)
            if isinstance(answer, Refusal) or answer["task_id"] != task.task_id
        )
    )
    return stored


def _outcomes(
    wanted: Sequence[Examined],
    new: Sequence[NewTask],
    stored: Sequence[TaskRow | Refusal],
    key: str | None,
) -> list[Outcome]:
    """Return what became of each task that was asked for."""
    answers = iter(zip(new, stored, strict=True))
    outcomes: list[Outcome] = []
    for one in wanted:
        if isinstance(one, InvalidRequest):
            outcomes.append(one)
            continue
        task, answer = next(answers)
        if not isinstance(answer, Refusal):
            is_other = answer["task_id"] != task.task_id
            outcomes.append((HTTPStatus.OK if is_other else HTTPStatus.CREATED, answer))
        else:
            outcomes.append(idempotency.as_told(answer, key))
    return outcomes


def _reported(outcomes: Sequence[Outcome]) -> bytes:
    """Return the answer's body, where each is told of by itself."""
    return b"[" + b",".join(map(_report, outcomes)) + b"]"


def _report(outcome: Outcome) -> bytes:
    if isinstance(outcome, JobSchedulerError):
        document = problem_of(outcome)
        return strict_json.dumps({"status": document["status"], "problem": document}).encode()
    status, row = outcome
    return b'{"status":%d,"task":%b}' % (status, as_json(row))


def _json(content: bytes, status: int) -> Response:
    return Response(content, status, media_type="application/json")


async def _read(request: Request, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await read_json(request, BATCH_BODY_MAX_BYTES)
    except TimeoutError:
        raise BodyTooSlow(seconds) from None


def _identify(
    wanted: Sequence[Examined], key: str | None, services: Services
) -> tuple[list[NewTask], list[DueTask]]:
    """Return those that are taken, under their ids, and which of them are due within the timer's
    reach.
    """
    now = services.clock.now()
    new = [
        services.new_task(task, idempotency.id_of(task, key, index, now))
        for index, task in enumerate(wanted)
        if isinstance(task, TaskCreate)
    ]
    return new, [task.due for task in new if task.first_start <= now + LOOKAHEAD]


@asynccontextmanager
async def _reserved(timer: Timer, tasks: Sequence[DueTask]) -> AsyncIterator[None]:
    """Reserve all of these tasks with the timer; the event loop turns in between.

    Raises:
        SchedulerUnavailable: the timer refuses; none is reserved, and the block was not entered.
    """
    async with AsyncExitStack() as stack:
        # Without any, it is asked too: what is to be run later needs a timer that runs.
        for begin in range(0, len(tasks) or 1, _AT_ONCE):
            stack.enter_context(timer.reserved(*tasks[begin : begin + _AT_ONCE]))
            stack.push_async_callback(asyncio.sleep, 0)
            await asyncio.sleep(0)
        yield


def _written(rows: Sequence[Any]) -> bytes:
    """Return the answer's body."""
    parts = [as_json(rows[begin : begin + _AT_ONCE]) for begin in range(0, len(rows), _AT_ONCE)]
    return b"[" + b",".join(part[1:-1] for part in parts) + b"]"
