"""The rows of recurring tasks: which occurrence follows, and how those of a downtime are passed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, text, update

from job_scheduler.constants import RecoverPastTasks, TaskStatus
from job_scheduler.core.claims import Run
from job_scheduler.core.columns import database_now, database_time
from job_scheduler.core.downtime import Downtime
from job_scheduler.core.models import DUE_WHERE
from job_scheduler.core.overdue import BATCH, send_failed_hooks
from job_scheduler.core.recurrence import Recurrence
from job_scheduler.core.store import DUE_AT, TaskRow, tasks
from job_scheduler.exceptions import InvalidField

_logger = logging.getLogger(__name__)


COPIED = [
    tasks.c[name]
    for name in (
        *("name", "payload", "webhook", "command", "expects_handler", "timeout"),
        *("max_attempts", "on_crash", "retry_delay", "retry_max_delay"),
        *("on_done", "on_failed", "priority", "concurrency_key", "max_running", "tags"),
    )
]
"""What an extra run of a recurring task, which is a task of its own, has of it."""

_OF_TIME = ("cron", "interval_seconds", "timezone", "start_at", "dst_gap", "dst_fold")
"""What of a recurrence decides when it is."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An occurrence of a recurring task: its time, and when it starts if not then."""

    run_at: datetime
    starts_at: datetime | None


@dataclass(frozen=True, slots=True)
class Passed:
    """How many recurring tasks a downtime has overtaken, of a batch; and the last one's id."""

    tasks: int
    last_id: str | None


def following_of(run: Run, now: datetime) -> Occurrence | None:
    """Return the occurrence that comes after this one, which has ended; None: it was the last."""
    recurrence = readable(run.task_id, run.recurrence)
    if recurrence is None:
        return None
    runs = (run.run_count or 0) + 1
    return occurrence_at(
        run.task_id, recurrence, recurrence.following(run.run_at, run.started_at, now, runs)
    )


def readable(task_id: str, document: Any) -> Recurrence | None:
    """Return the recurrence as it is stored; None, and a word in the log, if nobody can read it."""
    try:
        return Recurrence.of(document)
    except ValueError as error:
        _logger.warning("task %s: its recurrence cannot be read (%s): it ends here", task_id, error)
        return None


def pass_missed(
    connection: Connection,
    overdue_at: datetime,
    policy: RecoverPastTasks,
    down: Downtime,
    after: str | None,
) -> Passed:
    """Move recurring tasks on that were overdue at `overdue_at`: to the occurrence that is next by
    `policy` and their ``catch_up``. Up to `BATCH` of them, those after the id `after`.

    Under `fail` the missed ones have failed, since the service was `down`. So has, under any policy
    but `run`, one that was to be repeated: it counts as a run. A task that has no occurrence any
    more is failed if the last one has, and else set aside (``missed_at``).
    """
    overdue = (
        select(*(tasks.c[name] for name in _READ))
        .where(text(DUE_WHERE), overdue_at > DUE_AT, tasks.c.recurrence.is_not(None))
        .order_by(tasks.c.task_id)
        .limit(BATCH)
        .with_for_update(key_share=True)
    )
    rows = connection.execute(
        overdue if after is None else overdue.where(tasks.c.task_id > after)
    ).all()
    if not rows:
        return Passed(0, None)
    now = database_time(connection)
    passed = [
        (row, occurrence, _failure(row, policy, down))
        for row, occurrence in _passed(rows, policy, now)
    ]
    for row, occurrence, failure in passed:
        # Nobody else changes it meanwhile: its row is locked.
        which = update(tasks).where(tasks.c.task_id == row.task_id)
        connection.execute(which.values(_passing(row, occurrence, failure, now)))
    send_failed_hooks(connection, [(row, failure) for row, _, failure in passed if failure])
    return Passed(len(passed), rows[-1].task_id)


_READ = (
    *("task_id", "name", "run_at", "recurrence"),
    *("attempt", "run_count", "on_failed"),
)


def _failure(row: Row[Any], policy: RecoverPastTasks, down: Downtime) -> str | None:
    """Return why an occurrence that is passed has failed; None: it was not run, and has not."""
    if row.attempt:
        return down.gives_up(row.attempt)
    return down.result if policy is RecoverPastTasks.Fail else None


def _passing(
    row: Row[Any], occurrence: Occurrence | None, failure: str | None, now: datetime
) -> dict[str, Any]:
    """Return the columns of a task whose occurrence is passed, and has failed if it is said why."""
    changes: dict[str, Any] = {"updated_at": database_now(), "run_count": _runs(row)}
    if failure is None:
        return changes | moved_to(occurrence, now)
    changes |= {"result": failure, "last_status": TaskStatus.Failed.value}
    if occurrence is None:
        return changes | {"status": TaskStatus.Failed.value, "finished_at": database_now()}
    return changes | moved_to(occurrence, now)


def _runs(row: Row[Any]) -> int:
    """Return how many runs a task has had when its occurrence is passed: what has begun counts."""
    return (row.run_count or 0) + bool(row.attempt)


def _passed(
    rows: Sequence[Row[Any]], policy: RecoverPastTasks, now: datetime
) -> Iterator[tuple[Row[Any], Occurrence | None]]:
    """Return those that do not stay as they are, each with its next occurrence, if there is one."""
    for row in rows:
        recurrence = readable(row.task_id, row.recurrence)
        if recurrence is None:
            continue
        if policy is RecoverPastTasks.Run and row.attempt:
            continue  # It has begun in time: what was missed is a repetition.
        run_at = recurrence.after_downtime(row.run_at, now, policy)
        if row.attempt and recurrence.max_runs is not None and _runs(row) >= recurrence.max_runs:
            run_at = None
        if run_at != row.run_at:
            yield row, occurrence_at(row.task_id, recurrence, run_at)


def keeps_time(members: Mapping[str, Any], row: TaskRow) -> bool:
    """Tell whether a task is to run at the same times as before."""
    wanted, present = members["recurrence"], row["recurrence"]
    if wanted is None or present is None:
        return wanted is present and bool(members["run_at"] == row["run_at"])
    before, after = readable(row["task_id"], present), Recurrence.of(wanted)
    if before is None or (after.end_at is not None and after.end_at < row["run_at"]):
        return False
    return all(getattr(before, name) == getattr(after, name) for name in _OF_TIME)


def refusal_of_runs(recurrence: Mapping[str, Any] | None, run_count: int) -> InvalidField | None:
    """Return why a task that has run `run_count` times does not get this recurrence, if so: it
    allows no more.
    """
    max_runs = None if recurrence is None else recurrence.get("max_runs")
    if max_runs is None or max_runs > run_count:
        return None
    return InvalidField(
        "body", "max_runs", f"It has run {run_count} times already. Allow more, or cancel it."
    )


def moved_to(occurrence: Occurrence | None, now: datetime) -> dict[str, Any]:
    """Return the columns of a task that waits for an occurrence, or that is set aside: there is
    none.
    """
    if occurrence is None:
        return {"missed_at": now}
    return {"run_at": occurrence.run_at, "retry_at": occurrence.starts_at, "attempt": 0}


def occurrence_at(
    task_id: str, recurrence: Recurrence, run_at: datetime | None
) -> Occurrence | None:
    """Return a task's occurrence of this time, if there is one."""
    return None if run_at is None else Occurrence(run_at, recurrence.starts_at(task_id, run_at))
