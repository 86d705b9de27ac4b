"""Retention of attempts: those of recurring tasks, which go on for years, are removed by their age.

Those of any other task go with it. A claim's token tells when it was made (UUIDv7), so that the
old ones of a task are a range of the primary key.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import cast

from sqlalchemy import Connection, Table, delete, select, tuple_

from job_scheduler.constants import TaskStatus
from job_scheduler.core.columns import database_time
from job_scheduler.core.models import TaskRun
from job_scheduler.core.store import tasks
from job_scheduler.identifiers import least_claim_token

runs = cast("Table", TaskRun.__table__)

Key = tuple[str, str]
"""A task's id, and the claim's token."""


def age_of_runs(ages: Mapping[TaskStatus, timedelta]) -> timedelta | None:
    """Return for how long attempts are kept: as the longer of done and failed tasks; None: for
    ever.
    """
    done, failed = ages.get(TaskStatus.Done), ages.get(TaskStatus.Failed)
    return max(done, failed) if done is not None and failed is not None else None


def old_runs(connection: Connection, age: timedelta, limit: int) -> Sequence[Key]:
    """Return up to `limit` attempts of recurring tasks that ended longer ago than `age`.

    The last attempt of a task stays: it tells how the task does.
    """
    before = database_time(connection) - age
    others = runs.alias()
    newest = (
        select(others.c.claim_token)
        .where(others.c.task_id == runs.c.task_id)
        .order_by(others.c.claim_token.desc())
        .limit(1)
        .scalar_subquery()
    )
    found = connection.execute(
        select(runs.c.task_id, runs.c.claim_token)
        .join(tasks, tasks.c.task_id == runs.c.task_id)
        .where(
            tasks.c.recurrence.is_not(None),
            runs.c.claim_token < least_claim_token(before),
            runs.c.finished_at < before,
            runs.c.claim_token != newest,
        )
        .limit(limit)
    )
    return [(task_id, token) for task_id, token in found]


def remove_runs(connection: Connection, keys: Sequence[Key]) -> None:
    """Remove these attempts."""
    connection.execute(delete(runs).where(tuple_(runs.c.task_id, runs.c.claim_token).in_(keys)))
