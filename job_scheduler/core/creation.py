"""The statement that creates tasks: any number of them in one INSERT.

The tasks are passed as one JSON parameter, so that the statement's text never changes and the
database takes them apart. Asked back is only what the database itself decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Result, select

from job_scheduler import strict_json
from job_scheduler.batch_exceptions import BatchConflict, BatchKeyReused
from job_scheduler.constants import Overlap
from job_scheduler.core.columns import NOW_SQL, written
from job_scheduler.core.given import batched, given_rows
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_when import RECURRENCE_FIELDS
from job_scheduler.core.store import (
    COMMAND,
    FETCHED_AT_ONCE,
    HANDLER,
    PATTERN,
    SHOWN,
    WEBHOOK,
    DueTask,
    TaskRow,
    tasks,
)
from job_scheduler.exceptions import TaskConflict
from job_scheduler.identifiers import task_id_in_batch


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as its caller wants it, under its id.

    `run_at` is when it runs (first). Where `wanted` does not say how often it may be started,
    `default_attempts` does. `expects_handler` tells whether there is a handler of its name; None:
    nobody has looked.
    """

    task_id: str
    wanted: TaskCreate
    run_at: datetime
    default_attempts: int = 1
    expects_handler: bool | None = None

    @property
    def due(self) -> DueTask:
        """What the timer needs to know of it."""
        wanted = self.wanted
        kind = WEBHOOK if wanted.webhook else COMMAND if wanted.command else HANDLER
        is_pattern = wanted.overlap is Overlap.Allow
        return DueTask(
            self.starts_at or self.run_at,
            self.task_id,
            wanted.name,
            PATTERN if is_pattern else kind,
            wanted.priority,
            wanted.concurrency_key is not None and not is_pattern,
        )

    @property
    def starts_at(self) -> datetime | None:
        """When it starts, if not at `run_at`."""
        recurrence = self.wanted.recurrence
        if recurrence is None:
            return None
        return recurrence.starts_at(self.task_id, self.run_at)


@dataclass(frozen=True, slots=True)
class Created:
    """What became of new tasks: an answer for each, in their order, and how many were inserted."""

    answers: list[TaskRow | TaskConflict]
    inserted: int


def create_tasks(connection: Connection, new: Sequence[NewTask]) -> list[TaskRow | TaskConflict]:
    """Insert tasks; return, in the same order, each as stored.

    A task whose id exists already is not inserted again: the answer is the present one when
    it was made by the same request, else ``TaskConflict``.
    """
    return _create_or_find(connection, new).answers


def create_all(connection: Connection, new: Sequence[NewTask], key: str | None) -> list[TaskRow]:
    """Insert all of these tasks or none; return each as stored, as ``create_tasks`` does.

    With a `key`, they are the whole of what was, or is now, made under it.

    Raises:
        BatchConflict: some exist already, made by other requests.
        BatchKeyReused: the key belongs to other tasks, or to more of them, or to less.
    """
    created = _create_or_find(connection, new)
    answers = enumerate(created.answers)
    conflicts = {place: one for place, one in answers if isinstance(one, TaskConflict)}
    if key is not None:
        in_part = 0 < created.inserted < len(new)
        if conflicts or in_part or _find(connection, [task_id_in_batch(key, len(new))]):
            raise BatchKeyReused(key)
    if conflicts:
        raise BatchConflict(conflicts)
    return [answer for answer in created.answers if not isinstance(answer, TaskConflict)]


def _create_or_find(connection: Connection, new: Sequence[NewTask]) -> Created:
    """Do what ``create_tasks`` does, and tell how many were inserted."""
    # Of several with one id the first is inserted; the others are compared with it.
    first = {task.task_id: task for task in reversed(new)}
    inserted: dict[str, TaskRow] = {}
    present: dict[str, TaskRow] = {}
    missing = list(first.values())
    # As a rule once. A task that another transaction deletes between the two statements is
    # neither inserted nor found: its id is free again.
    while missing:
        inserted |= _insert(connection, missing)
        present |= _find(
            connection, [task.task_id for task in missing if task.task_id not in inserted]
        )
        missing = [
            task for task in missing if task.task_id not in inserted and task.task_id not in present
        ]
    stored = inserted | present

    def answer(task: NewTask) -> TaskRow | TaskConflict:
        row = stored[task.task_id]
        is_ours = task is first[task.task_id] and task.task_id in inserted
        return row if is_ours or _is_as_wanted(row, task) else TaskConflict(task.task_id)

    return Created([answer(task) for task in new], len(inserted))


def _insert(connection: Connection, new: Iterable[NewTask]) -> dict[str, TaskRow]:
    """Insert those whose ids are free; return these, by their ids."""
    dialect = connection.dialect.name
    # In order: two batches with the same ids would else wait for each other.
    asked = [_members(task) for task in sorted(new, key=lambda task: task.task_id)]
    given = [members | _written_times(members, dialect) for members in asked]
    recurs = any("recurrence" in members for members in asked)
    statement = _INSERT[dialect, recurs]
    decided = _by_id(connection.execute(statement, {"given": strict_json.dumps(given)}))
    return {
        task_id: _UNSET | members | decided[task_id]
        for members in asked
        if (task_id := members["task_id"]) in decided
    }


def _find(connection: Connection, ids: Sequence[str]) -> dict[str, TaskRow]:
    if not ids:
        return {}
    return _by_id(connection.execute(select(*SHOWN).where(tasks.c.task_id.in_(ids))))


def _by_id(result: Result[Any]) -> dict[str, TaskRow]:
    names = tuple(result.keys())
    parts = result.partitions(FETCHED_AT_ONCE)
    rows = [dict(zip(names, row, strict=True)) for part in parts for row in part]
    return {row["task_id"]: row for row in rows}


def _members(task: NewTask) -> dict[str, Any]:
    """Return what is to be stored of a task; what it leaves out is not there."""
    wanted = task.wanted
    members = {
        name: value
        for name in wanted.model_fields_set - RECURRENCE_FIELDS
        if (value := getattr(wanted, name)) is not None
    }
    if (recurrence := wanted.recurrence) is not None:
        members |= {"recurrence": recurrence.as_document(), "run_count": 0}
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
    columns = (_MEMBERS.keys() | _OF_RECURRING.keys()) - {"task_id"}
    members = _members(task)
    return {name: members.get(name) for name in columns}


def _is_as_wanted(row: TaskRow, task: NewTask) -> bool:
    asked = _members(task)
    # A default is the release's own: it may have changed since the first request.
    free = _NOT_COMPARED if task.wanted.max_attempts else _NOT_COMPARED | {"max_attempts"}
    if "recurrence" in asked:
        free |= {"run_at"}  # It has moved on, perhaps.
    return all(
        strict_json.same(asked.get(name), row[name])
        if kind in ("json", "jsonb")
        else asked.get(name) == row[name]
        for name, kind in (_MEMBERS | {"recurrence": "json"}).items()
        if name not in free
    )


def _written_times(members: dict[str, Any], dialect: str) -> dict[str, str]:
    return {
        name: written(members[name], dialect)
        for name in ("run_at", "start_before", "retry_at")
        if name in members
    }


_MEMBERS = {
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
}
_OF_RECURRING = {"recurrence": "json", "run_count": "integer", "retry_at": "timestamptz"}
"""What only the statement for recurring tasks is given, too."""
_MODELS = {"webhook", "on_done", "on_failed"}
_NOT_COMPARED = {"task_id", "expects_handler"}
_UNSET = {column.name: None for column in SHOWN}
_DECIDED = {
    column.name: column.type
    for column in SHOWN
    if column.server_default is not None and column.name not in _MEMBERS
}
"""What the database alone decides."""


def _insert_statement(dialect: str, *, recurs: bool) -> Any:
    # WHERE true: SQLite would else take the ON for the condition of a join.
    columns = _MEMBERS | _OF_RECURRING if recurs else _MEMBERS
    names = ", ".join(columns)
    return batched(
        dialect,
        f"""INSERT INTO scheduled_tasks ({names})
        SELECT {names} FROM {given_rows(dialect, columns)} WHERE true
        ON CONFLICT DO NOTHING
        RETURNING CAST(task_id AS text) AS task_id, {", ".join(_DECIDED)}
        """,  # noqa: S608 (made of constants)
        {"task_id": tasks.c.task_id.type} | _DECIDED,
    )


_INSERT = {
    (dialect, recurs): _insert_statement(dialect, recurs=recurs)
    for dialect in NOW_SQL
    for recurs in (False, True)
}
