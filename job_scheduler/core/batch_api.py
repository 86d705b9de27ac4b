"""The route that creates many tasks: all of them, or none.

A batch is large, so nothing of it is done on the event loop that can be done beside it: the
body is parsed, and the answer is written, in threads. A thread that computes hands the
interpreter over every few milliseconds; what would not (a single call into a library) is done
piece by piece.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from job_scheduler.batch_exceptions import BatchConflict, BatchNotCreated, InvalidBatch
from job_scheduler.bodies import declared_size, read_json
from job_scheduler.constants import BATCH_BODY_MAX_BYTES
from job_scheduler.core import idempotency
from job_scheduler.core.batch_body import parse
from job_scheduler.core.creation import create_all
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskBatch, TaskCreate
from job_scheduler.core.schemas_task import Task
from job_scheduler.core.store import DueTask, TaskRow
from job_scheduler.core.timer import Timer
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidField,
    SchedulerUnavailable,
    TaskConflict,
)
from job_scheduler.identifiers import new_task_id, task_id_in_batch

_logger = logging.getLogger(__name__)

router = APIRouter(prefix="/tasks", tags=["tasks"])

_AT_ONCE = 200
"""Tasks that the timer takes, or the answer is written of, in one go: a few milliseconds."""

_SHOWN = TypeAdapter(list[Task])
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
    responses=problems(
        400,
        408,
        BatchConflict({1: TaskConflict(EXAMPLE_ID)}),
        BodyTooLarge(BATCH_BODY_MAX_BYTES),
        415,
        InvalidBatch({1: InvalidField("body", "task_id", "The same task_id as that of tasks.0.")}),
        BatchNotCreated(2),
        503,
    ),
)
async def create_batch(request: Request, services: ServicesDep) -> Response:
    """Schedule up to 10,000 tasks: all of them, or none.

    The answer lists the tasks as stored, in the order of the request. With an `Idempotency-Key`,
    or with a `task_id` in each task, the request may be repeated: it makes each task once.
    """
    key = idempotency.key_of(request)
    with services.batches.room(declared_size(request, BATCH_BODY_MAX_BYTES)):
        raw = await _read(request, services.batches.upload_seconds)
        async with services.batches.turn:
            wanted = await asyncio.to_thread(parse, raw, services.refusal_of, keyed=key is not None)
            new = await asyncio.to_thread(_identify, wanted, key, services)
            due = [task.due for task in new]
            try:
                async with _reserved(services.timer, due):
                    stored = await services.database.write(create_all, new, key)
            except (SchedulerUnavailable, SQLAlchemyError) as error:
                _logger.exception("%d tasks could not be created", len(new))
                raise BatchNotCreated(len(new)) from error
            answer = await asyncio.to_thread(_written, stored)
    return Response(answer, 201, media_type="application/json")


async def _read(request: Request, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await read_json(request, BATCH_BODY_MAX_BYTES)
    except TimeoutError:
        raise BodyTooSlow(seconds) from None


def _identify(wanted: Sequence[TaskCreate], key: str | None, services: Services) -> list[NewTask]:
    if key is not None:
        ids = [task_id_in_batch(key, index) for index in range(len(wanted))]
    else:
        now = services.clock.now()
        ids = [task.task_id or new_task_id(now) for task in wanted]
    return [services.new_task(task, task_id) for task, task_id in zip(wanted, ids, strict=True)]


@asynccontextmanager
async def _reserved(timer: Timer, tasks: Sequence[DueTask]) -> AsyncIterator[None]:
    """Reserve all of these tasks with the timer; the event loop turns in between.

    Raises:
        SchedulerUnavailable: the timer refuses; none is reserved, and the block was not entered.
    """
    async with AsyncExitStack() as stack:
        for begin in range(0, len(tasks), _AT_ONCE):
            stack.enter_context(timer.reserved(*tasks[begin : begin + _AT_ONCE]))
            stack.push_async_callback(asyncio.sleep, 0)
            await asyncio.sleep(0)
        yield


def _written(rows: Sequence[TaskRow]) -> bytes:
    """Return the answer's body."""
    parts = [
        _SHOWN.dump_json(_SHOWN.validate_python(rows[begin : begin + _AT_ONCE]))
        for begin in range(0, len(rows), _AT_ONCE)
    ]
    return b"[" + b",".join(part[1:-1] for part in parts) + b"]"
