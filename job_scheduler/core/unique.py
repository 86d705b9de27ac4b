"""What becomes of a request whose `unique_key` another task has, that has not ended yet.

That no two such tasks exist at a time is the database's own doing: a unique index.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from job_scheduler.constants import WAITING, OnConflict, TaskStatus
from job_scheduler.core.models import UNIQUE_INDEX
from job_scheduler.core.new_task import NewTask, changed_members
from job_scheduler.core.recurring import keeps_time, refusal_of_runs
from job_scheduler.core.store import HAS_KEY, SHOWN, TaskRow, tasks, update_task
from job_scheduler.exceptions import Refusal, UniqueKeyTaken

_OF_TIME = ("run_at", "retry_at", "recurrence", "start_before")
_ANEW = {"attempt": 0, "missed_at": None, "blocked_by": None, "result": None}
"""What begins anew with another time."""


def settle(connection: Connection, new: Sequence[NewTask]) -> dict[str, TaskRow | Refusal]:
    """Do what each request asks for with the task that has its key; return that, by the new id.

    A request whose key nobody has any more is left out.
    """
    settled: dict[str, TaskRow | Refusal] = {}
    holders = _holders(connection, [task.wanted.unique_key for task in new])
    for task in new:
        if (row := holders.get(task.wanted.unique_key)) is not None:
            settled[task.task_id] = answer = _settle(connection, row, task)
            if not isinstance(answer, Refusal):
                holders[task.wanted.unique_key] = answer
    return settled


@contextmanager
def one_of_a_key(task_id: str) -> Iterator[None]:
    """Tell the violation of the unique index, by a change to this task, from other failures.

    Raises:
        UniqueKeyTaken: another task has the key, and has not ended.
    """
    try:
        yield
    except IntegrityError as error:
        # As PostgreSQL and as SQLite say it.
        if not any(
            name in str(error.orig) for name in (UNIQUE_INDEX, "scheduled_tasks.unique_key")
        ):
            raise
        raise UniqueKeyTaken.again(task_id) from error


def _holders(connection: Connection, keys: Sequence[str | None]) -> dict[str | None, TaskRow]:
    """Return the tasks that have these keys, by them; nobody else changes them meanwhile."""
    if not keys:
        return {}
    found = connection.execute(
        select(*SHOWN)
        .where(tasks.c.unique_key.in_(keys), HAS_KEY)
        .order_by(tasks.c.task_id)
        .with_for_update(key_share=True)
    )
    return {row.unique_key: dict(row._mapping) for row in found}


def _settle(connection: Connection, row: TaskRow, task: NewTask) -> TaskRow | Refusal:
    wanted = task.wanted
    asked = wanted.on_conflict
    if asked is OnConflict.Return:
        return row
    if asked is OnConflict.Reject or row["status"] not in WAITING:
        status = TaskStatus(row["status"])
        return UniqueKeyTaken.by(row["task_id"], status, row["unique_key"], asked)
    changes = changed_members(task)
    if asked is OnConflict.Reschedule:
        changes = {name: changes[name] for name in _OF_TIME}
    if keeps_time(changes, row):
        if (refusal := refusal_of_runs(changes["recurrence"], row["run_count"] or 0)) is not None:
            return refusal
        del changes["run_at"], changes["retry_at"]
        changes.pop("run_count", None)
    else:
        changes |= _ANEW | {"run_count": None if changes["recurrence"] is None else 0}
    return update_task(connection, row["task_id"], changes)
