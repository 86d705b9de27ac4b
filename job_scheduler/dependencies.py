"""What the routes need, as annotated dependencies that read the application's typed state."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from job_scheduler.admission import Admission
from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock
from job_scheduler.config import Settings
from job_scheduler.constants import UnknownTasks
from job_scheduler.core.creation import NewTask
from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.locks import TaskLock
from job_scheduler.core.release import Release
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.shutdown import Shutdown
from job_scheduler.core.store import TaskRow
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.timer import Timer
from job_scheduler.database import Database
from job_scheduler.exceptions import (
    InvalidPayload,
    InvalidRequest,
    TaskConflict,
    TaskNotFound,
    UnknownTaskName,
)
from job_scheduler.identifiers import parse_uuid


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running service; built by ``main.py`` when it starts."""

    settings: Settings
    version: str
    clock: Clock
    database: Database
    creates: Batcher[NewTask, TaskRow | TaskConflict]
    batches: Admission
    lock: TaskLock
    registry: HandlerRegistry
    timer: Timer
    dispatcher: Dispatcher
    sweep: Sweep
    heartbeat: Heartbeat
    release: Release
    shutdown: Shutdown

    def refusal_of(self, wanted: TaskCreate) -> InvalidRequest | None:
        """Return why this task is not taken, if so.

        Its payload does not fit the handler, or there is none (with ``UNKNOWN_TASKS=reject``).
        """
        handler = self.registry.get(wanted.name)
        if handler is not None:
            faults = handler.arguments.faults(wanted.payload or {})
            return InvalidPayload(wanted.name, faults) if faults else None
        if self.settings.unknown_tasks is not UnknownTasks.Reject:
            return None
        return UnknownTaskName(wanted.name, self.registry.names())

    def attempts_of(self, name: str) -> int:
        """Return how often a task of this name may be started if it does not say so itself."""
        handler = self.registry.get(name)
        return 1 if handler is None else handler.options.max_attempts


async def _services(request: Request) -> Services:
    # Not a plain function: FastAPI would call that in a thread.
    return cast("Services", request.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


async def _known_form(
    task_id: Annotated[str, Path(description="The task's id (a UUID).", examples=[EXAMPLE_ID])],
) -> str:
    """Return the id in the form in which it is stored; what is no UUID names no task."""
    canonical = parse_uuid(task_id)
    if canonical is None:
        raise TaskNotFound(task_id)
    return canonical


TaskIdDep = Annotated[str, Depends(_known_form)]
