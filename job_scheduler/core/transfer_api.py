"""The routes by which many tasks leave and come: streams of lines, in bounded memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from job_scheduler.constants import Sort
from job_scheduler.core import idempotency, import_lines
from job_scheduler.core.import_lines import Line, Report
from job_scheduler.core.lines import lines_of
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_list import FilterQuery
from job_scheduler.core.schemas_task import as_json
from job_scheduler.core.schemas_transfer import ImportProblem, ImportResult
from job_scheduler.core.selection import pages
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import OnceEach, Services, ServicesDep
from job_scheduler.errors import problem_of, problems
from job_scheduler.exceptions import (
    DatabaseUnavailable,
    ImportBroken,
    InvalidRequest,
    Stopping,
    UnsupportedMediaType,
)

router = APIRouter(prefix="/tasks", tags=["tasks"])

MEDIA_TYPE = "application/x-ndjson"
_TAKEN = (MEDIA_TYPE, "application/ndjson", "application/jsonl", "application/jsonlines")
_AT_ONCE = 500
"""Tasks that are read, or stored, at a time."""
_AT_ONCE_BYTES = 4 * 1024 * 1024
_ROOM = 2 * _AT_ONCE_BYTES
"""Memory that an import is reckoned to need: some lines, and what is made of them."""
_LINES = {"schema": {"description": "One JSON object a line."}}


@router.get(
    "/export",
    operation_id="exportTasks",
    summary="Export tasks",
    response_class=StreamingResponse,
    dependencies=[OnceEach],
    responses={
        200: {"description": "One task a line (NDJSON).", "content": {MEDIA_TYPE: _LINES}},
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
        "requestBody": {"required": True, "content": {MEDIA_TYPE: _LINES}},
        **idempotency.DOCUMENTED,
    },
    responses=problems(400, 408, 415, 422, 500, 503),
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
    exported tasks, those that are scheduled or paused are made anew, under their ids, and those
    that have begun are skipped. Lines with a `task_id`, or an `Idempotency-Key`, make a repetition
    harmless.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() not in _TAKEN:
        raise UnsupportedMediaType(content_type, MEDIA_TYPE)
    key = idempotency.key_of(request)
    importing = _Import(services, key, dry_run=dry_run)
    with services.batches.room(_ROOM):
        lines = lines_of(request.stream(), services.batches.upload_seconds)
        async for number, content in lines:
            await importing.take(number, content)
        await importing.flush()
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


class _Import:
    """An import under way: what waits to be stored, and what has become of the rest."""

    def __init__(self, services: Services, key: str | None, *, dry_run: bool) -> None:
        self._services = services
        self._key = key
        self._dry_run = dry_run
        self._waiting: list[tuple[int, bytes | None]] = []
        self._bytes = 0
        self.report = Report()

    async def take(self, number: int, content: bytes | None) -> None:
        """Take a line; when there are some hundred, they are stored.

        Raises:
            Unavailable: they could not be stored.
        """
        self._waiting.append((number, content))
        self._bytes += len(content or b"")
        if len(self._waiting) >= _AT_ONCE or self._bytes >= _AT_ONCE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Store what waits.

        Raises:
            Unavailable: it could not be stored.
        """
        if self._services.shutdown.has_begun:
            raise Stopping
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        report = self.report
        async with self._services.batches.turn:
            lines, new = await asyncio.to_thread(self._read, waiting)
            report.lines += len(lines)
            report.skipped += sum(line.task is None for line in lines)
            for line in lines:
                if isinstance(line.task, InvalidRequest):
                    report.refuse(line.number, line.task)
            if new and not self._dry_run:
                await self._store(new)
                self._services.sweep.wake()

    def _read(
        self, waiting: Sequence[tuple[int, bytes | None]]
    ) -> tuple[list[Line], list[tuple[Line, NewTask]]]:
        services = self._services
        lines = [
            import_lines.read_line(number, content, services.refusal_of)
            for number, content in waiting
        ]
        now = services.clock.now()
        new = [
            (
                line,
                services.new_task(
                    line.task, idempotency.id_of(line.task, self._key, line.number, now)
                ),
            )
            for line in lines
            if isinstance(line.task, TaskCreate)
        ]
        return lines, new

    async def _store(self, new: Sequence[tuple[Line, NewTask]]) -> None:
        paused = {task.task_id for line, task in new if line.is_paused}
        try:
            inserted, conflicts = await self._services.database.write(
                import_lines.store, [task for _, task in new], paused
            )
        except DatabaseUnavailable as error:
            raise ImportBroken(self.report.created, new[0][0].number) from error
        self.report.created += inserted
        self.report.present += sum(conflict is None for conflict in conflicts) - inserted
        for (line, task), conflict in zip(new, conflicts, strict=True):
            if conflict is not None:
                key = self._key if task.wanted.task_id is None else None
                self.report.refuse(line.number, idempotency.as_told(conflict, key))


async def _exported(query: FilterQuery, services: Services) -> AsyncIterator[bytes]:
    async for rows in pages(services.database, query.wanted, Sort.CreatedAt, _AT_ONCE):
        if services.shutdown.has_begun:
            raise Stopping
        yield await asyncio.to_thread(_written, rows)


def _written(rows: Sequence[TaskRow]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)
