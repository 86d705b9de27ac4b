"""What the service must reach: ratios of figures of one and the same run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    PGQUEUER_100,
    PROCRASTINATE,
    PSYCOPG2,
    SEVERAL,
    TUTORIAL,
)
from benchmarks.results import Results, Spread


@dataclass(frozen=True)
class Point:
    """A figure of one measurement."""

    work: str
    case: str
    figure: str
    peer: str = OURS


@dataclass(frozen=True)
class Ratio:
    """One requirement. Without `beside` it is the figure itself."""

    text: str
    at_least: str
    aim: str
    ours: Point
    beside: Point | None = None
    unit: str = ""
    low_is_good: bool = False
    needed: float | None = None
    wanted: float | None = None

    def measured(self, found: Results) -> Spread | None:
        """Return the ratio over the runs; None where one of the two is missing in each."""
        ours = _values(found, self.ours)
        if self.beside is None:
            return Spread.of(ours.values()) if ours else None
        theirs = _values(found, self.beside)
        ratios = [ours[run] / theirs[run] for run in ours if theirs.get(run)]
        return Spread.of(ratios) if ratios else None

    def verdict(self, measured: Spread | None) -> str:
        """Say how it stands."""
        if measured is None:
            return "not measured"
        if self.needed is None or self.wanted is None:
            return ""
        for limit, words in ((self.wanted, "aim reached"), (self.needed, "reached")):
            if (measured.median <= limit) if self.low_is_good else (measured.median >= limit):
                return words
        return "**missed**"


def _values(found: Results, point: Point) -> Mapping[int, float]:
    return found.values(point.work, point.case, point.peer, point.figure)


def _at_least(text: str, ours: Point, beside: Point, needed: float, wanted: float) -> Ratio:
    return Ratio(
        text, f"{needed:g} ×", f"{wanted:g} ×", ours, beside, " ×", needed=needed, wanted=wanted
    )


def _beside(point: Point, peer: str, case: str = "", figure: str = "") -> Point:
    return Point(point.work, case or point.case, figure or point.figure, peer)


_ONE = Point(CREATE, "1 connection", "p50_ms")
_MANY = Point(CREATE, "32 connections", "per_s")
_BATCH = Point(BATCH, "batches of 1,000", "per_s")


def _bursts(case: str) -> Iterable[Ratio]:
    ours = Point(BURST, case, "per_s")
    text = f"burst of {case}, one instance, beside "
    yield _at_least(
        f"{text}bare psycopg2 (claim and complete by 100)", ours, _beside(ours, PSYCOPG2), 0.4, 0.7
    )
    yield _at_least(f"{text}pgqueuer, its defaults", ours, _beside(ours, PGQUEUER), 1.2, 2.5)
    yield _at_least(f"{text}pgqueuer, batch 100", ours, _beside(ours, PGQUEUER_100), 0.5, 0.9)
    yield _at_least(f"{text}Procrastinate", ours, _beside(ours, PROCRASTINATE), 4, 8)
    yield _at_least(f"{text}APScheduler's store", ours, _beside(ours, APSCHEDULER), 4, 8)


def _lateness(case: str, needed: float, wanted: float) -> Iterable[Ratio]:
    for peer, name in (
        (OURS, "of the service"),
        (CELERY, "of Celery"),
        (APSCHEDULER, "of APScheduler"),
    ):
        judged = peer == OURS
        yield Ratio(
            f"lateness at {case}, p99 {name}",
            f"< {needed:g} ms" if judged else "",
            f"< {wanted:g} ms" if judged else "",
            Point(LATENESS, case, "p99_ms", peer),
            unit=" ms",
            low_is_good=True,
            needed=needed if judged else None,
            wanted=wanted if judged else None,
        )


def all_ratios(found: Results) -> list[Ratio]:
    """Return all of them; the sizes are those that were measured."""
    bursts, pending, several = (found.cases(work) for work in (BURST, PENDING, SEVERAL))
    ratios = [
        _at_least(
            "create over HTTP, 32 connections, beside the bare route",
            _MANY,
            _beside(_MANY, BARE_ROUTE),
            0.55,
            0.7,
        ),
        _at_least("the same beside the tutorial pattern", _MANY, _beside(_MANY, TUTORIAL), 5, 8),
        Ratio(
            "the same with 1 connection: its time beside one INSERT and COMMIT by psycopg2",
            "< 2.5 ×",
            "1.5 ×",
            _ONE,
            _beside(_ONE, PSYCOPG2),
            " ×",
            low_is_good=True,
            needed=2.5,
            wanted=1.5,
        ),
        _at_least(
            "`POST /tasks/batch` of 1,000 beside psycopg2's multi-row INSERTs of 1,000",
            _BATCH,
            _beside(_BATCH, PSYCOPG2),
            0.35,
            0.6,
        ),
    ]
    if bursts:
        ratios += _bursts(bursts[0])
    for case, limits in (("200 a second", (8, 3)), ("1,000 a second", (25, 8))):
        if case in found.cases(LATENESS):
            ratios += _lateness(case, *limits)
    if len(pending) > 1:
        ratios += [
            Ratio(
                f"{name} with {pending[-1]} pending beside 0",
                "noise",
                "noise",
                Point(PENDING, pending[-1], figure),
                Point(PENDING, pending[0], figure),
                " ×",
            )
            for name, figure in (("start-up", "startup_s"), ("memory", "memory_mb"))
        ]
    for case in several[1:]:
        one = Point(SEVERAL, several[0], "per_s")
        ratio = _at_least(f"burst, {case} beside one", _beside(one, OURS, case), one, 0.95, 1.2)
        ratios.append(ratio)
    return ratios
