"""What is measured, in which order: all peers within each work, all works within each run.

So a drift of the machine meets all peers alike; the order of the peers turns with each run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.catalogue import (
    APSCHEDULER,
    BARE_ROUTE,
    BATCH,
    BURST,
    CELERY,
    CREATE,
    LATENESS,
    OURS,
    PENDING,
    PGQUEUER,
    SEVERAL,
    TUTORIAL,
    Peer,
)

PRELOAD_SECONDS = 100.0
"""A peer that would take longer to store the tasks is not asked for so many."""
TOO_SLOW: dict[str, tuple[str, float, str]] = {
    BURST: ("recorded_s", 10.0, "took more than 10 s for"),
    LATENESS: ("p99_ms", 1_000.0, "more than a second late at"),
}
"""By work: the figure of a smaller case from which on a peer is spared the larger one."""

_AT_THE_INSTANT = (OURS, TUTORIAL, APSCHEDULER, CELERY)
_WITH_MANY = (OURS, PGQUEUER)
"""It is a question to ourselves, and the answer of one peer gives it a scale."""


@dataclass(frozen=True)
class Case:
    """One size of a work; `label` is shown."""

    work: str
    label: str
    arguments: dict[str, Any] = field(hash=False)
    seconds: float
    """About how long it takes, to begin with."""
    only: tuple[str, ...] = ()
    """The peers that are asked for it; all that do the work unless told."""
    larger_than: str = ""
    """The label of the smaller case that a peer must have done well (``TOO_SLOW``)."""


@dataclass(frozen=True)
class Step:
    """One measurement."""

    run: int
    case: Case
    peer: Peer


FULL = (
    Case(CREATE, "1 connection", {"seconds": 5, "connections": 1}, 11),
    Case(CREATE, "32 connections", {"seconds": 5, "connections": 32}, 11),
    Case(
        CREATE,
        "32 connections, due within 5 s",
        {"seconds": 4, "connections": 32, "near": True},
        14,
        only=(OURS, BARE_ROUTE, TUTORIAL),
    ),
    Case(BATCH, "batches of 1,000", {"seconds": 5}, 10),
    Case(BURST, "10,000", {"tasks": 10_000}, 20),
    Case(BURST, "60,000", {"tasks": 60_000}, 50, larger_than="10,000"),
    Case(LATENESS, "200 a second", {"rate": 200, "seconds": 20}, 40),
    Case(
        LATENESS,
        "1,000 a second",
        {"rate": 1_000, "seconds": 20},
        50,
        larger_than="200 a second",
    ),
    Case(
        LATENESS,
        "200 a second, each created 3 s before",
        {"rate": 200, "seconds": 20, "ahead": 3.0},
        35,
        only=_AT_THE_INSTANT,
    ),
    Case(PENDING, "0", {"tasks": 0, "rate": 200, "seconds": 10}, 25, only=_WITH_MANY),
    Case(PENDING, "100,000", {"tasks": 100_000, "rate": 200, "seconds": 10}, 35, only=_WITH_MANY),
    Case(
        PENDING, "1,000,000", {"tasks": 1_000_000, "rate": 200, "seconds": 10}, 70, only=_WITH_MANY
    ),
    Case(SEVERAL, "1 instance", {"tasks": 10_000, "instances": 1}, 20, only=_WITH_MANY),
    Case(SEVERAL, "2 instances", {"tasks": 10_000, "instances": 2}, 20, only=_WITH_MANY),
    Case(SEVERAL, "3 instances", {"tasks": 10_000, "instances": 3}, 20, only=_WITH_MANY),
)
QUICK = (
    Case(CREATE, "1 connection", {"seconds": 2, "connections": 1}, 7),
    Case(CREATE, "32 connections", {"seconds": 2, "connections": 32}, 7),
    Case(BATCH, "batches of 1,000", {"seconds": 2}, 6),
    Case(BURST, "2,000", {"tasks": 2_000}, 12),
    Case(LATENESS, "200 a second", {"rate": 200, "seconds": 3}, 14),
    Case(
        LATENESS,
        "200 a second, each created 3 s before",
        {"rate": 200, "seconds": 3, "ahead": 3.0},
        14,
        only=_AT_THE_INSTANT,
    ),
    Case(PENDING, "0", {"tasks": 0, "rate": 100, "seconds": 2}, 15, only=_WITH_MANY),
    Case(PENDING, "10,000", {"tasks": 10_000, "rate": 100, "seconds": 2}, 17, only=_WITH_MANY),
    Case(SEVERAL, "1 instance", {"tasks": 2_000, "instances": 1}, 14, only=_WITH_MANY),
    Case(SEVERAL, "2 instances", {"tasks": 2_000, "instances": 2}, 14, only=_WITH_MANY),
)


def steps(
    cases: Iterable[Case], peers: Sequence[Peer], works: Sequence[str], runs: int
) -> list[Step]:
    """Return all measurements in their order."""
    wanted = [case for case in cases if case.work in works]
    return [
        Step(run, case, peer)
        for run in range(1, runs + 1)
        for case in wanted
        for peer in (*peers[run - 1 :], *peers[: run - 1])
        if case.work in peer.works and fits(case, peer)
    ]


def fits(case: Case, peer: Peer) -> bool:
    """Whether a peer can do it at all, within bounds."""
    if case.only and peer.key not in case.only:
        return False
    stored = case.arguments.get("tasks", 0)
    return peer.key == OURS or bool(stored / (peer.bulk_rate or peer.store_rate) <= PRELOAD_SECONDS)
