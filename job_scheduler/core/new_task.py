"""A task as it is asked for, and what is stored of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_scheduler import strict_json
from job_scheduler.constants import Overlap
from job_scheduler.core import columns
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_when import RECURRENCE_FIELDS
from job_scheduler.core.store import COMMAND, HANDLER, PATTERN, WEBHOOK, DueTask, TaskRow

MEMBERS = {
    "task_id": "uuid",
    "name": "text",
    "run_at": "timestamptz",
    "payload": "json",
    "max_attempts": "integer",
    "on_crash": "text",
    "retry_delay": "json",
    "retry_max_delay": "float8",
    "start_before": "timestamptz",
    "timeout": "float8",
    "priority": "smallint",
    "concurrency_key": "text",
    "max_running": "integer",
    "webhook": "json",
    "command": "json",
    "on_done": "json",
    "on_failed": "json",
    "expects_handler": "boolean",
    "tags": "jsonb",
    "unique_key": "text",
}
"""The columns that a request decides, and their types, as PostgreSQL names them."""
OF_RECURRING = {"recurrence": "json", "run_count": "integer", "retry_at": "timestamptz"}
"""What only the statement for recurring tasks is given, too."""
_MODELS = {"webhook", "on_done", "on_failed"}
_NOT_STORED = RECURRENCE_FIELDS | {"on_conflict"}
_KINDS = ("run_at", "cron", "interval_seconds")
_CHANGEABLE = TaskCreate.model_fields.keys() - {"task_id", "on_conflict"}
_NOT_COMPARED = frozenset({"task_id", "expects_handler"})


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as its caller wants it, under its id.

    `run_at` is when it runs (first), and `run_count` how often it has recurred elsewhere. Where
    `wanted` does not say how often it may be started, `default_attempts` does. `expects_handler`
    tells whether there is a handler of its name; None: nobody has looked.
    """

    task_id: str
    wanted: TaskCreate
    run_at: datetime
    default_attempts: int = 1
    expects_handler: bool | None = None
    run_count: int = 0

    @property
    def due(self) -> DueTask:
        """What the timer needs to know of it."""
        wanted = self.wanted
        kind = WEBHOOK if wanted.webhook else COMMAND if wanted.command else HANDLER
        is_pattern = wanted.overlap is Overlap.Allow
        return DueTask(
            self.first_start,
            self.task_id,
            wanted.name,
            PATTERN if is_pattern else kind,
            wanted.priority,
            wanted.concurrency_key is not None and not is_pattern,
        )

    @property
    def first_start(self) -> datetime:
        """When it starts (first)."""
        return self.starts_at or self.run_at

    @property
    def starts_at(self) -> datetime | None:
        """When it starts, if not at `run_at`."""
        recurrence = self.wanted.recurrence
        if recurrence is None:
            return None
        return recurrence.starts_at(self.task_id, self.run_at)


def members_of(task: NewTask) -> dict[str, Any]:
    """Return what is to be stored of a task; what it leaves out is not there."""
    wanted = task.wanted
    members = {
        name: value
        for name in wanted.model_fields_set - _NOT_STORED
        if (value := getattr(wanted, name)) is not None
    }
    if (recurrence := wanted.recurrence) is not None:
        members |= {"recurrence": recurrence.as_document(), "run_count": task.run_count}
        if (starts_at := task.starts_at) is not None:
            members["retry_at"] = starts_at
    for name in members.keys() & _MODELS:
        members[name] = members[name].model_dump(mode="json", exclude_defaults=True)
    return members | {
        "task_id": task.task_id,
        "run_at": task.run_at,
        "max_attempts": wanted.max_attempts or task.default_attempts,
        "priority": wanted.priority,
        "expects_handler": task.expects_handler,
    }


def changed_members(task: NewTask) -> dict[str, Any]:
    """Return what all columns that a request decides are to be, for a task as it is wanted now."""
    columns = (MEMBERS.keys() | OF_RECURRING.keys()) - {"task_id"}
    members = members_of(task)
    return {name: members.get(name) for name in columns}


def is_as_wanted(row: TaskRow, task: NewTask) -> bool:
    asked = members_of(task)
    # A default is the release's own: it may have changed since the first request.
    free = _NOT_COMPARED if task.wanted.max_attempts else _NOT_COMPARED | {"max_attempts"}
    if "recurrence" in asked:
        free |= {"run_at"}  # It has moved on, perhaps.
    return all(
        strict_json.same(asked.get(name), row[name])
        if kind in ("json", "jsonb")
        else asked.get(name) == row[name]
        for name, kind in (MEMBERS | {"recurrence": "json"}).items()
        if name not in free
    )


def is_already(row: TaskRow, members: Mapping[str, Any]) -> bool:
    """Tell whether a task, as far as it is shown, has these values in its columns."""
    kinds = MEMBERS | OF_RECURRING
    return all(
        strict_json.same(value, row[name])
        if kinds.get(name) in ("json", "jsonb")
        else value == row[name]
        for name, value in members.items()
        if name in row
    )


def written(members: dict[str, Any], dialect: str) -> dict[str, Any]:
    """Return what is to be stored as the database takes it, inside JSON."""
    if dialect == "postgresql":
        return members  # It reads times as JSON has them.
    times = ("run_at", "start_before", "retry_at")
    return members | {
        name: columns.written(members[name], dialect) for name in times if name in members
    }


def request_of(task: Mapping[str, Any], change: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Return the request that would make this task, without the kind of time that is changed.

    The task is given as it is stored, or as it is shown.
    """
    members = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name in _CHANGEABLE
        if (value := task.get(name)) is not None
    }
    if isinstance(recurrence := task.get("recurrence"), dict):
        members.pop("run_at", None)
        if change.get("run_at") is None:
            members |= recurrence
        else:
            members["timezone"] = recurrence.get("timezone")  # Its author's times are of there.
    if any(change.get(kind) is not None for kind in _KINDS):
        for kind in _KINDS:
            members.pop(kind, None)
    return members
