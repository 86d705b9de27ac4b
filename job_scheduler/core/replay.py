"""The statements that run again what has failed: one task, or many at a bounded rate."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Text,
    cast,
    exists,
    func,
    literal_column,
    select,
    update,
)

from job_scheduler.constants import TaskStatus
from job_scheduler.core.columns import database_now, later_sql
from job_scheduler.core.filters import TaskFilter, conditions
from job_scheduler.core.schemas_replay import Replay
from job_scheduler.core.store import HAS_KEY, SHOWN, TaskRow, get_task, tasks
from job_scheduler.core.unique import one_of_a_key
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
        UniqueKeyTaken: another task has its unique_key by now.
    """
    again = (
        update(tasks)
        .where(tasks.c.task_id == task_id, tasks.c.status.in_(["failed", "unknown"]))
        .values(_scheduled_for(database_now()))
        .returning(*SHOWN)
    )
    with one_of_a_key(task_id):
        row = connection.execute(again).one_or_none()
    if row is not None:
        return dict(row._mapping)
    raise TaskNotRetryable(task_id, TaskStatus(get_task(connection, task_id)["status"]))


def retry_tasks(connection: Connection, wanted: Replay, rate: float) -> Replayed:
    """Schedule tasks that have failed once more, `rate` a second from now on.

    The longest finished come first. What another transaction holds locked is left out, and of
    those with one unique_key all but the last; likewise if another task has that key by now.

    Raises:
        UniqueKeyTaken: another task got such a key just now.
    """
    failed = _conditions(wanted, connection.dialect.name)
    chosen = _chosen(wanted, failed)
    # In the order of their ids, as every statement about several tasks, so that no two deadlock.
    locked = (
        select(tasks.c.task_id, (chosen.c.place / rate).label("seconds"))
        .join_from(chosen, tasks, tasks.c.task_id == chosen.c.task_id)
        .where(*failed, chosen.c.of_key == 1)
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
    with one_of_a_key("that is to be run again"):
        moments = connection.scalars(again).all()
    return Replayed(len(moments), max((each for each in moments if each), default=None))


def count_retryable(connection: Connection, wanted: Replay) -> int:
    """Return how many tasks ``retry_tasks`` would schedule."""
    chosen = _chosen(wanted, _conditions(wanted, connection.dialect.name))
    found = select(func.count()).select_from(chosen).where(chosen.c.of_key == 1)
    return int(connection.execute(found).scalar_one())


def _chosen(wanted: Replay, failed: Collection[ColumnElement[bool]]) -> CTE:
    """Return the tasks, each with its place, and with the how manieth from the last of its key."""
    first = (tasks.c.finished_at, tasks.c.task_id)
    key = func.coalesce(tasks.c.unique_key, cast(tasks.c.task_id, Text))
    last = [column.desc() for column in first]
    other = tasks.alias("other")
    taken = exists(
        select(1).select_from(other).where(other.c.unique_key == tasks.c.unique_key, HAS_KEY)
    )
    return (
        select(
            tasks.c.task_id,
            (func.row_number().over(order_by=first) - 1).label("place"),
            func.row_number().over(partition_by=key, order_by=last).label("of_key"),
        )
        .where(*failed, ~taken)
        .order_by(*first)
        .limit(wanted.limit)
        .cte("chosen")
    )


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
