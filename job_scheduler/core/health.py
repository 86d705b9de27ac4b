"""How the service does: for people, for load balancers and for Kubernetes."""

from datetime import timedelta

from fastapi import APIRouter, Response

from job_scheduler.clock import SystemClock
from job_scheduler.core.schemas_health import (
    EXAMPLE,
    EXAMPLE_UNAVAILABLE,
    ClockHealth,
    Health,
    PartHealth,
    Probe,
    RecoveryHealth,
    SchedulerHealth,
)
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import DatabaseUnavailable, Unavailable

router = APIRouter(tags=["health"])

_PATIENCE_SECONDS = 2.0
_SWEEP_OVERDUE = timedelta(seconds=10)
NOT_READY = "The service cannot accept work at the moment; GET /health says why."


class NotReady(Unavailable):
    """The service runs, but cannot take work at the moment."""


@router.get(
    "/health",
    operation_id="health",
    response_model=Health,
    summary="How the service does, part by part",
    responses={
        200: {"content": {"application/json": {"example": EXAMPLE}}},
        503: {
            "model": Health,
            "description": "The service cannot do its work.",
            "content": {"application/json": {"example": EXAMPLE_UNAVAILABLE}},
        },
        **problems(500),
    },
)
async def health(response: Response, services: ServicesDep) -> Health:
    """Tell how each part does.

    `degraded` (200): Redis is away; tasks run on under the database's claim alone. Or tasks that
    were missed during a downtime wait for an approval; all others run.
    `unavailable` (503): nothing can be accepted or started until it has recovered.
    """
    report = await _report(services)
    if report.status == "unavailable":
        response.status_code = 503
    return report


@router.get(
    "/livez",
    operation_id="livez",
    summary="Does the process turn?",
    response_model=Probe,
    responses=problems(500),
)
@router.get(
    "/healthz",
    operation_id="healthz",
    summary="Does the process turn? (another name of /livez)",
    response_model=Probe,
    responses=problems(500),
)
async def livez() -> Probe:
    """Tell that the process turns. Restart it if this does not answer."""
    return Probe(status="ok")


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Can the service accept work?",
    response_model=Probe,
    responses=problems(500, NotReady(NOT_READY)),
)
async def readyz(services: ServicesDep) -> Probe:
    """Tell whether the service can accept work. Send it none while this answers 503."""
    report = await _report(services)
    if report.status == "unavailable":
        raise NotReady(NOT_READY)
    return Probe(status="ok")


async def _report(services: Services) -> Health:
    database = await _database(services)
    lock_away_since = await services.lock.away_since()
    lock = PartHealth(
        status="ok" if lock_away_since is None else "degraded",
        backend=services.lock.backend,
        since=lock_away_since,
    )
    scheduler = _scheduler(services)
    recovery = _recovery(services)
    statuses = {database.status, lock.status, scheduler.status, recovery.status}
    worst = next(one for one in ("unavailable", "degraded", "ok") if one in statuses)
    return Health(
        status=worst,
        time=services.clock.now(),
        version=services.version,
        instance_id=services.heartbeat.instance_id,
        database=database,
        lock=lock,
        scheduler=scheduler,
        clock=_clock(services),
        recovery=recovery,
    )


async def _database(services: Services) -> PartHealth:
    dialect = services.database.dialect
    try:
        latency = await services.database.ping(_PATIENCE_SECONDS)
    except DatabaseUnavailable:
        return PartHealth(status="unavailable", backend=dialect, since=services.sweep.last_at)
    return PartHealth(status="ok", backend=dialect, latency_ms=round(latency * 1000, 3))


def _clock(services: Services) -> ClockHealth:
    now = services.clock.now()
    return ClockHealth(
        offset_ms=_milliseconds(now - SystemClock().now()),
        error_ms=_milliseconds(services.clock.error),
    )


def _milliseconds(time: timedelta) -> float:
    return round(time / timedelta(milliseconds=1), 3)


def _scheduler(services: Services) -> SchedulerHealth:
    last = services.sweep.last_at
    # The first sweep runs when the service has just started.
    overdue = last is not None and services.clock.now() - last > _SWEEP_OVERDUE
    works = services.timer.running and not overdue and not services.shutdown.has_begun
    return SchedulerHealth(
        status="ok" if works else "unavailable",
        stopping=services.shutdown.has_begun,
        last_sweep_at=last,
        held=len(services.timer),
        queued=services.dispatcher.queued,
        running=services.dispatcher.running,
        lost=services.dispatcher.lost,
    )


def _recovery(services: Services) -> RecoveryHealth:
    row = services.release.current
    if row is None or row.finished_at is not None:
        return RecoveryHealth(status="ok", state="idle")
    if row.waits:
        return RecoveryHealth(
            status="degraded",
            state="waiting",
            since=row.held_at,
            tasks=services.release.held,
            action="POST /recovery/approve runs them; GET /recovery/plan shows what they are.",
        )
    return RecoveryHealth(status="ok", state="releasing", since=row.approved_at or row.missed_at)
