"""The statements that run again what has failed: one task, or many at a bounded rate."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal_column, select, update

from job_scheduler.constants import TaskStatus
from job_scheduler.core.columns import database_now, later_sql
from job_scheduler.core.filters import TaskFilter, conditions
from job_scheduler.core.schemas_replay import Replay
from job_scheduler.core.store import SHOWN, TaskRow, get_task, tasks
from job_scheduler.exceptions import TaskNotRetryable

_FORGOTTEN = (
    "result",
    "start_before",
    "claim_token",
    "instance_id",
    "started_at",
    "finished_at",
    "missed_at",
    "cancel_requested_at",
    "progress",
)


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many tasks are run again, and when the last one is due."""

    tasks: int
    until: datetime | None


def retry_task(connection: Connection, task_id: str) -> TaskRow:
    """Schedule a task that is failed or unknown once more, for now; return it.

    Raises:
        TaskNotFound: there is none.
        TaskNotRetryable: it has not ended, or is done.
    """
    again = (
        update(tasks)
        .where(tasks.c.task_id == task_id, tasks.c.status.in_(["failed", "unknown"]))
        .values(_scheduled_for(database_now()))
        .returning(*SHOWN)
    )
    row = connection.execute(again).one_or_none()
    if row is not None:
        return dict(row._mapping)
    raise TaskNotRetryable(task_id, TaskStatus(get_task(connection, task_id)["status"]))


def retry_tasks(connection: Connection, wanted: Replay, rate: float) -> Replayed:
    """Schedule tasks that have failed once more, `rate` a second from now on.

    The longest finished come first. What another transaction holds locked is left out.
    """
    failed = _conditions(wanted, connection.dialect.name)
    first = (tasks.c.finished_at, tasks.c.task_id)
    place = func.row_number().over(order_by=first) - 1
    chosen = (
        select(tasks.c.task_id, (place / rate).label("seconds"))
        .where(*failed)
        .order_by(*first)
        .limit(wanted.limit)
        .cte("chosen")
    )
    # In the order of their ids, as every statement about several tasks, so that no two deadlock.
    locked = (
        select(tasks.c.task_id, chosen.c.seconds)
        .join_from(chosen, tasks, tasks.c.task_id == chosen.c.task_id)
        .where(*failed)
        .order_by(tasks.c.task_id)
        .with_for_update(key_share=True, skip_locked=True, of=tasks)
        .cte("locked")
    )
    due: ColumnElement[Any] = literal_column(
        f"({later_sql(connection.dialect.name, 'locked.seconds')})"
    )
    again = (
        update(tasks)
        .where(tasks.c.task_id == locked.c.task_id)
        .values(_scheduled_for(due))
        .returning(tasks.c.retry_at)
    )
    moments = connection.scalars(again).all()
    return Replayed(len(moments), max((each for each in moments if each), default=None))


def count_retryable(connection: Connection, wanted: Replay) -> int:
    """Return how many tasks ``retry_tasks`` would schedule."""
    failed = _conditions(wanted, connection.dialect.name)
    found = select(tasks.c.task_id).where(*failed).limit(wanted.limit).subquery()
    return int(connection.execute(select(func.count()).select_from(found)).scalar_one())


def _scheduled_for(due: ColumnElement[Any]) -> dict[str, Any]:
    changes: dict[str, Any] = dict.fromkeys(_FORGOTTEN)
    return changes | {"status": "scheduled", "retry_at": due, "updated_at": database_now()}


def _conditions(wanted: Replay, dialect: str) -> Collection[ColumnElement[bool]]:
    failed = TaskFilter(
        status=[TaskStatus(status) for status in wanted.status],
        name=[] if wanted.name is None else [wanted.name],
        finished_after=wanted.finished_after,
        finished_before=wanted.finished_before,
    )
    return conditions(failed, dialect).values()
