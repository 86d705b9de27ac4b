"""The statement that shows a task's attempts."""

from typing import Any

from sqlalchemy import Connection, case, literal, null, select, union_all

from job_scheduler.constants import TaskStatus
from job_scheduler.core.claims import DUE
from job_scheduler.core.records import task_runs
from job_scheduler.core.store import tasks
from job_scheduler.exceptions import TaskNotFound

RUNNING = "running"
"""The outcome that is shown for an attempt which has none yet."""

RunRow = dict[str, Any]


def list_runs(connection: Connection, task_id: str, limit: int) -> list[RunRow]:
    """Return a task's last attempts, the oldest first, that which is under way included.

    An attempt enters `task_runs` when it ends; until then it is known by the task's row. Both
    are read by one statement, hence at one instant: an attempt that ends in between is neither
    shown twice nor missed.

    Raises:
        TaskNotFound: there is no such task.
    """
    ended = select(
        task_runs.c.attempt,
        task_runs.c.scheduled_for,
        task_runs.c.started_at,
        task_runs.c.finished_at,
        task_runs.c.outcome,
        task_runs.c.result,
        task_runs.c.traceback,
        task_runs.c.instance_id,
    ).where(task_runs.c.task_id == task_id)
    # The task's row is there for any task: without an outcome, it only says that there is one.
    present = select(
        tasks.c.attempt,
        DUE,
        tasks.c.started_at,
        null(),
        case((tasks.c.status == TaskStatus.Running.value, literal(RUNNING))),
        null(),
        null(),
        tasks.c.instance_id,
    ).where(tasks.c.task_id == task_id)
    last = ended.order_by(task_runs.c.started_at.desc(), task_runs.c.attempt.desc()).limit(limit)
    rows = connection.execute(
        union_all(select(last.subquery()), present).order_by("started_at", "attempt")
    ).mappings()
    found = [dict(row) for row in rows]
    if not found:
        raise TaskNotFound(task_id)
    return [row for row in found if row["outcome"] is not None][-limit:]
