"""The rescue: what happens to the runs of an instance that has died, and to runs of nobody.

Every instance watches the others. Who finds one dead marks it so, which ends its claims, and
then deals with its runs as each task's ``on_crash`` says, by the same guarded record with which
a run is ended: whoever comes second changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, exists, select

from job_scheduler.constants import InstanceState, RunOutcome, TaskStatus
from job_scheduler.core import instances
from job_scheduler.core.claims import RUN_COLUMNS, Claim, Run, run_of
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.outcomes import CutOff, NotStarted, Outcome
from job_scheduler.core.records import Record, record
from job_scheduler.core.store import tasks
from job_scheduler.core.tasks import RunsUnderWay
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable

_logger = logging.getLogger(__name__)

_INTERVAL = 0.5
_RECONCILE_SECONDS = 5.0
_BATCH = 500
_BEFORE_ALL = "00000000-0000-0000-0000-000000000000"
CRASHED = CutOff(
    "interrupted: the process that ran it ended, or was silent for too long, before it "
    "finished. Whether its work was done is not known.",
    RunOutcome.Crashed,
)
_UNRECORDED = CutOff("interrupted: how it ended could not be stored; the service's log says why.")


class Rescue:
    """Watches the others, and deals with the runs that have nobody (`lease` is in seconds).

    `release` gives a lock back, by the task's id and the claim's token. `cut_off` is called when
    this instance itself may have been taken for dead, to end those of its runs that may be
    repeated elsewhere.
    """

    def __init__(
        self,
        database: Database,
        heartbeat: Heartbeat,
        under_way: RunsUnderWay,
        lease: float,
        monotonic: Callable[[], float],
        cut_off: Callable[[str, Callable[[Claim], bool]], None],
        release: Callable[[str, str], None],
    ) -> None:
        self._database = database
        self._heartbeat = heartbeat
        self._under_way = under_way
        self._lease = lease
        self._monotonic = monotonic
        self._cut_off = cut_off
        self._release = release
        self._watch = Watch(heartbeat.member.process, lease, monotonic)
        self._own_id = heartbeat.instance_id
        self._suspects: set[str] = set()
        self._reconciled_at = monotonic()
        self._hopeless: set[str] = set()

    async def run(self) -> None:
        """Take a step twice a second, for ever; an outage of the database is waited out."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                self.look_at_own_lease()
                await self.step()
            except DatabaseUnavailable:
                # The sweep logs it. What was seen before an outage says nothing after it.
                self._watch.start_again()
            except Exception:
                _logger.exception("a look at the other instances failed; the next one follows")

    async def step(self) -> int:
        """Look at the others once; return how many runs were rescued.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        others = await self._database.read(instances.others, self._heartbeat.instance_id)
        if dead := self._watch.look(others).dead:
            buried = await self._database.write(instances.bury, dead)
            _logger.warning("instances found dead: %s", ", ".join(buried) or "none after all")
        if self._monotonic() - self._reconciled_at >= _RECONCILE_SECONDS:
            self._reconciled_at = self._monotonic()
            await self.reconcile()
        return await rescue_orphans(self._database, self._release, self._hopeless)

    def look_at_own_lease(self) -> None:
        """End what may be repeated elsewhere when this instance may count as dead.

        What it has claimed under a new id since is its own, and stays.
        """
        own_id = self._heartbeat.instance_id
        if own_id != self._own_id:
            self._own_id = own_id
            self._cut_off(
                "interrupted: the other instances had taken this one for dead",
                lambda claim: claim.max_attempts > 1 and claim.instance_id != own_id,
            )
        elif self._heartbeat.silent_for() > self._lease:
            self._cut_off(
                "interrupted: the database was away for longer than the lease",
                lambda claim: claim.max_attempts > 1,
            )

    async def reconcile(self) -> int:
        """Give back what this instance has claimed and knows nothing of; return how much.

        That comes of a claim which the database carried out long after it was given up. What
        is unknown at two looks, and was not called in between, never started.
        """
        runs = await self._database.read(_running_of, self._heartbeat.instance_id)
        unknown = {run.token: run for run in runs if run.token not in self._under_way}
        abandoned = [run for token, run in unknown.items() if token in self._suspects]
        self._suspects = unknown.keys() - {run.token for run in abandoned}
        for run in abandoned:
            unrecorded = self._under_way.is_unrecorded(run.token)
            outcome: Outcome = _UNRECORDED if unrecorded else NotStarted()
            self._release(run.task_id, run.token)
            await self._database.write(record, [Record.of(run, outcome)])
            _logger.warning("task %s was running here and nobody knew of it", run.task_id)
        return len(abandoned)


async def rescue_orphans(
    database: Database, release: Callable[[str, str], None], hopeless: set[str] | None = None
) -> int:
    """Deal with the runs of dead instances, as each task's on_crash says; return how many.

    Their locks are given back by `release`, so that they can be repeated at once.
    A row that cannot be dealt with does not hold up those after it; it is logged, and noted in
    `hopeless`, so that it is logged once.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    hopeless = set() if hopeless is None else hopeless
    rescued, after = 0, _BEFORE_ALL
    while orphans := await database.read(_orphans, after):
        after = orphans[-1].task_id
        # Of a pattern nothing has begun: its record makes the task that does.
        records = [Record.of(run, NotStarted() if run.is_pattern else CRASHED) for run in orphans]
        for run in orphans:
            release(run.task_id, run.token)
        try:
            rescued += sum(await database.write(record, records, skip_locked=True))
        except DatabaseUnavailable:
            raise
        except Exception:  # noqa: BLE001 (whichever row it was is logged below)
            rescued += await _one_by_one(database, records, hopeless)
    if rescued:
        _logger.warning("%d runs had been cut off by the end of their instances", rescued)
    return rescued


async def _one_by_one(database: Database, records: Sequence[Record], hopeless: set[str]) -> int:
    rescued = 0
    for entry in records:
        try:
            rescued += sum(await database.write(record, [entry], skip_locked=True))
        except DatabaseUnavailable:
            raise
        except Exception:
            if entry.run.token not in hopeless:
                _logger.exception("task %s cannot be rescued", entry.run.task_id)
            hopeless.add(entry.run.token)
    return rescued


def _orphans(connection: Connection, after: str) -> list[Run]:
    """Return some of the running tasks whose instance is dead, those after task `after`."""
    living = exists().where(
        instances.instances.c.instance_id == tasks.c.instance_id,
        instances.instances.c.state != InstanceState.Dead.value,
    )
    rows = connection.execute(
        select(*RUN_COLUMNS)
        .where(
            tasks.c.status == TaskStatus.Running.value,
            tasks.c.task_id > after,
            ~living,
        )
        .order_by(tasks.c.task_id)
        .limit(_BATCH)
    )
    return [run_of(row) for row in rows]


def _running_of(connection: Connection, instance_id: str) -> list[Run]:
    rows = connection.execute(
        select(*RUN_COLUMNS).where(
            tasks.c.status == TaskStatus.Running.value, tasks.c.instance_id == instance_id
        )
    )
    return [run_of(row) for row in rows]
