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
from job_scheduler.core.change_body import CHANGE_BODY, changed, examine_change
from job_scheduler.core.cursors import read_cursor, write_cursor
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.new_task import is_already
from job_scheduler.core.schemas_list import ManyQuery, ManyResult
from job_scheduler.core.selection import Selection
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problems, refusal_of
from job_scheduler.exceptions import InvalidField, InvalidRequest, UniqueKeyTaken

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

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

    The filters are those of `GET /tasks`. At most `limit` are removed, all of them or none. What
    is just being changed is waited for; what has started by then is left alone.
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

    The filters are those of `GET /tasks`. At most `limit` are changed, all of them or none. What
    is just being changed is waited for; what has started by then is left alone.
    """
    wanted = _waiting(query)
    examine_change(change)
    chosen = await _chosen(query, wanted, services)
    changing = partial(_changed, services, change)
    if not query.dry_run:
        done = await services.database.write(selection.change_tasks, chosen.ids, wanted, changing)
        services.look_again(*done)
        number = len(done)
    elif change.get("unique_key") is None:
        rows = await services.database.read(selection.look, chosen.ids, wanted)
        number = len(await asyncio.to_thread(changing, rows))
    else:  # Who has the key, the database alone knows: it refuses it to the second task at once.
        tried = await services.database.write(selection.try_change, chosen.ids, wanted, changing)
        number = len(tried)
    return _result(query, wanted, chosen, number)


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
) -> dict[str, dict[str, Any]]:
    """Return the new values of the tasks' columns, by the ids of those that are to be changed.

    One that is as wanted already is not among them. The walk goes by run_at: a task whose time has
    been moved ahead is met again.

    Raises:
        InvalidBatch: some would not be taken like this.
    """
    changes: dict[str, dict[str, Any]] = {}
    refused: dict[str, InvalidRequest] = {}
    for row in rows:
        try:
            values = changed(services, change, row)
        except InvalidRequest as refusal:
            refused[row["task_id"]] = refusal
        except RequestValidationError as error:
            refused[row["task_id"]] = refusal_of(error)
        else:
            if not is_already(row, values):
                changes[row["task_id"]] = values
    if refused:
        raise InvalidBatch(refused)
    return changes
