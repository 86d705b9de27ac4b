"""The shapes of how the service does."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from job_scheduler.core.fields import EXAMPLE_ID, Uuid

EXAMPLE: JsonDict = {
    "status": "ok",
    "time": "2027-07-01T10:00:00.004217Z",
    "version": "0.1.0",
    "instance_id": EXAMPLE_ID,
    "database": {"status": "ok", "backend": "postgresql", "latency_ms": 0.734, "since": None},
    "lock": {"status": "ok", "backend": "redis", "latency_ms": None, "since": None},
    "scheduler": {
        "status": "ok",
        "stopping": False,
        "last_sweep_at": "2027-07-01T09:59:59.531802Z",
        "held": 12,
        "queued": 0,
        "running": 3,
        "lost": 0,
    },
    "clock": {"offset_ms": 0.412, "error_ms": 0.385},
    "recovery": {"status": "ok", "state": "idle", "since": None, "tasks": None, "action": None},
}
EXAMPLE_UNAVAILABLE: JsonDict = EXAMPLE | {
    "status": "unavailable",
    "database": {
        "status": "unavailable",
        "backend": "postgresql",
        "latency_ms": None,
        "since": "2027-07-01T09:59:59.531802Z",
    },
}


class PartHealth(BaseModel):
    """How one part of the service does."""

    status: Annotated[str, Field(description="ok, degraded or unavailable.")]
    backend: str
    latency_ms: float | None = None
    since: Annotated[datetime | None, Field(description="Since when it is not ok.")] = None


class SchedulerHealth(BaseModel):
    """How the scheduler does."""

    status: str
    stopping: Annotated[bool, Field(description="The service was told to stop.")]
    last_sweep_at: datetime | None
    held: Annotated[int, Field(description="Tasks that the timer holds in memory.")]
    queued: Annotated[int, Field(description="Due tasks that wait for capacity.")]
    running: int
    lost: Annotated[
        int, Field(description="Handlers that go on past their time, and keep their places.")
    ]


class ClockHealth(BaseModel):
    """The database's clock, which decides when tasks run, as it is known here."""

    offset_ms: Annotated[
        float,
        Field(
            description="How far it is ahead of this machine's wall clock (negative: behind). "
            "The true value lies between this and this plus `error_ms`."
        ),
    ]
    error_ms: Annotated[
        float,
        Field(
            description="By how much a task may start late because the clock is not known any "
            "better. None starts early."
        ),
    ]


class RecoveryHealth(BaseModel):
    """Whether tasks that a downtime made overdue are being run, or wait for an approval."""

    status: str
    state: Annotated[str, Field(description="idle, releasing or waiting.")]
    since: datetime | None = None
    tasks: Annotated[int | None, Field(description="How many wait, as of the last minute.")] = None
    action: Annotated[str | None, Field(description="What a person can do.")] = None


class Health(BaseModel):
    """How the service does: ok and degraded answer 200, unavailable 503."""

    status: str
    time: datetime
    version: str
    instance_id: Uuid
    database: PartHealth
    lock: PartHealth
    scheduler: SchedulerHealth
    clock: ClockHealth
    recovery: RecoveryHealth


class Probe(BaseModel):
    """The answer to a load balancer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: str
