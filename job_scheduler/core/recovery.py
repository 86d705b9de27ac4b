"""Start-up: whether the service was down, and what becomes of the tasks that it missed.

An instance registers as ``starting``. If another one is alive, it joins it: nothing was
missed. Otherwise it makes itself ``recovering`` (one instance at a time can), treats what was
overdue when it started as ``RECOVER_PAST_TASKS`` says, and becomes ``alive``. Nobody claims
before that, since only instances that are alive may claim.

Under ``run`` many overdue tasks are not let loose at once: they are set aside, and released at a
bounded rate (``catch_up.py``, ``release.py``), above a limit only when a person has approved.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from job_scheduler.config import Settings
from job_scheduler.constants import InstanceState, RecoverPastTasks, RecoveryAction
from job_scheduler.core import catch_up, instances, overdue, recurring
from job_scheduler.core.catch_up import CatchUpRow
from job_scheduler.core.columns import database_time
from job_scheduler.core.downtime import Downtime
from job_scheduler.core.instances import InstanceRow, Member
from job_scheduler.core.overdue import Overdue
from job_scheduler.core.recurring import Passed
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.exceptions import StartError
from job_scheduler.process import is_running

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_PAUSE_SECONDS = 0.005
_FORGET_AFTER = timedelta(days=7)
_TAKEN_FOR_DEAD = (
    "The other instances took this one for dead while it was starting: it was held up for longer "
    "than LEASE_SECONDS. Start it again."
)

_Change = Callable[..., Awaitable[Any]]
"""Makes a change of recovery's in a transaction, as `Database.write` does."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What start-up does with overdue tasks.

    Under `run`: `rate` a second, and only by approval when more than `hold_above` are overdue
    (0: always without).
    """

    policy: RecoverPastTasks
    rate: float = 1_000.0
    hold_above: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """Return the rules that are configured."""
        return cls(
            settings.recover_past_tasks, settings.recovery_rate, settings.recovery_hold_above
        )


async def start_up(database: Database, newcomer: Member, rules: Rules, lease: float) -> None:
    """Let an instance that is ``starting`` take part; it is ``alive`` afterwards.

    It joins those that are alive, or else recovers. `lease` is in seconds.

    Raises:
        StartError: it was taken for dead meanwhile (it was paused), so that somebody else may
            have decided without it.
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
    await recover(database, newcomer.instance_id, rules)
    await database.write(
        _advance, newcomer.instance_id, InstanceState.Recovering, InstanceState.Alive
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
        _advance(connection, newcomer.instance_id, InstanceState.Starting, state)
    return state


def _advance(
    connection: Connection, instance_id: str, former: InstanceState, state: InstanceState
) -> None:
    if not instances.move(connection, instance_id, [former], state):
        raise StartError(_TAKEN_FOR_DEAD)


def _while_recovering(
    connection: Connection, instance_id: str, work: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Do the work, unless somebody else may be recovering by now."""
    if not instances.remains(connection, instance_id, InstanceState.Recovering):
        raise StartError(_TAKEN_FOR_DEAD)
    return work(connection, *args, **kwargs)


def _conclusion(living: list[InstanceRow], undecided: list[InstanceRow]) -> InstanceState:
    if any(other.state is InstanceState.Alive for other in living):
        return InstanceState.Alive
    # Others that are starting draw their own conclusion after this one, and see it.
    if any(other.state is not InstanceState.Starting for other in living + undecided):
        return InstanceState.Starting
    return InstanceState.Recovering


async def recover(database: Database, instance_id: str, rules: Rules) -> int:
    """Treat the tasks that were overdue when this instance started; return how many there were.

    `fail` marks them failed; `skip` sets them aside (``missed_at``) with status and result
    unchanged; `run` leaves a few to the sweep, and sets more aside to be released at a bounded
    rate, at once or when a person has approved. Before all this, recurring tasks move on to the
    occurrence that is to run next. Broken off, it is continued by the next start.

    Raises:
        StartError: it was taken for dead meanwhile, so that somebody else may be at it.
    """

    async def change(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await database.write(_while_recovering, instance_id, work, *args, **kwargs)

    started, last = await database.read(_downtime, instance_id)
    down = Downtime(last, started)
    passed = await _pass_missed(change, started, rules.policy, down)
    found, former = await database.read(_situation, started)
    treat: Callable[[], Awaitable[int]] | None = None
    match decide(rules, found, former):
        case RecoveryAction.Release | RecoveryAction.Hold as action:
            hold = action is RecoveryAction.Hold
            opened = await change(catch_up.begin, started, hold=hold)
            treat = partial(change, overdue.set_aside, started, opened.missed_at)
        case RecoveryAction.Fail:
            treat = partial(change, overdue.fail_overdue, started, down.result)
        case RecoveryAction.Skip:
            now = await database.read(database_time)
            treat = partial(change, overdue.set_aside, started, now)
        case _:  # there are none, or the sweep takes them
            pass
    count = found.tasks if treat is None else await _in_batches(rules.policy, treat)
    if former is not None and rules.policy is not RecoverPastTasks.Run:
        count += await _end(change, former, rules.policy)
    count += passed
    _logger.info("recovery (%s): %d tasks were overdue at the start", rules.policy.value, count)
    return count


def decide(rules: Rules, found: Overdue, former: CatchUpRow | None) -> RecoveryAction:
    """Return what becomes of overdue tasks, given the catch-up that is under way, if any.

    Those that a person has approved already do not count towards another hold. While a catch-up
    is not over, even a few join it: its rate is to hold over restarts.
    """
    if not found.tasks:
        return RecoveryAction.Nothing
    if rules.policy is not RecoverPastTasks.Run:
        return RecoveryAction(rules.policy.value)
    if former is not None and former.waits:
        return RecoveryAction.Hold
    if rules.hold_above and found.new > rules.hold_above:
        return RecoveryAction.Hold
    if found.tasks > rules.rate or (former is not None and not former.is_over):
        return RecoveryAction.Release
    return RecoveryAction.Run


async def _end(change: _Change, former: CatchUpRow, policy: RecoverPastTasks) -> int:
    """End a catch-up of an earlier start, now that the policy is another; count whom it hits.

    `fail` holds for what it has not released, too; with `skip` that stays set aside for good.
    """
    failed = 0
    if policy is RecoverPastTasks.Fail:
        reason = Downtime(None, former.missed_at).result
        treat = partial(change, overdue.fail_missed, former.missed_at, reason)
        failed = await _in_batches(policy, treat)
    await change(catch_up.close, former.missed_at)
    return failed


async def _pass_missed(
    change: _Change, started: datetime, policy: RecoverPastTasks, down: Downtime
) -> int:
    """Move recurring tasks on; return how many need nothing more."""
    count, after = 0, None
    while True:
        passed: Passed = await change(recurring.pass_missed, started, policy, down, after)
        count, after = count + passed.tasks, passed.last_id
        if after is None:
            return count
        await asyncio.sleep(_PAUSE_SECONDS)


async def _in_batches(policy: RecoverPastTasks, treat: Callable[[], Awaitable[int]]) -> int:
    count = 0
    while treated := await treat():
        count += treated
        if treated == overdue.BATCH:
            _logger.info("recovery (%s): %d overdue tasks so far", policy.value, count)
            # SQLite has one writer at a time: heartbeats get in between.
            await asyncio.sleep(_PAUSE_SECONDS)
    return count


def _downtime(connection: Connection, instance_id: str) -> tuple[datetime, datetime | None]:
    """Return when this instance started and when another one was last known to live."""
    return (
        instances.started_at(connection, instance_id),
        instances.last_heartbeat(connection, instance_id),
    )


def _situation(connection: Connection, started: datetime) -> tuple[Overdue, CatchUpRow | None]:
    former = catch_up.current(connection)
    return overdue.count_overdue(connection, started, approved_until(former)), former


def approved_until(former: CatchUpRow | None) -> datetime | None:
    """Return up to which downtime a person has approved that missed tasks are run."""
    return None if former is None or former.approved_at is None else former.covers_until
