"""What a chaos run does, and when: a pure function of the seed, so that a run can be repeated."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from random import Random

from job_scheduler.constants import OnCrash

LEASE_SECONDS = 3.0
"""The instances' LEASE_SECONDS: a pause is longer."""

FAR_SECONDS = 3_600.0
"""Some tasks are due so much later that they must not start at all."""

_POSTING = 0.88
"""The part of the run in which tasks are posted."""

_CALM = (None, 15.0, 18.0)
"""No fault of the database for so long."""

_UNJUDGED = 7.0
"""For so long after an outage of the database nobody is judged dead, and a pause has no effect."""

_LONGEST_TIMEOUT = 20.0
"""No part of the service waits longer for the database's answer."""


class HandlerKind(StrEnum):
    """How a task's handler runs; the value is the task's name."""

    Async = "chaos_async"
    Thread = "chaos_thread"


class FaultKind(StrEnum):
    """What is done to the service, in the words of the report."""

    Kill = "SIGKILL and restart"
    Pause = "SIGSTOP beyond the lease"
    Restart = "SIGTERM and restart"
    FlushRedis = "Redis flushed"
    StallRedis = "Redis stalled"
    CutRedis = "Redis cut off"
    CutConnections = "database connections cut"
    StallDatabase = "database stalled"
    CutDatabase = "database cut off"
    Cancel = "cancels"
    Stop = "SIGTERM at the end"


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task; times are seconds from the begin of the run."""

    post_at: float
    due_at: float
    handler: HandlerKind
    seconds: float
    fails: bool
    max_attempts: int
    on_crash: OnCrash | None
    by_sql: bool
    cancel_at: float | None


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault: `instance` is the number of the one concerned, `lasts` is in seconds."""

    at: float
    kind: FaultKind
    lasts: float = 0.0
    instance: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks by the time of their post, and faults in tracks: those of one track never overlap."""

    tasks: list[PlannedTask]
    tracks: list[list[PlannedFault]]


def make_plan(
    seed: int, *, tasks: int, seconds: float, instances: int, postgresql: bool, redis: bool
) -> Plan:
    """Return the plan of the run with this seed."""
    # Each part has its own numbers, so that more of one does not change the others.
    chooser = Random(f"tasks {seed}")  # noqa: S311 (it is to be repeatable)
    planned = [_task(chooser, seconds) for _ in range(tasks)]
    of_database: list[PlannedFault] = []
    if postgresql:
        of_database += _database_faults(Random(f"database {seed}"), seconds)  # noqa: S311
    calms = _calms(of_database, seconds) if postgresql else []
    tracks: list[list[PlannedFault]] = []
    for number in range(instances):
        chooser = Random(f"instance {number} {seed}")  # noqa: S311
        pauses = [fault for track in tracks for fault in track if fault.kind is FaultKind.Pause]
        tracks.append(list(_process_faults(chooser, number, seconds, calms, pauses)))
    if postgresql:
        tracks.append(of_database)
    if redis:
        tracks.append(list(_redis_faults(Random(f"redis {seed}"), seconds)))  # noqa: S311
    return Plan(sorted(planned, key=lambda task: task.post_at), tracks)


def _task(chooser: Random, seconds: float) -> PlannedTask:
    post_at = chooser.uniform(0.0, _POSTING * seconds)
    ahead = chooser.choices(
        [
            0.0,
            -chooser.uniform(0.0, 1.0),
            chooser.uniform(0.0, 4.0),
            chooser.uniform(0.0, max(0.0, seconds - 1.0 - post_at)),
            FAR_SECONDS,
        ],
        weights=[30, 5, 48, 15, 2],
    )[0]
    due_at = post_at + ahead
    if chooser.random() < 0.1 and ahead < FAR_SECONDS:
        # Many at one instant.
        due_at = float(round(due_at / 5.0) * 5.0)
    max_attempts, on_crash = chooser.choices(
        [
            (1, None),
            (3, None),
            (3, OnCrash.Retry),
            (1, OnCrash.Hold),
            (3, OnCrash.Hold),
            (3, OnCrash.Fail),
        ],
        weights=[40, 20, 15, 5, 10, 10],
    )[0]
    by_sql = chooser.random() < 0.06
    cancel_at = None
    if not by_sql and chooser.random() < 0.08:
        soon, near = post_at + chooser.uniform(0.0, 1.0), due_at + chooser.uniform(-0.2, 0.2)
        cancel_at = max(post_at, soon if ahead == FAR_SECONDS else chooser.choice([soon, near]))
    return PlannedTask(
        post_at=post_at,
        due_at=due_at,
        handler=chooser.choice(list(HandlerKind)),
        seconds=_duration(chooser),
        fails=chooser.random() < 0.05,
        max_attempts=max_attempts,
        on_crash=on_crash,
        by_sql=by_sql,
        cancel_at=cancel_at,
    )


def _duration(chooser: Random) -> float:
    low, high = chooser.choices(
        [(0.0, 0.0), (0.0, 0.5), (0.5, 2.0), (2.0, 6.0)], weights=[25, 30, 23, 22]
    )[0]
    return round(chooser.uniform(low, high), 3)


def _process_faults(
    chooser: Random,
    number: int,
    seconds: float,
    calms: list[tuple[float, float]],
    pauses: list[PlannedFault],
) -> Iterator[PlannedFault]:
    """Yield what is done to an instance; `pauses` are those of the instances before it."""
    kinds = [FaultKind.Kill, FaultKind.Pause, FaultKind.Kill, FaultKind.Restart]
    first = number % len(kinds)
    at = chooser.uniform(2.5, 4.5)
    turns = cycle(kinds[first:] + kinds[:first])
    while at < seconds - 1.0:
        kind = next(turns)
        # Not so long that the rescued runs have always ended before the late results come.
        lasts = LEASE_SECONDS + chooser.uniform(1.2, 3.5)
        if any(begin < at and at + lasts < end for begin, end in calms):
            # One alone is paused, and the others are awake to bury it.
            until = [fault.at + fault.lasts for fault in pauses if fault.at < at + lasts]
            if at < max(until, default=0.0):
                at = max(until) + chooser.uniform(0.0, 1.0)
                continue
            kind = FaultKind.Pause
        if kind is not FaultKind.Pause:
            lasts = chooser.choice([0.0, chooser.uniform(0.0, 3.0)])
        yield PlannedFault(at, kind, lasts, number)
        at += lasts + chooser.uniform(3.5, 6.5)


def _calms(faults: list[PlannedFault], seconds: float) -> list[tuple[float, float]]:
    """Return from when to when a pause makes the others bury an instance."""
    begins = [fault.at + fault.lasts + _UNJUDGED for fault in faults]
    return list(zip(begins, [*(fault.at for fault in faults[1:]), seconds], strict=True))


def _database_faults(chooser: Random, seconds: float) -> Iterator[PlannedFault]:
    # One stall longer than any timeout is a third of a minute: not every run has it.
    patience: list[tuple[FaultKind | None, float, float]] = []
    if seconds >= 45.0 and chooser.random() < 0.4:
        patience = [(FaultKind.StallDatabase, _LONGEST_TIMEOUT + 1.0, _LONGEST_TIMEOUT + 3.0)]
    yield from _in_turn(
        chooser,
        seconds,
        [
            (FaultKind.CutConnections, 0.0, 0.0),
            (FaultKind.StallDatabase, 0.2, 1.5),
            (FaultKind.CutConnections, 0.0, 0.0),
            (FaultKind.CutDatabase, 0.3, 3.0),
            _CALM,
            *patience,
            (FaultKind.CutConnections, 0.0, 0.0),
            (FaultKind.StallDatabase, LEASE_SECONDS + 0.5, LEASE_SECONDS + 3.5),
            _CALM,
        ],
        pause=(1.0, 3.0),
    )


def _redis_faults(chooser: Random, seconds: float) -> Iterator[PlannedFault]:
    yield from _in_turn(
        chooser,
        seconds,
        [
            (FaultKind.FlushRedis, 0.0, 0.0),
            (FaultKind.StallRedis, 0.05, 0.25),
            (FaultKind.FlushRedis, 0.0, 0.0),
            (FaultKind.CutRedis, 0.2, 3.0),
            (FaultKind.FlushRedis, 0.0, 0.0),
            (FaultKind.StallRedis, 0.5, 4.0),
        ],
        pause=(0.5, 2.5),
    )


def _in_turn(
    chooser: Random,
    seconds: float,
    kinds: list[tuple[FaultKind | None, float, float]],
    pause: tuple[float, float],
) -> Iterator[PlannedFault]:
    at = chooser.uniform(*pause)
    turns = cycle(kinds)
    while at < seconds:
        kind, shortest, longest = next(turns)
        lasts = min(chooser.uniform(shortest, longest), seconds - at)
        if kind is not None:
            yield PlannedFault(at, kind, lasts)
        at += lasts + chooser.uniform(*pause)
