"""What the routes need, as annotated dependencies that read the application's typed state."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from job_scheduler.admission import Admission
from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock
from job_scheduler.config import Settings
from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.core.handlers.works import Works
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.locks import TaskLock
from job_scheduler.core.loop import Loop
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.release import Release
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_transfer import ANEW, Standing
from job_scheduler.core.shutdown import Shutdown
from job_scheduler.core.store import TaskRow
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.timer import Timer
from job_scheduler.core.waiting import Waiting
from job_scheduler.core.watching import Watching
from job_scheduler.database import Database
from job_scheduler.exceptions import InvalidField, InvalidRequest, Refusal, TaskNotFound
from job_scheduler.identifiers import parse_uuid
from job_scheduler.questions import Questions


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running service; built by ``main.py`` when it starts."""

    settings: Settings
    version: str
    clock: Clock
    database: Database
    creates: Batcher[NewTask, TaskRow | Refusal]
    batches: Admission
    lock: TaskLock
    works: Works
    timer: Timer
    dispatcher: Dispatcher
    sweep: Sweep
    cancellation: Loop
    heartbeat: Heartbeat
    release: Release
    shutdown: Shutdown
    waiting: Waiting
    watching: Watching
    forecasts: Questions

    def new_task(self, wanted: TaskCreate, task_id: str, standing: Standing = ANEW) -> NewTask:
        """Return the task that a request asks for, with the defaults of what it runs.

        One that recurs goes on from its `standing`.
        """
        handler = self.works.handler_of(wanted)
        attempts = 1 if handler is None else handler.options.max_attempts
        # Its last time may have passed since it was examined: then it is due.
        run_at = self._first_of(wanted, standing) or self.clock.now()
        runs = standing.run_count or 0
        return NewTask(task_id, wanted, run_at, attempts, handler is not None, runs)

    def refusal_of(self, wanted: TaskCreate, standing: Standing = ANEW) -> InvalidRequest | None:
        """Return why this task is not taken, if so: it never runs, or asks for what is not to be
        had.
        """
        if self._first_of(wanted, standing) is None:
            if wanted.end_at is None:
                return InvalidField("body", "cron", "It never runs: see dst_gap.")
            return InvalidField("body", "end_at", "Comes before its first time: it never runs.")
        return self.works.refusal_of(wanted)

    def look_again(self, *task_ids: str) -> None:
        """Have the sweep tell the timer anew when these tasks are due.

        Raises:
            SchedulerUnavailable: APScheduler refuses to forget what it knows of them.
        """
        for task_id in task_ids:
            with self.timer.withdrawn(task_id):
                pass
        self.sweep.wake()

    def _first_of(self, wanted: TaskCreate, standing: Standing) -> datetime | None:
        recurrence = wanted.recurrence
        if recurrence is None:
            return wanted.run_at
        now = self.clock.now()
        if standing.run_at is None:
            return recurrence.first(now)
        policy = self.settings.recover_past_tasks
        return recurrence.after_move(wanted.task_id or "", standing.run_at, now, policy)


def services_of(request: Request) -> Services:
    """Return the parts of the service that a request came to.

    For a route that is called thousands of times a second: to solve a dependency takes FastAPI
    34 microseconds, where the rest of the request takes 190.
    """
    return cast("Services", request.state.services)


async def _services(request: Request) -> Services:
    # Not a plain function: FastAPI would call that in a thread.
    return services_of(request)


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
