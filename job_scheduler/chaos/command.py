"""The chaos command: brings instances, callers, faults and checks together."""

import asyncio
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from job_scheduler.chaos import ledger
from job_scheduler.chaos.checks import examine
from job_scheduler.chaos.cluster import Cluster, cluster
from job_scheduler.chaos.faults import Saboteur
from job_scheduler.chaos.history import History, Sighting, TaskHistory
from job_scheduler.chaos.plan import Plan, make_plan
from job_scheduler.chaos.progress import Progress
from job_scheduler.chaos.report import figures, verdict, violation_lines
from job_scheduler.chaos.stage import Stage, stage
from job_scheduler.chaos.storage import Storage
from job_scheduler.chaos.workload import Workload
from job_scheduler.clock import SystemClock
from job_scheduler.exceptions import StartError
from job_scheduler.logger import configure_logging

EXIT_CANNOT_RUN = 2
EXIT_INTERRUPTED = 130
_START_SECONDS = 60.0
_SETTLE_SECONDS = 30.0
_CALLERS_SECONDS = 10.0
"""Of these, how long callers go on to ask."""
_LOOK_SECONDS = 0.25
_CLOCK_ERROR = 0.002
"""Times of SQLite's clock are cut to milliseconds."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for on the command line."""

    db_url: str
    redis_url: str | None
    instances: int
    tasks: int
    seconds: float
    seed: int
    keep: bool


def run(options: Options) -> int:
    """Run the command; return the exit status."""
    configure_logging("WARNING")
    with _sigterm_as_ctrl_c():
        return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    try:
        with stage(options.db_url, options.redis_url, keep=options.keep) as built:
            history, begin = await _perform(options, built)
    except StartError as error:
        typer.echo(str(error), err=True)
        return EXIT_CANNOT_RUN
    except asyncio.CancelledError:
        # Ctrl-C; asyncio's own way on from here would be a traceback.
        typer.echo("interrupted: all that was started is stopped again", err=True)
        return EXIT_INTERRUPTED
    violations = examine(history)
    for line in (*figures(history), *violation_lines(violations, history, begin)):
        typer.echo(line)
    last, status = verdict(history, violations)
    typer.echo(f"seed {options.seed}: {last}")
    return status


async def _perform(options: Options, built: Stage) -> tuple[History, float]:
    """Carry the plan out; return what was seen, and when it began (Unix time)."""
    plan = make_plan(
        options.seed,
        tasks=options.tasks,
        seconds=options.seconds,
        instances=options.instances,
        postgresql=built.database_proxy is not None,
        redis=built.redis is not None,
    )
    storage = Storage(built.database)
    try:
        async with cluster(options.instances, built.directory, built.environment) as running:
            await until_ready(running)
            begin = SystemClock().now().timestamp()
            workload = Workload(storage, lambda: running.urls, begin)
            steps = built.steps(storage, workload.asked.keys)
            saboteur = Saboteur(running.instances, storage, steps, begin)
            sightings = await _under_faults(options, plan, storage, running, workload, saboteur)
            last = await running.stop()
        history = await _history(built, storage, workload, sightings)
    finally:
        await storage.close()
    history.faults = saboteur.done + last
    history.incidents = workload.incidents + running.incidents
    return history, begin


async def until_ready(running: Cluster, patience: float = _START_SECONDS) -> None:
    """Wait until all instances are ready.

    Raises:
        StartError: they are not within `patience` seconds.
    """
    try:
        await asyncio.wait_for(running.ready(), patience)
    except TimeoutError:
        raise StartError(f"The instances do not start: {running.last_words()}") from None


async def _under_faults(
    options: Options,
    plan: Plan,
    storage: Storage,
    running: Cluster,
    workload: Workload,
    saboteur: Saboteur,
) -> dict[str, list[Sighting]]:
    """Let callers and faults loose for the run's time, then wait until all has settled."""
    sightings: dict[str, list[Sighting]] = defaultdict(list)
    loop = asyncio.get_running_loop()
    end = loop.time() + options.seconds

    def line() -> str:
        left = max(0.0, end - loop.time())
        what = f"{left:.0f} s to go" if left else "settling"
        return (
            f"{what}: {workload.accepted:,} of {len(plan.tasks):,} tasks created, "
            f"{len(sightings):,} seen moving, {len(saboteur.done)} faults, "
            f"{len(running.urls)} of {options.instances} instances ready"
        )

    progress = Progress(line)
    async with asyncio.TaskGroup() as group:
        work = group.create_task(workload.run(plan.tasks))
        harm = group.create_task(saboteur.run(plan.tracks))
        beside = [
            group.create_task(_observe(storage, sightings)),
            group.create_task(progress.run()),
        ]
        await asyncio.sleep(options.seconds)
        settled = group.create_task(_settle(work, harm, running, storage))
        await asyncio.wait([settled], timeout=_SETTLE_SECONDS)
        for task in (work, harm, settled, *beside):
            task.cancel()
    progress.end()
    return sightings


async def _settle(
    work: "asyncio.Task[None]", harm: "asyncio.Task[None]", running: Cluster, storage: Storage
) -> None:
    """Wait until all faults are over, every caller has its answer, and nothing is left to do."""
    await asyncio.wait([work], timeout=_CALLERS_SECONDS)
    work.cancel()  # what was not answered by now may have been created or not
    await asyncio.wait([work, harm])
    await running.ready()
    while await storage.unfinished():  # noqa: ASYNC110 (a database under faults tells nobody)
        await asyncio.sleep(_LOOK_SECONDS)


async def _observe(storage: Storage, sightings: dict[str, list[Sighting]]) -> None:
    """Look at the rows now and then, and note how they move."""
    while True:
        for task_id, seen in (await storage.changes()).items():
            before = sightings[task_id][-1:]
            if [(one.status, one.attempt, one.token) for one in before] != [
                (seen.status, seen.attempt, seen.token)
            ]:
                sightings[task_id].append(seen)
        await asyncio.sleep(_LOOK_SECONDS)


async def _history(
    built: Stage, storage: Storage, workload: Workload, sightings: dict[str, list[Sighting]]
) -> History:
    rows, runs, until = await storage.rows(), await storage.runs(), await storage.now()
    entries: dict[str, list[ledger.Entry]] = defaultdict(list)
    for entry in ledger.read(built.ledger):
        entries[entry.task_id].append(entry)
    tasks = [
        TaskHistory(
            asked=asked,
            row=rows.get(task_id),
            entries=entries[task_id],
            runs=runs.get(task_id, []),
            sightings=sightings.get(task_id, []),
        )
        for task_id, asked in workload.asked.items()
    ]
    clock_error = await storage.clock_error() + _CLOCK_ERROR
    return History(tasks, [], until, clock_error)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Clear up at SIGTERM as at Ctrl-C."""
    former = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
