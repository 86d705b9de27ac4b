"""Start-up: whether the service was down, and what becomes of the tasks that it missed.

An instance registers as ``starting``. If another one is alive, it joins it: nothing was
missed. Otherwise it makes itself ``recovering`` (one instance at a time can), treats what was
overdue when it started as ``RECOVER_PAST_TASKS`` says, and becomes ``alive``. Nobody claims
before that, since only instances that are alive may claim.
"""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, update

from job_scheduler.constants import InstanceState, RecoverPastTasks, TaskStatus
from job_scheduler.core import instances
from job_scheduler.core.instances import InstanceRow, Member
from job_scheduler.core.models import database_now
from job_scheduler.core.store import tasks
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.process import is_running

_logger = logging.getLogger(__name__)

_BATCH = 1_000
_POLL_SECONDS = 0.1
_FORGET_AFTER = timedelta(days=7)


async def start_up(
    database: Database, newcomer: Member, policy: RecoverPastTasks, lease: float
) -> None:
    """Let an instance that is ``starting`` take part; it is ``alive`` afterwards.

    It joins those that are alive, or else recovers. `lease` is in seconds.
    """
    watch = Watch(newcomer.process, lease, asyncio.get_running_loop().time)
    announced = False
    while (state := await database.write(elect, newcomer, watch)) is InstanceState.Starting:
        if not announced:
            _logger.info("waiting up to %g s to see whether other instances are alive", lease)
        announced = True
        await asyncio.sleep(_POLL_SECONDS)
    if state is InstanceState.Alive:
        _logger.info("joined other instances: nothing to recover")
        return
    await recover(database, newcomer.instance_id, policy)
    await database.write(
        instances.move, newcomer.instance_id, [InstanceState.Recovering], InstanceState.Alive
    )
    await database.write(instances.forget_long_dead, _FORGET_AFTER)


def elect(connection: Connection, newcomer: Member, watch: Watch) -> InstanceState:
    """Draw the conclusion from what the others are doing; return the newcomer's state after it."""
    instances.serialize_election(connection)
    view = watch.look(instances.others(connection, newcomer.instance_id))
    instances.bury(connection, view.dead)
    # A process of this very host need not be seen to beat.
    here = [other for other in view.undecided if is_running(other.process, newcomer.process)]
    state = _conclusion(view.living + here, view.undecided)
    if state is not InstanceState.Starting:
        instances.move(connection, newcomer.instance_id, [InstanceState.Starting], state)
    return state


def _conclusion(living: list[InstanceRow], undecided: list[InstanceRow]) -> InstanceState:
    if any(other.state is InstanceState.Alive for other in living):
        return InstanceState.Alive
    # Others that are starting draw their own conclusion after this one, and see it.
    if any(other.state is not InstanceState.Starting for other in living + undecided):
        return InstanceState.Starting
    return InstanceState.Recovering


async def recover(database: Database, instance_id: str, policy: RecoverPastTasks) -> int:
    """Treat the tasks that were overdue when this instance started; return how many there were.

    `run` leaves them to the sweep, `fail` marks them failed, `skip` sets them aside
    (``missed_at``) with status and result unchanged. Repeating it changes nothing.
    """
    started, last = await database.read(_downtime, instance_id)
    if policy is RecoverPastTasks.Run:
        count = await database.read(_count_overdue, started)
    else:
        values = _treatment(policy, started, last)
        count = 0
        while treated := await database.write(_treat_batch, started, values):
            count += treated
            if treated == _BATCH:
                _logger.info("recovery (%s): %d overdue tasks so far", policy.value, count)
    _logger.info("recovery (%s): %d tasks were overdue at the start", policy.value, count)
    return count


def _downtime(connection: Connection, instance_id: str) -> tuple[datetime, datetime | None]:
    """Return when this instance started and when another one was last known to live."""
    return (
        instances.started_at(connection, instance_id),
        instances.last_heartbeat(connection, instance_id),
    )


def _treatment(
    policy: RecoverPastTasks, started: datetime, last: datetime | None
) -> dict[str, Any]:
    if policy is RecoverPastTasks.Skip:
        return {"missed_at": database_now(), "updated_at": database_now()}
    period = f"from {_seconds(last)} to" if last else "until"
    return {
        "status": TaskStatus.Failed.value,
        "result": f"missed: the service was down {period} {_seconds(started)}",
        "finished_at": database_now(),
        "updated_at": database_now(),
    }


def _overdue(started: datetime) -> list[Any]:
    return [
        tasks.c.status == TaskStatus.Scheduled.value,
        tasks.c.missed_at.is_(None),
        func.coalesce(tasks.c.retry_at, tasks.c.run_at) < started,
    ]


def _count_overdue(connection: Connection, started: datetime) -> int:
    return connection.execute(
        select(func.count()).select_from(tasks).where(*_overdue(started))
    ).scalar_one()


def _treat_batch(connection: Connection, started: datetime, values: dict[str, Any]) -> int:
    batch = select(tasks.c.task_id).where(*_overdue(started)).limit(_BATCH)
    treated = connection.execute(
        update(tasks).where(tasks.c.task_id.in_(batch), *_overdue(started)).values(**values)
    )
    return treated.rowcount


def _seconds(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds").replace("+00:00", "Z")
