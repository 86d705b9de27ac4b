"""The route that tells how many tasks fall due in the time to come."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Request

from job_scheduler.core.due_counts import Due, read_due
from job_scheduler.core.forecast import Expansion, Interval, summed
from job_scheduler.core.schemas_forecast import (
    HOURS_MAX,
    INTERVALS_MAX,
    Forecast,
    IntervalForecast,
    NameForecast,
)
from job_scheduler.dependencies import ServicesDep
from job_scheduler.errors import problems
from job_scheduler.queries import StrictRoute

router = APIRouter(tags=["tasks"], route_class=StrictRoute)

STEPS_MAX = 50_000
"""Steps of work that one forecast takes, at most: some seconds."""
_PIECE = 200
"""Steps that are taken in one go."""
_BREATH = 0.005
"""Seconds between two pieces, in which whatever else runs has the interpreter to itself."""


@router.get(
    "/forecast",
    operation_id="forecast",
    summary="Tell how many tasks fall due when",
    response_model=Forecast,
    responses=problems(422, 500, 503),
)
async def forecast(
    request: Request,
    services: ServicesDep,
    hours: Annotated[
        int, Query(ge=1, le=HOURS_MAX, description="How many hours are looked ahead.")
    ] = 24,
    intervals: Annotated[
        int | None,
        Query(
            ge=1,
            le=INTERVALS_MAX,
            description="About how many intervals there are. By default they last a minute, 5 or "
            "15 minutes, or an hour: 15 minutes for 24 hours.",
        ),
    ] = None,
) -> Forecast:
    """Tell how many tasks fall due in each interval, recurring ones each time, and the peaks.

    Paused tasks and those that were set aside after a downtime do not count. Nobody knows yet which
    times a recurring task will leave out (`overlap`), and how many tasks will be tried again.

    One forecast is made at a time, for all who wait for the same one. Who would wait for its turn
    for longer than 20 seconds is told to come back (503).
    """

    async def make() -> Forecast:
        due = await services.database.read_at_once(read_due, hours, intervals)
        expansion = Expansion(due.grid, due.recurring)
        await _carry_out(expansion.steps(), STEPS_MAX)
        return _answer(due, expansion)

    return await services.forecasts.ask((hours, intervals), make, request.is_disconnected)


async def _carry_out(steps: Iterator[None], most: int) -> None:
    """Take steps of work in a thread, piece by piece, `most` of them at most."""
    taken = _PIECE
    while taken == _PIECE and most > 0:
        taken = await asyncio.to_thread(_take, steps, min(_PIECE, most))
        most -= taken
        await asyncio.sleep(_BREATH)


def _take(steps: Iterator[None], number: int) -> int:
    return sum(1 for _ in islice(steps, number))


def _answer(due: Due, expansion: Expansion) -> Forecast:
    intervals, peaks = summed(due.grid, due.totals, due.counts, expansion.counts)
    complete_until = min(due.complete_until, expansion.complete_until)
    return Forecast(
        begin=due.grid.begin,
        until=due.grid.until,
        interval_seconds=due.grid.seconds,
        intervals=[_shown(each) for each in intervals],
        total=sum(each.tasks for each in intervals),
        peaks=[_shown(each) for each in peaks],
        overdue=due.overdue,
        truncated=complete_until < due.grid.until,
        complete_until=complete_until,
    )


def _shown(interval: Interval) -> IntervalForecast:
    names = [NameForecast(name=name, tasks=tasks) for name, tasks in interval.names]
    return IntervalForecast(at=interval.at, tasks=interval.tasks, names=names)
