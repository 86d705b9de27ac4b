"""An import: lines that ask for tasks, stored some hundred at a time, and what became of them."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from job_scheduler import strict_json
from job_scheduler.constants import BODY_MAX_BYTES, ENDED, IMPORT_PROBLEMS_NAMED, TaskStatus
from job_scheduler.core.batch_body import Examined, examine
from job_scheduler.core.changes import pause_task
from job_scheduler.core.creation import Created, create_or_find
from job_scheduler.core.lines import TOO_LONG
from job_scheduler.core.new_task import NewTask, request_of
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_transfer import ANEW, Standing
from job_scheduler.errors import refusal_of
from job_scheduler.exceptions import (
    InvalidBody,
    InvalidField,
    InvalidRequest,
    JobSchedulerError,
)
from job_scheduler.import_exceptions import LineTooLong

_STAYS = (*ENDED, TaskStatus.Running)
"""What has begun is not begun anew somewhere else."""


@dataclass(slots=True)
class Report:
    """How many lines there were, and what became of them; `problems` are the first of them."""

    lines: int = 0
    created: int = 0
    present: int = 0
    skipped: int = 0
    refused: int = 0
    problems: list[tuple[int, JobSchedulerError]] = field(default_factory=list)

    def refuse(self, number: int, reason: JobSchedulerError) -> None:
        """Count a line that is not taken, and keep why, if not too many are kept already."""
        self.refused += 1
        if len(self.problems) < IMPORT_PROBLEMS_NAMED:
            self.problems.append((number, reason))


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read: its number, and the task that it asks for, or why there is none."""

    number: int
    task: Examined | None
    is_paused: bool = False
    standing: Standing = ANEW


def read_line(
    number: int,
    content: bytes | None,
    reason_against: Callable[[TaskCreate, Standing], InvalidRequest | None],
) -> Line:
    """Read a line: a body of ``POST /tasks``, or a task as it is shown, which has a status.

    A task that has begun is skipped. One that is paused is to be paused here, and one that recurs
    goes on from where it is.
    """
    if content is TOO_LONG:
        return Line(number, LineTooLong(BODY_MAX_BYTES))
    try:
        document: Any = strict_json.parse(content)
    except InvalidBody as error:
        return Line(number, error)
    is_paused = False
    standing = ANEW
    if isinstance(document, dict) and "status" in document:
        if document["status"] in _STAYS:
            return Line(number, None)
        is_paused = document["status"] == TaskStatus.Paused
        if isinstance(document.get("recurrence"), dict):
            try:
                standing = Standing.model_validate(document)
            except ValidationError as error:
                return Line(number, refusal_of(error))
        document = request_of(document) | {"task_id": document.get("task_id")}

    def reason(wanted: TaskCreate) -> InvalidRequest | None:
        runs = standing.run_count or 0
        if wanted.max_runs is not None and runs >= wanted.max_runs:
            return InvalidField("body", "run_count", f"It has run {runs} times already.")
        return reason_against(wanted, standing)

    return Line(number, examine(document, reason), is_paused, standing)


def store(connection: Connection, new: Sequence[NewTask], paused: Set[str]) -> Created:
    """Insert those tasks that can be; return what became of each.

    Those of the `paused` that are inserted wait to be resumed.
    """
    created = create_or_find(connection, new)
    for task_id in created.inserted & paused:
        pause_task(connection, task_id)
    return created
