"""The instants at which tasks are to be fired: each is one job of APScheduler for all its tasks.

What is due is told by the database's clock; APScheduler goes by this machine's wall clock. So
it is given the wall clock's present time and what is still to pass. When the wall clock is put
forward it fires early, and is asked once more for what is left; when it is put back it
oversleeps, and the next sweep fires what is overdue.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from inspect import signature
from itertools import count

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.base import STATE_RUNNING, BaseScheduler
from apscheduler.triggers.date import DateTrigger

from job_scheduler.clock import Clock
from job_scheduler.core.store import DueTask
from job_scheduler.exceptions import SchedulerUnavailable

_logger = logging.getLogger(__name__)

NEAR = timedelta(milliseconds=4)
"""A task shares the job of one that is due up to so much later, or a millisecond more: at a
thousand tasks a second, a job for each would be more than half of all work."""
_MILLISECOND = timedelta(milliseconds=1)
_LATER = [place * _MILLISECOND for place in range(NEAR // _MILLISECOND + 1)]


@dataclass(slots=True)
class Slot:
    """What is fired at one instant, and the APScheduler job that stands for it.

    It is kept at `place`: the first whole millisecond that is not before it, or the next one.
    """

    place: datetime
    instant: datetime
    job_id: str
    tasks: dict[str, DueTask] = field(default_factory=dict)


class Slots:
    """Tasks by the instant at which they are due by `clock`, at most `lookahead` from now.

    `close` gets a slot that is no longer kept here, and whether its time has come; else it lies
    too far ahead since the database's clock was put back. `scheduler` is an APScheduler, `wall`
    the wall clock by which it goes.
    """

    def __init__(
        self,
        scheduler: BaseScheduler,
        wall: Clock,
        clock: Clock,
        lookahead: timedelta,
        close: Callable[[Slot, bool], Awaitable[None]],
    ) -> None:
        self._scheduler = scheduler
        self._wall = wall
        self._clock = clock
        self._lookahead = lookahead
        self._close = close
        self._slots: dict[datetime, Slot] = {}
        self._job_numbers = count()

        async def fire(place: datetime) -> None:
            # A coroutine function: a plain one would be run in a thread.
            await self._fire(place)

        # APScheduler looks at it for each job; to work it out took as long as all else.
        fire.__signature__ = signature(fire)  # type: ignore[attr-defined]
        self._job = fire

    @property
    def running(self) -> bool:
        """Whether APScheduler runs."""
        return bool(self._scheduler.state == STATE_RUNNING)

    def start(self) -> None:
        """Begin to fire."""
        self._scheduler.start()

    def stop(self) -> None:
        """Fire nothing any more and forget everything."""
        if self.running:
            self._scheduler.shutdown(wait=False)
        self._slots.clear()

    def add(self, task: DueTask, now: datetime) -> Slot:
        """Put a task into the slot of its instant, or of one that follows at once.

        Raises:
            SchedulerUnavailable: APScheduler refuses.
        """
        place = task.due + timedelta(microseconds=-task.due.microsecond % 1000)
        near = (self._slots.get(place + later) for later in _LATER)
        slot = next((slot for slot in near if slot is not None and slot.instant >= task.due), None)
        if slot is None:
            instant = task.due
            if place in self._slots:  # for one that is due in the same millisecond, but before it
                instant, place = place, place + _MILLISECOND
            slot = self._slots[place] = Slot(place, instant, self._add_job(place, instant, now))
        slot.tasks[task.task_id] = task
        return slot

    def remove(self, slot: Slot, task_id: str) -> None:
        """Take a task out of its slot.

        Raises:
            SchedulerUnavailable: APScheduler refuses; nothing was changed.
        """
        if slot.tasks.keys() == {task_id}:
            self._remove_job(slot)
            del self._slots[slot.place]
        del slot.tasks[task_id]

    def take_overdue(self) -> list[Slot]:
        """Keep the slots no longer whose time has come, and return them."""
        now = self._clock.now()
        overdue = [slot for slot in self._slots.values() if slot.instant <= now]
        for slot in overdue:
            del self._slots[slot.place]
            with suppress(SchedulerUnavailable):  # Whenever it fires, it will find nothing.
                self._remove_job(slot)
        return overdue

    def _add_job(self, place: datetime, instant: datetime, now: datetime) -> str:
        """Let APScheduler wait from `now` until the slot's `instant`; return the job's id."""
        # A new id each time: APScheduler drops a job that is added while one of the same
        # id is being run.
        job_id = f"{instant.isoformat()}#{next(self._job_numbers)}"
        try:
            self._scheduler.add_job(
                self._job,
                # The wall clock is read after the other: it then fires a trifle late, not early.
                DateTrigger(self._wall.now() + (instant - now)),
                args=[place],
                id=job_id,
                misfire_grace_time=None,
            )
        except Exception as error:
            raise SchedulerUnavailable(f"APScheduler refused a job: {error}") from error
        return job_id

    def _remove_job(self, slot: Slot) -> None:
        try:
            self._scheduler.remove_job(slot.job_id)
        except JobLookupError:
            pass  # It fires just now, and will find its slot empty or gone.
        except Exception as error:
            raise SchedulerUnavailable(f"APScheduler kept a job: {error}") from error

    async def _fire(self, place: datetime) -> None:
        slot = self._slots.get(place)
        if slot is None:
            return
        now = self._clock.now()
        if now < slot.instant <= now + self._lookahead:
            try:
                slot.job_id = self._add_job(place, slot.instant, now)
            except SchedulerUnavailable:
                _logger.exception("%d tasks are left to a sweep", len(slot.tasks))
            return
        del self._slots[place]
        await self._close(slot, slot.instant <= now)
