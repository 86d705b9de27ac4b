"""The statements by which a person changes a task that is not running: pause, resume, run, alter.

Each locks the task's row first. So whoever starts the task at this moment comes before, and the
person is told that it is too late; or after, and finds what the person wanted.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from job_scheduler.constants import WAITING, RecoverPastTasks, TaskStatus
from job_scheduler.core.columns import database_now, database_time
from job_scheduler.core.recurring import COPIED, moved_to, occurrence_at, readable
from job_scheduler.core.store import SHOWN, TaskRow, tasks, update_task
from job_scheduler.core.unique import one_of_a_key
from job_scheduler.exceptions import (
    TaskChangedMeanwhile,
    TaskNotChangeable,
    TaskNotFound,
    TaskNotPausable,
    TaskNotResumable,
    TaskNotRunnable,
    WrongState,
)


def etag_of(row: Mapping[str, Any]) -> str:
    """Return a task's version as an entity tag (RFC 9110, section 8.8.3): another one as soon as
    anything shows of the task that did not.
    """
    shown = {name: _comparable(value) for name, value in row.items()}
    return f'"{hashlib.blake2b(json.dumps(shown).encode(), digest_size=12).hexdigest()}"'


def _comparable(value: Any) -> Any:
    """Return a column's value in one form: SQLite's driver may bring 30 or 30.0 for the same."""
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if isinstance(value, int) else value


def pause_task(connection: Connection, task_id: str) -> TaskRow:
    """Keep a task that is scheduled from starting; one that is paused already stays so.

    Raises:
        TaskNotFound: there is none.
        TaskNotPausable: it is running, or has finished.
    """
    row = _locked(connection, task_id, TaskNotPausable, *WAITING)
    if row["status"] == TaskStatus.Paused:
        return row
    return update_task(connection, task_id, {"status": TaskStatus.Paused.value, "blocked_by": None})


def resume_task(connection: Connection, task_id: str) -> TaskRow:
    """Let a task that is paused start again; one that is scheduled already stays so.

    A recurring one goes on with the next of its times. Another one whose time has passed is due.

    Raises:
        TaskNotFound: there is none.
        TaskNotResumable: it is running, or has finished.
    """
    row = _locked(connection, task_id, TaskNotResumable, *WAITING)
    if row["status"] == TaskStatus.Scheduled:
        return row
    changes: dict[str, Any] = {"status": TaskStatus.Scheduled.value, "missed_at": None}
    now = database_time(connection)
    if row["recurrence"] is not None and row["run_at"] < now:
        changes |= _moved_on(row, now)
    return update_task(connection, task_id, changes)


def run_task_now(connection: Connection, task_id: str) -> TaskRow:
    """Make a task due at once: it, or for a recurring one a copy that runs once; return that.

    Raises:
        TaskNotFound: there is none.
        TaskNotRunnable: it is running and does not recur, or has finished.
    """
    row = _locked(connection, task_id, TaskNotRunnable, *WAITING, TaskStatus.Running)
    if row["recurrence"] is not None:
        copied = select(*COPIED, database_now(), tasks.c.task_id).where(tasks.c.task_id == task_id)
        columns = [*COPIED, tasks.c.run_at, tasks.c.caused_by]
        copy = insert(tasks).from_select(columns, copied).returning(*SHOWN)
        return dict(connection.execute(copy).one()._mapping)
    if row["status"] == TaskStatus.Running:
        raise TaskNotRunnable(task_id, TaskStatus.Running)
    now = database_time(connection)
    return update_task(
        connection,
        task_id,
        {
            "status": TaskStatus.Scheduled.value,
            "retry_at": now if (row["retry_at"] or row["run_at"]) > now else row["retry_at"],
            "missed_at": None,
        },
    )


def change_task(
    connection: Connection,
    task_id: str,
    change: Callable[[TaskRow], dict[str, Any]],
    versions: Collection[str] | None,
) -> TaskRow:
    """Change a task that is scheduled or paused: `change` returns the columns' new values.

    Raises:
        TaskNotFound: there is none.
        TaskChangedMeanwhile: it is not at one of these `versions`, if they are given. They are
            entity tags, of which weak ones never match (RFC 9110, section 13.1.1).
        TaskNotChangeable: it is running, or has finished.
        UniqueKeyTaken: another task has the key that it is to get.
    """
    row = _locked(connection, task_id, None)
    if versions is not None and etag_of(row) not in versions:
        raise TaskChangedMeanwhile(task_id, versions)
    if row["status"] not in WAITING:
        raise TaskNotChangeable(task_id, TaskStatus(row["status"]))
    with one_of_a_key(task_id):
        return update_task(connection, task_id, change(row))


def _moved_on(row: TaskRow, now: datetime) -> dict[str, Any]:
    """Return what makes a recurring task wait for the next of its times.

    Where there is none, it is set aside: its last time is not run after the end.
    """
    recurrence = readable(row["task_id"], row["recurrence"])
    if recurrence is None:
        return {}
    run_at = recurrence.after_downtime(row["run_at"], now, RecoverPastTasks.Skip)
    return moved_to(occurrence_at(row["task_id"], recurrence, run_at), now)


def _locked(
    connection: Connection,
    task_id: str,
    too_late: type[WrongState] | None,
    *allowed: TaskStatus,
) -> TaskRow:
    """Return a task, whose row nobody else changes until the transaction ends."""
    wanted = select(*SHOWN).where(tasks.c.task_id == task_id).with_for_update(key_share=True)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    if too_late is not None and row.status not in allowed:
        raise too_late(task_id, TaskStatus(row.status))
    return dict(row._mapping)
