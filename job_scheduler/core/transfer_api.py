"""The routes by which many tasks leave and come: streams of lines, in bounded memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from job_scheduler.constants import Sort
from job_scheduler.core import idempotency
from job_scheduler.core.importing import AT_ONCE, AT_ONCE_BYTES, Import
from job_scheduler.core.lines import lines_of
from job_scheduler.core.schemas_list import FilterQuery
from job_scheduler.core.schemas_task import EXAMPLE_TASK, as_json
from job_scheduler.core.schemas_transfer import ImportProblem, ImportResult
from job_scheduler.core.selection import pages
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problem_of, problems
from job_scheduler.exceptions import BodyTooSlow, Stopping, UnsupportedMediaType
from job_scheduler.import_exceptions import (
    ImportBroken,
    ImportFailed,
    ImportStopped,
    ImportTooSlow,
    Reached,
)
from job_scheduler.queries import StrictRoute

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=StrictRoute)

MEDIA_TYPE = "application/x-ndjson"
_TAKEN = (MEDIA_TYPE, "application/ndjson", "application/jsonl", "application/jsonlines")
_ROOM = 2 * AT_ONCE_BYTES
"""Memory that an import is reckoned to need: some lines, and what is made of them."""
_EXAMPLE = Reached(1_500, 1_501)
_LINES = {"description": "One JSON object a line."}
_EXPORTED = as_json(EXAMPLE_TASK).decode() + "\n"
_WANTED = """{"name": "send_report", "run_at": "2027-07-01T10:00:00Z"}
{"name": "backup", "cron": "@daily", "tags": ["nightly"]}
"""


@router.get(
    "/export",
    operation_id="exportTasks",
    summary="Export tasks",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One task a line (NDJSON).",
            "content": {MEDIA_TYPE: {"schema": _LINES, "example": _EXPORTED}},
        },
        **problems(422, 500, 503),
    },
)
async def export_tasks(
    query: Annotated[FilterQuery, Query()], services: ServicesDep
) -> StreamingResponse:
    """Export the tasks that meet all filters, those of `GET /tasks`, by `created_at`: one a line.

    What exists from the beginning to the end of the export is in it, once. If the database goes
    away in the middle, the connection is cut off: the transfer is then seen to be incomplete.
    """
    parts = _exported(query, services)
    first = await anext(parts)  # If the database is away, it is told before the answer begins.

    async def content() -> AsyncIterator[bytes]:
        yield first
        async for part in parts:
            yield part

    return StreamingResponse(content(), media_type=MEDIA_TYPE)


@router.post(
    "/import",
    operation_id="importTasks",
    summary="Import tasks",
    response_model=ImportResult,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPE: {"schema": _LINES, "example": _WANTED}},
        },
        **idempotency.DOCUMENTED,
    },
    responses=problems(
        400,
        ImportTooSlow(60.0, _EXAMPLE),
        415,
        422,
        ImportFailed(_EXAMPLE),
        ImportBroken(_EXAMPLE),
    ),
)
async def import_tasks(
    request: Request,
    services: ServicesDep,
    dry_run: Annotated[
        bool, Query(description="Only look at the lines; nothing is stored.")
    ] = False,
) -> ImportResult:
    """Store the tasks that lines of JSON ask for: each line is a body of `POST /tasks`, or a task
    as `GET /tasks/export` has it. Any number of lines, each up to 1 MiB.

    What can be stored is, some hundred lines at a time, and the first 100 refusals are told of. Of
    exported tasks, those that are scheduled or paused are made anew, under their ids (recurring
    ones with their next time and their count), and those that have begun are skipped. Lines with a
    `task_id`, or an `Idempotency-Key`, make a repetition harmless.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() not in _TAKEN:
        raise UnsupportedMediaType(content_type, MEDIA_TYPE)
    key = idempotency.key_of(request)
    importing = Import(services, key, dry_run=dry_run)
    with services.batches.room(_ROOM):
        lines = lines_of(request.stream(), services.batches.upload_seconds, services.shutdown.begun)
        try:
            async for number, content in lines:
                await importing.take(number, content)
            await importing.flush()
        except BodyTooSlow as error:
            seconds = services.batches.upload_seconds
            raise ImportTooSlow(seconds, importing.reached) from error
        except Stopping as error:
            raise ImportStopped(importing.reached) from error
    report = importing.report
    return ImportResult(
        lines=report.lines,
        created=report.created,
        present=report.present,
        skipped=report.skipped,
        refused=report.refused,
        problems=[
            ImportProblem(line=number, problem=problem_of(reason))
            for number, reason in report.problems
        ],
        dry_run=dry_run,
    )


async def _exported(query: FilterQuery, services: Services) -> AsyncIterator[bytes]:
    async for rows in pages(services.database, query.wanted, Sort.CreatedAt, AT_ONCE):
        if services.shutdown.has_begun:
            raise Stopping
        yield await asyncio.to_thread(_written, rows)


def _written(rows: Sequence[TaskRow]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)
