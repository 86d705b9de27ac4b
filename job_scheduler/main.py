"""The application: builds every part, starts it, and takes it down again, in one place."""

import asyncio
import importlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.base import BaseScheduler
from fastapi import FastAPI

from job_scheduler import __version__
from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock, SystemClock
from job_scheduler.config import Settings, load_settings
from job_scheduler.constants import InstanceState
from job_scheduler.core import api, health, instances, recovery_api, runs_api, store
from job_scheduler.core.dispatcher import Dispatcher, Lane
from job_scheduler.core.handlers.calling import Caller
from job_scheduler.core.handlers.registry import HandlerRegistry, registered
from job_scheduler.core.handlers.report import build_send_report
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.core.locks import InProcessLock, TaskLock
from job_scheduler.core.recovery import Rules, start_up
from job_scheduler.core.release import Release
from job_scheduler.core.rescue import Rescue, rescue_orphans
from job_scheduler.core.retention import Retention
from job_scheduler.core.shutdown import Shutdown
from job_scheduler.core.stall import StallWatch
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.tasks import TaskRunner
from job_scheduler.core.timekeeping import build_clock
from job_scheduler.core.timer import Timer
from job_scheduler.core.wakeups import Wakeups
from job_scheduler.database import Database, build_engine
from job_scheduler.dependencies import Services
from job_scheduler.errors import add_error_handlers, add_problem_schema
from job_scheduler.exceptions import (
    ConfigurationError,
    DatabaseUnavailable,
    StartError,
    TaskConflict,
)
from job_scheduler.identifiers import new_task_id
from job_scheduler.logger import configure_logging
from job_scheduler.migrations.upgrade import prepare
from job_scheduler.process import own_identity
from job_scheduler.redis_client import RedisTaskLock, build_redis
from job_scheduler.signals import stop_signals
from job_scheduler.threads import DaemonThreads
from job_scheduler.web.docs import add_docs

_logger = logging.getLogger(__name__)

_LEAVE_SECONDS = 5.0
"""How long the shutdown waits for the database to take note of it."""

_DESCRIPTION = """
Schedule tasks over HTTP: each runs at its time, once, and its result is kept.

Post a task, look at it again after its time, and see its result:
`scheduled` → `running` → `done` or `failed`.

Every error is a problem document (RFC 9457) with a stable `error_code`.
"""

_TAGS = [
    {"name": "tasks", "description": "Create, list, show and cancel tasks."},
    {"name": "recovery", "description": "What becomes of tasks that a downtime made overdue."},
    {"name": "health", "description": "How the service does."},
]


def create_app(
    settings: Settings | None = None,
    *,
    registry: HandlerRegistry = registered,
    scheduler: Callable[[], BaseScheduler] = AsyncIOScheduler,
    clock: Clock | None = None,
    lock: TaskLock | None = None,
) -> FastAPI:
    """Build the application; nothing is read, opened or started before its lifespan begins.

    Without `settings` they are read from the environment then. `registry` holds the task
    handlers beside the built-in ones, `scheduler` builds the APScheduler that keeps the time,
    `clock` takes the place of the database's, `lock` that of the one that ``REDIS_URL`` asks for.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            try:
                chosen = settings or load_settings()
                configure_logging(chosen.log_level)
                services = await _start(stack, chosen, registry, scheduler(), clock, lock)
            except (StartError, DatabaseUnavailable) as error:
                app.state.start_failure = str(error)
                raise
            yield {"services": services}

    app = FastAPI(
        title="Job Scheduler Service",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(api.router)
    app.include_router(runs_api.router)
    app.include_router(recovery_api.router)
    app.include_router(health.router)
    add_docs(app)
    add_error_handlers(app)
    _document_errors(app)
    return app


async def _start(
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
    _import_task_modules(settings.modules)
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
    await rescue_orphans(database)

    threads = DaemonThreads(settings.threads, "handler")
    stack.callback(threads.close)
    built_in = HandlerRegistry()
    built_in.task("send_report")(build_send_report(database, clock))
    registry = registry.with_defaults(built_in)
    caller = Caller(registry, threads, settings.unknown_tasks)
    if lock is None:
        lock = _lock(settings, clock)
    stack.push_async_callback(lock.close)

    async def create(
        new: Sequence[store.NewTask],
    ) -> list[store.TaskRow | TaskConflict]:
        return await database.write(store.create_tasks, new)

    wall = SystemClock(scheduler.timezone)  # as APScheduler reads it
    timer = Timer(scheduler, wall, clock, fire=lambda due: dispatcher.offer(due))
    runner = TaskRunner(
        database,
        lock,
        caller,
        lambda: heartbeat.instance_id,
        put_back=timer.put_back,
        holds_lease=heartbeat.holds_lease,
    )
    lane_of = _lanes(registry, settings)
    dispatcher = Dispatcher(
        runner.run_task, lane_of, settings.max_running, on_room=lambda: sweep.note_room()
    )
    sweep = Sweep(database, timer, dispatcher, clock)

    rescue = Rescue(
        database,
        heartbeat,
        runner.under_way,
        settings.lease_seconds,
        time.monotonic,
        cut_off=partial(caller.cut_off, repeatable_only=True),
    )
    await stack.enter_async_context(_loop(rescue.run))
    shutdown = Shutdown(dispatcher, caller, settings.shutdown_grace)
    stack.push_async_callback(shutdown.finish)
    timer.start()
    stack.callback(timer.stop)
    await stack.enter_async_context(_loop(sweep.run))
    release = Release(database, settings.recovery_rate)
    await release.look()  # so that /health says from the first answer on what waits
    await stack.enter_async_context(_loop(release.run))
    await stack.enter_async_context(_loop(Retention(database, settings.retention).run))
    if not settings.embedded:
        wakeups = Wakeups(build_engine(settings.database, pool_size=1), sweep.wake)
        wakeups.start()
        stack.push_async_callback(asyncio.to_thread, wakeups.stop)
    stack.enter_context(stop_signals(shutdown.note_signal))
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
        lock=lock,
        registry=registry,
        timer=timer,
        dispatcher=dispatcher,
        sweep=sweep,
        heartbeat=heartbeat,
        shutdown=shutdown,
        release=release,
    )


def _import_task_modules(names: list[str]) -> None:
    """Import the user's modules of task handlers, also from the working directory."""
    if names and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # The module was found; one that it imports was not.
            raise ConfigurationError(
                f"Configuration error: TASK_MODULES: there is no module {name!r} in the Python "
                "path or the working directory."
            ) from None


def _lock(settings: Settings, clock: Clock) -> TaskLock:
    if settings.redis_url is None:
        return InProcessLock()
    return RedisTaskLock(build_redis(settings.redis_url.get_secret_value()), clock)


def _lanes(registry: HandlerRegistry, settings: Settings) -> Callable[[str], Lane]:
    """Return which lane a task of some name runs in: plain handlers need a thread each."""
    in_threads, on_loop = Lane(settings.threads), Lane(settings.max_running)

    def lane_of(name: str) -> Lane:
        handler = registry.get(name)
        return on_loop if handler is None or handler.is_async else in_threads

    return lane_of


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


def _document_errors(app: FastAPI) -> None:
    """Complete the OpenAPI document that FastAPI makes with the schema of problems."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            add_problem_schema(generate())
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


app = create_app()
