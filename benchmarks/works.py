"""The works: each measures one peer once, in an arena of its own, and returns plain figures."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks import ledger
from benchmarks.arena import Arena
from benchmarks.catalogue import BATCH, BURST, CREATE, LATENESS, PENDING, SEVERAL
from benchmarks.programs import PeerFailed, Program

Figures = dict[str, float | str]
YEAR = 365 * 86_400.0
WARM_UP_SECONDS = 1.0
LEAD_SECONDS = 5.0
"""How long before the first instant all is stored, so that each peer has seen what comes."""
RUN_SECONDS = 240.0
STORE_SECONDS = 400.0
SETTLE_SECONDS = 3.0
NEAR_SECONDS = 4.0
NEAR_STEP = 0.000_05
"""Creates within the lookahead: the first is due when the load ends, each later than the last."""


def create(arena: Arena, seconds: float, connections: int, near: bool = False) -> Figures:
    """Enqueue one task at a time, over some connections (or callers) at once."""
    with arena.program() as program:
        far: dict[str, Any] = {"due": time.time() + YEAR, "step": 1.0}
        program.ask("create", seconds=WARM_UP_SECONDS, connections=connections, **far)
        when = far
        if near:
            seconds = NEAR_SECONDS
            when = {"due": time.time() + NEAR_SECONDS + 0.5, "step": NEAR_STEP}
        answer = program.ask("create", seconds=seconds, connections=connections, **when)
    return _rate(answer)


def batch(arena: Arena, seconds: float) -> Figures:
    """Enqueue batches of 1,000, one after the other."""
    with arena.program() as program:
        return _rate(program.ask("batch", seconds=seconds, due=time.time() + YEAR))


def _rate(answer: dict[str, Any]) -> Figures:
    figures = {"per_s": answer["number"] / answer["seconds"]}
    return figures | {key: answer[key] for key in ("p50_ms", "p99_ms", "load") if key in answer}


def burst(arena: Arena, tasks: int, instances: int = 1) -> Figures:
    """Have many tasks due at one instant; from the first start until all are recorded."""
    ahead = LEAD_SECONDS + tasks / (arena.peer.bulk_rate or arena.peer.store_rate)
    with arena.program() as first:
        others = [arena.enter(arena.program()) for _ in range(instances - 1)]
        for program in (first, *others):
            program.work()
        due = time.time() + ahead
        answer = first.ask("store", timeout=STORE_SECONDS, first=0, due=[due] * tasks)
        arena.settle()
        if time.time() > due - 1:
            raise PeerFailed(f"could not store {tasks:,} tasks within {ahead:.0f} s")
        _sleep_until(due - 0.5)
        counted = arena.count_statements()
        before = sum(program.cpu_seconds() for program in (first, *others))
        end = 0.0
        if ledger.wait_for(arena.ledger, tasks, due - time.time() + RUN_SECONDS, due):
            end = ledger.wait_until_none(lambda: int(first.ask("left")["value"]), RUN_SECONDS)
        used = sum(program.cpu_seconds() for program in (first, *others)) - before
        statements = counted(tasks)
        left = int(first.ask("left")["value"])
    starts = ledger.read(arena.ledger)
    if not starts:
        raise PeerFailed("nothing has started")
    end = end or starts[-1].at  # some never started: then up to the last that did
    figures: Figures = {
        "per_s": len(starts) / (end - due),
        "once_started_per_s": len(starts) / max(end - starts[0].at, 0.001),
        "first_start_s": starts[0].at - due,
        "last_start_s": starts[-1].at - due,
        "recorded_s": end - due,
        "cpu_s": used,
        **ledger.counts(starts, tasks),
        "left": left,
        **statements,
    }
    return figures | ({"stored_by": str(answer["by"])} if "by" in answer else {})


def several(arena: Arena, tasks: int, instances: int) -> Figures:
    """The burst on several instances, with statements and WAL counted by the server."""
    return burst(arena, tasks, instances)


def lateness(arena: Arena, rate: int, seconds: float, ahead: float = 0.0) -> Figures:
    """Have tasks due at even times; start minus due.

    All are stored before; or, with `ahead`, each is created so many seconds before it is due.
    """
    with arena.program() as program:
        program.work()
        return _lateness(arena, program, rate, seconds, ahead)


def _lateness(
    arena: Arena, program: Program, rate: int, seconds: float, ahead: float = 0.0
) -> Figures:
    number = round(rate * seconds)
    begin = time.time() + LEAD_SECONDS + (0 if ahead else number / arena.peer.store_rate)
    due = [begin + place / rate for place in range(number)]
    before = program.cpu_seconds()
    if ahead:
        program.ask("feed", timeout=STORE_SECONDS, first=0, due=due, ahead=ahead)
    else:
        program.ask("store", timeout=STORE_SECONDS, first=0, due=due)
        arena.settle()
        if time.time() > begin - 1:
            raise PeerFailed(f"could not store {number:,} tasks in time")
        _sleep_until(begin - 0.5)
        before = program.cpu_seconds()
    ledger.wait_for(arena.ledger, number, begin - time.time() + seconds + RUN_SECONDS, begin)
    used = program.cpu_seconds() - before
    starts = ledger.read(arena.ledger)
    figures = ledger.lateness(starts, due) | ledger.counts(starts, number)
    return {**figures, "cpu_s": used, "cpu_per_task_ms": used / number * 1000}


def pending(arena: Arena, tasks: int, rate: int, seconds: float) -> Figures:
    """With many tasks pending for later: start-up, memory, lateness."""
    if tasks:
        with arena.program() as storing:
            later = time.time() + YEAR
            storing.ask("preload", timeout=STORE_SECONDS, number=tasks, due=later)
        arena.settle_bulk()
    begin = time.monotonic()
    with arena.program() as program:
        program.work()
        started = time.monotonic() - begin
        time.sleep(SETTLE_SECONDS)
        memory = program.megabytes()
        figures = _lateness(arena, program, rate, seconds)
    return {"startup_s": started, "memory_mb": memory} | figures


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


WORKS: dict[str, Callable[..., Figures]] = {
    CREATE: create,
    BATCH: batch,
    BURST: burst,
    LATENESS: lateness,
    PENDING: pending,
    SEVERAL: several,
}
