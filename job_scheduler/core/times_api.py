"""The routes that tell when a task runs: one that is there, or one that is only thought of."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query

from job_scheduler.bodies import JsonRoute
from job_scheduler.constants import TaskStatus
from job_scheduler.core import store
from job_scheduler.core.cron import Cron
from job_scheduler.core.cron_words import describe, warnings
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.recurrence import UTC_NAME, Recurrence
from job_scheduler.core.recurring import readable
from job_scheduler.core.rhythm import load_zone
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_times import Moment, Preview
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import ServicesDep, TaskIdDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import TaskNotFound

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=JsonRoute)

_TIMES_MAX = 1_000
_GAPS_SEEN = 50
"""So many of the next times are looked at for the smallest gap between two."""
_Number = Annotated[int, Query(ge=1, le=_TIMES_MAX, description="How many times to tell, at most.")]


@router.post(
    "/preview",
    operation_id="previewTask",
    summary="Tell when a task would run",
    response_model=Preview,
    responses=problems(400, 413, 415, 422, 500, 503),
)
async def preview_task(wanted: TaskCreate, services: ServicesDep, n: _Number = 5) -> Preview:
    """Tell when a task would run, if it were posted, and what is worth knowing. Nothing is stored.

    The times are counted from `start_at`, itself included, or else from now.
    """
    now = services.clock.now()
    zone = load_zone(wanted.timezone or UTC_NAME)
    known = _warnings(wanted, now)
    times = list(islice(_times(wanted, now), n))
    if (refusal := services.refusal_of(wanted)) is not None:
        if not times and wanted.end_at is None:
            raise refusal
        known.append(f"POST /tasks would refuse it: {refusal}")
    return Preview(
        next=[moment_in(each, zone) for each in times],
        description=_description(wanted),
        warnings=known,
    )


@router.get(
    "/{task_id}/next",
    operation_id="listTimes",
    summary="Tell when a task runs next",
    response_model=list[Moment],
    responses=problems(TaskNotFound(EXAMPLE_ID), 422, 500, 503),
)
async def list_times(task_id: TaskIdDep, services: ServicesDep, n: _Number = 10) -> list[Moment]:
    """List the times at which a task is still to run: one, those of its recurrence, or none."""
    row = await services.database.read(store.get_task, task_id)
    recurrence = readable(task_id, row["recurrence"]) if row["recurrence"] else None
    zone = load_zone("UTC" if recurrence is None else recurrence.timezone)
    return [moment_in(each, zone) for each in islice(_times_left(row, recurrence), n)]


def moment_in(instant: datetime, zone: ZoneInfo) -> Moment:
    """Return an instant as it is told, in UTC and as the clocks of a zone show it."""
    try:
        local = instant.astimezone(zone)
    except OverflowError:  # in the years 1 and 9999
        local = instant
    wall = local.replace(tzinfo=None).isoformat()
    return Moment(utc=instant, local=wall, offset=local.isoformat().removeprefix(wall))


def _times(wanted: TaskCreate, now: datetime) -> Iterator[datetime]:
    recurrence = wanted.recurrence
    if recurrence is None:
        return iter([wanted.run_at] if wanted.run_at else [])
    begin = recurrence.start_at or recurrence.first(now)
    return islice(recurrence.times(begin), recurrence.max_runs) if begin else iter(())


def _times_left(row: TaskRow, recurrence: Recurrence | None) -> Iterator[datetime]:
    waits = row["status"] == TaskStatus.Scheduled and row["missed_at"] is None
    if recurrence is None:
        return iter([row["run_at"]] if waits else [])
    times = recurrence.times(row["run_at"])
    if not waits and row["status"] != TaskStatus.Running:
        return iter(())
    if recurrence.max_runs is not None:
        times = islice(times, max(0, recurrence.max_runs - (row["run_count"] or 0)))
    return times if waits else islice(times, 1, None)


def _description(wanted: TaskCreate) -> str:
    if wanted.interval_seconds is not None:
        return f"Every {_plain(wanted.interval_seconds)} seconds."
    if wanted.cron is None:
        return "Once."
    words = describe(Cron.parse(wanted.cron))
    return f"{words.rstrip('.')} ({wanted.timezone or UTC_NAME})."


def _plain(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _warnings(wanted: TaskCreate, now: datetime) -> list[str]:
    recurrence = wanted.recurrence
    if recurrence is None:
        return []
    found = [*_of_past(recurrence, now), *_of_jitter(recurrence, _times(wanted, now))]
    if recurrence.cron is not None:
        line, zone = Cron.parse(recurrence.cron), load_zone(recurrence.timezone)
        found += warnings(line, zone, recurrence.dst_gap, recurrence.dst_fold, now)
    return found


def _of_past(recurrence: Recurrence, now: datetime) -> Iterator[str]:
    """Yield that times are told which are not run."""
    told = recurrence.start_at and next(recurrence.times(recurrence.start_at), None)
    if told is None or told >= now:
        return
    words = "start_at lies in the past: its times before now are not run."
    if (first := recurrence.first(now)) is not None:
        comes = first.isoformat().replace("+00:00", "Z")
        words += f" The first one that is comes at {comes}."
    yield words


def _of_jitter(recurrence: Recurrence, times: Iterator[datetime]) -> Iterator[str]:
    """Yield that a start may be put off beyond the time that follows."""
    jitter = timedelta(seconds=recurrence.jitter_seconds or 0)
    gaps = [after - before for before, after in pairwise(islice(times, _GAPS_SEEN))]
    if gaps and jitter > min(gaps):
        yield (
            f"Two of its times are only {_plain(min(gaps).total_seconds())} seconds apart, and "
            "jitter_seconds may put a start off by more: times that pass until it starts are left "
            "out, unless overlap is queue or catch_up is all."
        )
