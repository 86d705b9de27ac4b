"""An import under way: lines are gathered, and stored some hundred at a time."""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from job_scheduler.core import idempotency, import_lines
from job_scheduler.core.import_lines import Line, Report
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.dependencies import Services
from job_scheduler.exceptions import DatabaseUnavailable, InvalidRequest, Refusal, Stopping
from job_scheduler.import_exceptions import ImportBroken, ImportFailed, Reached

_logger = logging.getLogger(__name__)

AT_ONCE = 500
"""Tasks that are stored (or read, for an export) at a time."""
AT_ONCE_BYTES = 4 * 1024 * 1024
"""Of lines, after which they are stored though they are fewer."""


class Import:
    """An import under way: what waits to be stored, and what has become of the rest."""

    def __init__(self, services: Services, key: str | None, *, dry_run: bool) -> None:
        self._services = services
        self._key = key
        self._dry_run = dry_run
        self._waiting: list[tuple[int, bytes | None]] = []
        self._bytes = 0
        self._following = 1
        self.report = Report()

    @property
    def reached(self) -> Reached:
        """How far it has come."""
        return Reached(self.report.created, self._following)

    async def take(self, number: int, content: bytes | None) -> None:
        """Take a line; when there are some hundred, they are stored.

        Raises:
            Stopping, ImportBroken, ImportFailed: they could not be stored.
        """
        self._waiting.append((number, content))
        self._bytes += len(content or b"")
        if len(self._waiting) >= AT_ONCE or self._bytes >= AT_ONCE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Store what waits.

        Raises:
            Stopping, ImportBroken, ImportFailed: it could not be stored.
        """
        if not self._waiting:
            return
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
        self._following = waiting[-1][0] + 1

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
                    line.task,
                    idempotency.id_of(line.task, self._key, line.number, now),
                    line.standing,
                ),
            )
            for line in lines
            if isinstance(line.task, TaskCreate)
        ]
        return lines, new

    async def _store(self, new: Sequence[tuple[Line, NewTask]]) -> None:
        paused = {task.task_id for line, task in new if line.is_paused}
        try:
            created = await self._services.database.write(
                import_lines.store, [task for _, task in new], paused
            )
        except DatabaseUnavailable as error:
            raise ImportBroken(self.reached) from error
        except SQLAlchemyError as error:
            _logger.exception("an import could not be stored")
            raise ImportFailed(self.reached) from error
        self.report.created += len(created.inserted)
        settled = []
        for (line, task), answer in zip(new, created.answers, strict=True):
            if isinstance(answer, Refusal):
                key = self._key if task.wanted.task_id is None else None
                self.report.refuse(line.number, idempotency.as_told(answer, key))
                continue
            self.report.present += task.task_id not in created.inserted
            if answer["task_id"] != task.task_id:
                settled.append(answer["task_id"])
        self._services.look_again(*settled)  # Perhaps it is due at another time now.
