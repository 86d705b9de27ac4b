"""The parts of a running service: built, wired, started, and taken down in the opposite order."""

import asyncio
import gc
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from apscheduler.schedulers.base import BaseScheduler

from job_scheduler import __version__
from job_scheduler.admission import Admission
from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock, SystemClock
from job_scheduler.config import Settings
from job_scheduler.constants import BATCH_BODY_MAX_BYTES, InstanceState
from job_scheduler.core import instances
from job_scheduler.core.cancellation import Cancellation
from job_scheduler.core.claims import Claim
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.handlers.built_in import with_built_in
from job_scheduler.core.handlers.calling import Caller
from job_scheduler.core.handlers.modules import import_task_modules
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.core.locks import InProcessLock, TaskLock
from job_scheduler.core.loop import Loop
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.places import Place
from job_scheduler.core.progress import ProgressBoard
from job_scheduler.core.recovery import Rules, start_up
from job_scheduler.core.release import Release
from job_scheduler.core.rescue import Rescue, rescue_orphans
from job_scheduler.core.retention import Retention
from job_scheduler.core.shutdown import Shutdown
from job_scheduler.core.stall import StallWatch
from job_scheduler.core.store import DueTask, TaskRow
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.tasks import TaskRunner
from job_scheduler.core.timekeeping import build_clock
from job_scheduler.core.timer import Timer
from job_scheduler.core.unblocking import Unblocking
from job_scheduler.core.waiting import Waiting
from job_scheduler.core.wakeups import Wakeups
from job_scheduler.core.watching import Watching
from job_scheduler.database import Database, build_engine
from job_scheduler.dependencies import Services
from job_scheduler.exceptions import (
    Refusal,
)
from job_scheduler.identifiers import new_task_id
from job_scheduler.migrations.upgrade import prepare
from job_scheduler.process import own_identity
from job_scheduler.questions import Questions
from job_scheduler.redis_client import RedisTaskLock, build_redis
from job_scheduler.signals import stop_signals
from job_scheduler.threads import DaemonThreads
from job_scheduler.works_assembly import build_lanes, build_works

_logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.1
_LOOK_SECONDS = 0.5
_CHANGES_SECONDS = 0.25
_SWITCH_SECONDS = 0.001
_NEW_OBJECTS = 10_000
_BATCHES_AT_WORK = 2
"""Batches of creates that are parsed or stored at a time: while the database has one, the other
has the interpreter."""
_BATCHES_MAX_BYTES = 2 * BATCH_BODY_MAX_BYTES
_UPLOAD_SECONDS = 60.0
_FORECASTS_WAITING = 10
_FORECAST_PATIENCE_SECONDS = 20.0
"""How long a caller waits until its forecast is begun; it takes some seconds then."""
_LEAVE_SECONDS = 5.0
"""How long the shutdown waits for the database to take note of it."""


async def start(
    stack: AsyncExitStack,
    settings: Settings,
    registry: HandlerRegistry,
    scheduler: BaseScheduler,
    own_clock: Clock | None,
    lock: TaskLock | None,
) -> Services:
    """Build and start every part; `stack` takes them down in the opposite order.

    Raises:
        StartError: the configuration or the database's schema does not allow to start.
    """
    import_task_modules(settings.modules)
    database = Database(build_engine(settings.database))
    stack.push_async_callback(asyncio.to_thread, database.close)
    await prepare(database, settings)
    clock = await database.read(build_clock) if own_clock is None else own_clock

    heartbeat = Heartbeat(
        Database(
            build_engine(
                settings.database,
                pool_size=1,
                # No longer than a heartbeat may take, and 2 s, libpq's least.
                connect_seconds=max(2, min(5, int(settings.lease_seconds / 3))),
                try_first=True,
            )
        ),
        Member(new_task_id(clock.now()), own_identity()),
        settings.lease_seconds,
        new_id=lambda: new_task_id(clock.now()),
        check_loop=StallWatch(asyncio.get_running_loop(), settings.loop_stall_seconds).check,
    )
    await database.write(instances.register, heartbeat.member, InstanceState.Starting)
    heartbeat.start()
    stack.push_async_callback(_stop_heartbeat, heartbeat)
    await start_up(database, heartbeat.member, Rules.of(settings), settings.lease_seconds)
    heartbeat.note_joined()
    if lock is None:
        lock = _lock(settings, clock)
    stack.push_async_callback(lock.close)
    await rescue_orphans(database, lock.release)

    threads = DaemonThreads(settings.threads, "handler")
    stack.callback(threads.close)
    registry = with_built_in(registry, database, clock)
    works = build_works(stack, settings, registry, clock)
    progress = ProgressBoard(database)
    caller = Caller(works, threads, progress.note, settings.max_result_bytes)

    async def create(
        new: Sequence[NewTask],
    ) -> list[TaskRow | Refusal]:
        return await database.write(create_tasks, new)

    wall = SystemClock(scheduler.timezone)  # as APScheduler reads it
    timer = Timer(scheduler, wall, clock, fire=lambda due: dispatcher.offer(due))
    runner = TaskRunner(
        database,
        lock,
        caller,
        lambda: heartbeat.instance_id,
        put_back=timer.put_back,
        holds_lease=heartbeat.holds_lease,
        progress=progress,
        limits=works.limits,
        on_room=lambda claim: note_room(claim),
        clock=clock,
    )

    def run_task(task: DueTask, place: Place) -> Coroutine[Any, Any, None]:
        return runner.run_task(task.task_id, place, is_limited=works.is_limited(task))

    lane_of = build_lanes(works, settings, lambda: heartbeat.share)
    dispatcher = Dispatcher(
        run_task, lane_of, settings.max_running, on_room=lambda: sweep.note_room()
    )
    sweep = Sweep(database, timer, dispatcher, clock)

    rescue = Rescue(
        database,
        heartbeat,
        runner.under_way,
        settings.lease_seconds,
        time.monotonic,
        caller.cut_off,
        lock.release,
    )
    await stack.enter_async_context(_loop(rescue.run))
    cancelled = Cancellation(database, lambda: heartbeat.instance_id, caller.cancel)
    cancellation = Loop(cancelled.look, _LOOK_SECONDS, "a look for cancelled runs")
    blocked = Unblocking(database, works.limits, dispatcher.offer)
    unblocking = Loop(blocked.look, _LOOK_SECONDS, "a look for blocked tasks")

    def note_room(claim: Claim) -> None:
        blocked.note_room(works.limits_on(claim))
        unblocking.wake()

    reporting = Loop(progress.store, _LOOK_SECONDS, "the storing of progress")
    for loop in (cancellation, unblocking, reporting):
        await stack.enter_async_context(_loop(loop.run))
    shutdown = Shutdown(dispatcher, caller, settings.shutdown_grace)
    waiting = Waiting(database, lambda: shutdown.has_begun)
    looking = Loop(waiting.look, _WAIT_SECONDS, "a look for those who wait")
    await stack.enter_async_context(_loop(looking.run))
    watching = Watching(database, lambda: shutdown.has_begun)
    changes = Loop(watching.look, _CHANGES_SECONDS, "a look for changes")
    await stack.enter_async_context(_loop(changes.run))
    stack.push_async_callback(shutdown.finish)
    timer.start()
    stack.callback(timer.stop)
    await stack.enter_async_context(_loop(sweep.run))
    release = Release(database, settings.recovery_rate)
    await release.look()  # so that /health says from the first answer on what waits
    await stack.enter_async_context(_loop(release.run))
    await stack.enter_async_context(_loop(Retention(database, settings.retention).run))
    if not settings.embedded:

        def wake() -> None:
            sweep.wake()
            cancellation.wake()

        wakeups = Wakeups(build_engine(settings.database, pool_size=1), wake)
        wakeups.start()
        stack.push_async_callback(asyncio.to_thread, wakeups.stop)
    stack.enter_context(stop_signals(shutdown.note_signal))
    _favour_the_loop(stack)
    _logger.info(
        "started: %s, lock %s, handlers %s",
        settings.database.render_as_string(hide_password=True),
        lock.backend,
        ", ".join(registry.names()),
    )
    return Services(
        settings=settings,
        version=__version__,
        clock=clock,
        database=database,
        creates=Batcher(create),
        batches=Admission(_BATCHES_AT_WORK, _BATCHES_MAX_BYTES, _UPLOAD_SECONDS),
        lock=lock,
        works=works,
        timer=timer,
        dispatcher=dispatcher,
        sweep=sweep,
        cancellation=cancellation,
        heartbeat=heartbeat,
        shutdown=shutdown,
        release=release,
        waiting=waiting,
        watching=watching,
        forecasts=Questions(_FORECASTS_WAITING, _FORECAST_PATIENCE_SECONDS),
    )


def _favour_the_loop(stack: AsyncExitStack) -> None:
    """Let neither garbage nor threads hold up the event loop for long."""
    # What there is by now stays, and is much: a full collection that went over it takes 80 ms.
    gc.freeze()
    stack.callback(gc.unfreeze)
    # What a request or a run makes is gone before so much is new. With the 700 of the default, a
    # twelfth of the time of each create is spent on looking for garbage.
    stack.callback(gc.set_threshold, *gc.get_threshold())
    gc.set_threshold(_NEW_OBJECTS)
    # A thread that computes hands the interpreter over after this time: 5 ms by default.
    stack.callback(sys.setswitchinterval, sys.getswitchinterval())
    sys.setswitchinterval(_SWITCH_SECONDS)


def _lock(settings: Settings, clock: Clock) -> TaskLock:
    if settings.redis_url is None:
        return InProcessLock()
    return RedisTaskLock(build_redis(settings.redis_url.get_secret_value()), clock)


@asynccontextmanager
async def _loop(run: Callable[[], Any]) -> AsyncIterator[None]:
    """Keep a loop going beside the block, and cancel it after."""
    looping = asyncio.ensure_future(run())
    try:
        yield
    finally:
        looping.cancel()
        with suppress(asyncio.CancelledError):
            await looping


async def _stop_heartbeat(heartbeat: Heartbeat) -> None:
    """Take leave of the others, unless the database does not answer."""
    thread = DaemonThreads(1, "leave")
    leaving = thread.submit(heartbeat.stop)
    await asyncio.wait([leaving], timeout=_LEAVE_SECONDS)
    thread.close()
    if not leaving.done():
        _logger.warning("the database does not answer: the others will find this instance gone")
