"""The statement that creates tasks: any number of them in one INSERT.

The tasks are passed as one JSON parameter, so that the statement's text never changes and the
database takes them apart. Asked back is only what the database itself decides.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Result, select

from job_scheduler import strict_json
from job_scheduler.batch_exceptions import BatchConflict, BatchKeyReused, InvalidBatch
from job_scheduler.core.columns import NOW_SQL
from job_scheduler.core.given import batched, given_rows
from job_scheduler.core.new_task import (
    MEMBERS,
    OF_RECURRING,
    NewTask,
    is_as_wanted,
    members_of,
    written,
)
from job_scheduler.core.store import FETCHED_AT_ONCE, SHOWN, TaskRow, tasks
from job_scheduler.core.unique import settle
from job_scheduler.exceptions import InvalidField, Refusal, TaskConflict, UniqueKeyTaken
from job_scheduler.identifiers import task_id_in_batch


@dataclass(frozen=True, slots=True)
class Created:
    """What became of new tasks: an answer for each, in their order, and which were inserted."""

    answers: list[TaskRow | Refusal]
    inserted: Set[str]
    settled: int
    """For how many the answer is another task, which has their unique_key."""


def create_tasks(connection: Connection, new: Sequence[NewTask]) -> list[TaskRow | Refusal]:
    """Insert tasks; return, in the same order, each as stored.

    A task whose id exists already is not inserted again: the answer is the present one when
    it was made by the same request, else ``TaskConflict``. For one whose `unique_key` another task
    has, perhaps one before it here, its `on_conflict` decides: the answer is that task, or why it
    does not become this one.
    """
    return create_or_find(connection, new).answers


def create_all(connection: Connection, new: Sequence[NewTask], key: str | None) -> list[TaskRow]:
    """Insert all of these tasks or none; return each as stored, as ``create_tasks`` does.

    With a `key`, they are the whole of what was, or is now, made under it.

    Raises:
        BatchConflict: some exist already, made by other requests, or their unique_key is taken.
        BatchKeyReused: the key belongs to other tasks, or to more of them, or to less.
        InvalidBatch: tasks that have their unique_key cannot become what is asked for.
    """
    created = create_or_find(connection, new)
    answers = list(enumerate(created.answers))
    conflicts = {place: one for place, one in answers if isinstance(one, TaskConflict)}
    invalid = {place: one for place, one in answers if isinstance(one, InvalidField)}
    if key is not None:
        taken = sum(isinstance(one, UniqueKeyTaken) for one in conflicts.values())
        refused = taken + len(invalid)
        in_part = 0 < len(created.inserted) < len(new) - refused - created.settled
        is_other = len(conflicts) > taken
        if is_other or in_part or _find(connection, [task_id_in_batch(key, len(new))]):
            raise BatchKeyReused(key)
    if invalid:
        raise InvalidBatch(invalid)
    if conflicts:
        raise BatchConflict(conflicts)
    return [answer for answer in created.answers if not isinstance(answer, Refusal)]


def create_or_find(connection: Connection, new: Sequence[NewTask]) -> Created:
    """Do what ``create_tasks`` does, and tell which were inserted."""
    # Of several with one id the first is inserted; the others are compared with it.
    first = {task.task_id: task for task in reversed(new)}
    inserted: dict[str, TaskRow] = {}
    present: dict[str, TaskRow] = {}
    missing = [task for task in new if first[task.task_id] is task]
    settled: dict[str, TaskRow | Refusal] = {}
    # As a rule once. A task that another transaction deletes between the statements, or whose
    # unique_key gets free, is not inserted and nothing is found in its place: it is tried again.
    while missing:
        inserted |= _insert(connection, _first_of_each_key(missing))
        missing = [task for task in missing if task.task_id not in inserted]
        present |= _find(connection, [task.task_id for task in missing])
        missing = [task for task in missing if task.task_id not in present]
        settled |= settle(connection, [task for task in missing if task.wanted.unique_key])
        missing = [task for task in missing if task.task_id not in settled]
    stored = inserted | present

    def answer(task: NewTask) -> TaskRow | Refusal:
        if task.task_id in settled:
            return settled[task.task_id]
        row = stored[task.task_id]
        is_ours = task is first[task.task_id] and task.task_id in inserted
        return row if is_ours or is_as_wanted(row, task) else TaskConflict(task.task_id)

    kept = sum(not isinstance(one, Refusal) for one in settled.values())
    return Created([answer(task) for task in new], inserted.keys(), kept)


def _first_of_each_key(new: Sequence[NewTask]) -> list[NewTask]:
    """Leave out those whose unique_key another one has that comes before."""
    first = {task.wanted.unique_key: task for task in reversed(new)}
    return [
        task
        for task in new
        if task.wanted.unique_key is None or first[task.wanted.unique_key] is task
    ]


def _insert(connection: Connection, new: Iterable[NewTask]) -> dict[str, TaskRow]:
    """Insert those whose ids are free; return these, by their ids."""
    dialect = connection.dialect.name
    # In order: two batches with the same ids would else wait for each other.
    asked = [members_of(task) for task in sorted(new, key=lambda task: task.task_id)]
    given = [written(members, dialect) for members in asked]
    recurs = any("recurrence" in members for members in asked)
    statement = _INSERT[dialect, recurs]
    decided = _by_id(connection.execute(statement, {"given": strict_json.dumps(given)}))
    for members in asked:
        del members["expects_handler"]  # It is not shown.
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


_UNSET = {column.name: None for column in SHOWN}
_DECIDED = {
    column.name: column.type
    for column in SHOWN
    if column.server_default is not None and column.name not in MEMBERS
}
"""What the database alone decides."""


def _insert_statement(dialect: str, *, recurs: bool) -> Any:
    # WHERE true: SQLite would else take the ON for the condition of a join.
    columns = MEMBERS | OF_RECURRING if recurs else MEMBERS
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
