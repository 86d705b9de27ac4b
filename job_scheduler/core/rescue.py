"""What happens to the runs of an instance that has died."""

from sqlalchemy import Connection, exists, select, update

from job_scheduler.constants import InstanceState, TaskStatus
from job_scheduler.core.instances import instances
from job_scheduler.core.models import database_now
from job_scheduler.core.store import tasks
from job_scheduler.database import Database

_BATCH = 1_000
_REASON = (
    "interrupted: the process that ran it ended before it finished. "
    "Whether its work was done is not known."
)


async def fail_interrupted(database: Database) -> int:
    """Mark ``failed`` the running tasks whose instance is dead; return how many there were."""
    total = 0
    while failed := await database.write(_fail_batch):
        total += failed
    return total


def _fail_batch(connection: Connection) -> int:
    living = exists().where(
        instances.c.instance_id == tasks.c.instance_id,
        instances.c.state != InstanceState.Dead.value,
    )
    running = tasks.c.status == TaskStatus.Running.value
    orphans = (
        select(tasks.c.task_id)
        .where(running, ~living)
        .order_by(tasks.c.task_id)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    failed = connection.execute(
        update(tasks)
        .where(tasks.c.task_id.in_(orphans), running, ~living)
        .values(
            status=TaskStatus.Failed.value,
            result=_REASON,
            finished_at=database_now(),
            updated_at=database_now(),
        )
    )
    return failed.rowcount
