"""The routes that change or remove many tasks, those that a filter means."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue

from job_scheduler.batch_exceptions import InvalidBatch
from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import WAITING, Sort
from job_scheduler.core import selection
from job_scheduler.core.cursors import read_cursor, write_cursor
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.manage_api import CHANGE_BODY, changed
from job_scheduler.core.schemas_list import ManyQuery, ManyResult
from job_scheduler.core.selection import Selection
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import OnceEach, Services, ServicesDep
from job_scheduler.errors import problems, refusal_of
from job_scheduler.exceptions import InvalidField, InvalidRequest, UniqueKeyTaken

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute, dependencies=[OnceEach])

_NO_FILTER = InvalidField(
    "query",
    "status",
    "Name at least one filter, so that not all tasks are meant by mistake. All that have not "
    "begun: status=scheduled&status=paused.",
)
_Query = Annotated[ManyQuery, Query()]


@router.delete(
    "",
    operation_id="deleteTasks",
    summary="Remove many tasks that have not started",
    response_model=ManyResult,
    responses=problems(_NO_FILTER, 500, 503),
)
async def delete_tasks(query: _Query, services: ServicesDep) -> ManyResult:
    """Remove the tasks that meet all filters and are scheduled or paused: they never run.

    The filters are those of `GET /tasks`. At most `limit` are removed, all of them or none.
    """
    wanted = _waiting(query)
    chosen = await _chosen(query, wanted, services)
    removed = chosen.ids
    if not query.dry_run:
        removed = await services.database.write(selection.delete_tasks, chosen.ids, wanted)
    return _result(query, wanted, chosen, len(removed))


@router.patch(
    "",
    operation_id="changeTasks",
    summary="Change many tasks that have not started",
    response_model=ManyResult,
    openapi_extra=CHANGE_BODY,
    responses=problems(
        400,
        UniqueKeyTaken.again(EXAMPLE_ID),
        413,
        415,
        _NO_FILTER,
        500,
        503,
    ),
)
async def change_tasks(
    query: _Query, change: dict[str, JsonValue], services: ServicesDep
) -> ManyResult:
    """Change the tasks that meet all filters and are scheduled or paused, as `PATCH
    /tasks/{task_id}` does.

    The filters are those of `GET /tasks`. At most `limit` are changed, all of them or none.
    """
    wanted = _waiting(query)
    chosen = await _chosen(query, wanted, services)
    changing = partial(_changed, services, change)
    if query.dry_run:
        rows = await services.database.read(selection.look, chosen.ids, wanted)
        await asyncio.to_thread(changing, rows)
        return _result(query, wanted, chosen, len(rows))
    done = await services.database.write(selection.change_tasks, chosen.ids, wanted, changing)
    services.look_again(*done)
    return _result(query, wanted, chosen, len(done))


def _waiting(query: ManyQuery) -> TaskFilter:
    """Return the filter, for what has not begun."""
    wanted = query.wanted
    if wanted == TaskFilter(status=[], name=[], tag=[], key=[]):
        raise _NO_FILTER
    if not set(wanted.status) <= set(WAITING):
        raise InvalidField(
            "query", "status", "Only tasks that are scheduled or paused can be changed or removed."
        )
    return replace(wanted, status=wanted.status or WAITING)


async def _chosen(query: ManyQuery, wanted: TaskFilter, services: Services) -> Selection:
    after = read_cursor(query.cursor, wanted, Sort.RunAt)
    return await selection.select_ids(services.database, wanted, query.limit, after)


def _result(query: ManyQuery, wanted: TaskFilter, chosen: Selection, number: int) -> ManyResult:
    following = chosen.following
    cursor = None if following is None else write_cursor(following, wanted, Sort.RunAt)
    return ManyResult(tasks=number, cursor=cursor, dry_run=query.dry_run)


def _changed(
    services: Services, change: dict[str, Any], rows: Sequence[TaskRow]
) -> list[dict[str, Any]]:
    """Return the new values of each task's columns.

    Raises:
        InvalidBatch: some would not be taken like this.
    """
    values: list[dict[str, Any]] = []
    refused: dict[str, InvalidRequest] = {}
    for row in rows:
        try:
            values.append(changed(services, change, row))
        except InvalidRequest as refusal:
            refused[row["task_id"]] = refusal
        except RequestValidationError as error:
            refused[row["task_id"]] = refusal_of(error)
    if refused:
        raise InvalidBatch(refused)
    return values
