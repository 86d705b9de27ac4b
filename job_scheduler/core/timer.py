"""APScheduler behind few verbs: it wakes tasks that are due soon, at their instant.

Only what is due within the lookahead is held; all tasks of one instant (rounded up to the
millisecond, since a task claimed a microsecond early is not due yet), or of the two milliseconds
before it, share one APScheduler job. All of this memory can be lost at any moment: the sweep finds
every task again.

What is due is told by the database's clock; APScheduler goes by this machine's wall clock. So
it is given the wall clock's present time and what is still to pass. When the wall clock is put
forward it fires early, and is asked once more for what is left; when it is put back it
oversleeps, and the next sweep fires what is overdue.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import NamedTuple

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.base import STATE_RUNNING, BaseScheduler
from apscheduler.triggers.date import DateTrigger

from job_scheduler.clock import Clock
from job_scheduler.core.store import DueTask
from job_scheduler.exceptions import SchedulerUnavailable

_logger = logging.getLogger(__name__)

LOOKAHEAD = timedelta(seconds=5)
_PUT_BACK_DELAY = timedelta(milliseconds=200)
_BRIEF_DELAY = timedelta(milliseconds=2)
"""How long a task waits that was to be claimed just before its time."""
_NEAR = [timedelta(milliseconds=later) for later in (0, 1, 2)]
"""A task shares the APScheduler job of one that is due up to so much later: at a thousand tasks a
second, a job for each would be the timer's main work."""
_SLICE = 1_000
"""Tasks that are fired in one go: the event loop does not stand still for all of an instant."""
HELD_MAX = 20_000
"""Tasks held in memory, at most; the sweep brings the rest when there is room."""


@dataclass(slots=True)
class _Slot:
    """What is fired at one instant, and the APScheduler job that stands for it."""

    instant: datetime
    job_id: str
    tasks: dict[str, DueTask] = field(default_factory=dict)


class _Held(NamedTuple):
    """A task that is held; one without a slot waits for its commit alone."""

    task: DueTask
    slot: _Slot | None


class Timer:
    """Hands tasks to `fire` when they are due by `clock`.

    Belongs to the event loop's thread. `scheduler` is an APScheduler that runs on that loop,
    `wall` the wall clock by which it goes.
    """

    def __init__(
        self,
        scheduler: BaseScheduler,
        wall: Clock,
        clock: Clock,
        fire: Callable[[Sequence[DueTask]], None],
    ) -> None:
        self._scheduler = scheduler
        self._wall = wall
        self._clock = clock
        self._fire = fire
        self._slots: dict[datetime, _Slot] = {}
        self._held: dict[str, _Held] = {}
        self._reserved: set[str] = set()
        self._let_go: set[str] = set()
        self._job_numbers = count()

    @property
    def running(self) -> bool:
        """Whether APScheduler runs."""
        return bool(self._scheduler.state == STATE_RUNNING)

    def __len__(self) -> int:
        """Return how many tasks are held."""
        return len(self._held)

    def __contains__(self, task_id: str) -> bool:
        """Tell whether a task is held."""
        return task_id in self._held

    def start(self) -> None:
        """Begin to fire."""
        self._scheduler.start()

    def stop(self) -> None:
        """Fire nothing any more and forget everything."""
        if self.running:
            self._scheduler.shutdown(wait=False)
        self._slots.clear()
        self._held.clear()

    @contextmanager
    def reserved(self, *tasks: DueTask) -> Iterator[None]:
        """Hold tasks that are about to be committed: they fire only when the block has ended well.

        A task beyond the lookahead (or one too many for memory) is left to the sweep, one that
        is held already is left alone.

        Raises:
            SchedulerUnavailable: APScheduler does not run or refuses; none is held, and the
                block was not entered.
        """
        if not self.running:
            raise SchedulerUnavailable("APScheduler is not running")
        now = self._clock.now()
        reserved: list[DueTask] = []
        try:
            # One by one: when one is refused, those before it are in the list.
            reserved.extend(task for task in tasks if self._reserve(task, now))
            yield
        except BaseException:
            for task in reserved:
                self._reserved.discard(task.task_id)
                with suppress(SchedulerUnavailable):  # Its job will find that it does not exist.
                    self._remove(task.task_id)
            raise
        due = []
        for task in reserved:
            self._reserved.discard(task.task_id)
            held = self._held.get(task.task_id)
            if held is None or held.slot is None:
                # It was due at once, or its instant has passed during the commit.
                self._held.pop(task.task_id, None)
                due.append(task)
        if due:
            self._fire(due)

    def _reserve(self, task: DueTask, now: datetime) -> bool:
        """Hold a task that is not to be fired yet, unless it is held or has no place here."""
        if task.task_id in self._held or task.due > now + LOOKAHEAD or len(self) >= HELD_MAX:
            return False
        slot = self._add(task, now) if task.due > now else None
        self._held[task.task_id] = _Held(task, slot)
        self._reserved.add(task.task_id)
        return True

    def register(self, task: DueTask) -> None:
        """Hold a committed task until it is due; one that is due now is fired at once.

        One that is held already is left alone, one beyond the lookahead is left to the sweep.

        Raises:
            SchedulerUnavailable: APScheduler refuses.
        """
        now = self._clock.now()
        if task.task_id in self._held or task.due > now + LOOKAHEAD:
            return
        if task.due <= now:
            self._fire([task])
            return
        self._held[task.task_id] = _Held(task, self._add(task, now))

    def fire_overdue(self) -> None:
        """Fire what is still held after its time: APScheduler has overslept.

        Likewise what it did not take back, and what the database's clock has jumped over.
        """
        now = self._clock.now()
        for instant in [instant for instant in self._slots if instant <= now]:
            slot = self._slots.pop(instant)
            with suppress(SchedulerUnavailable):  # Whenever it fires, it will find nothing.
                self._remove_job(slot)
            self._fire(self._release(slot))

    def put_back(self, task: DueTask) -> None:
        """Hold a task that could not be claimed just now, and fire it again a little later.

        Soon, if its time has only come within the clock's error: then the database's clock may
        be a moment behind. Else its row is locked by somebody.
        """
        now = self._clock.now()
        near = task.due > now - max(self._clock.error, _BRIEF_DELAY)
        later = max(task.due, now + (_BRIEF_DELAY if near else _PUT_BACK_DELAY))
        try:
            self.register(task._replace(due=later))
        except SchedulerUnavailable:
            _logger.exception("task %s could not be put back; a sweep will", task.task_id)

    def note_look(self) -> None:
        """Take note that somebody begins to look for tasks in the database."""
        self._let_go.clear()

    def has_let_go(self, task_id: str) -> bool:
        """Tell whether a task was withdrawn since: whoever still saw it saw it too early."""
        return task_id in self._let_go

    @contextmanager
    def withdrawn(self, task_id: str) -> Iterator[None]:
        """Let go of a task that is about to be deleted; hold it again if the block fails.

        A task that is not held (it has just fired, or lies beyond the lookahead) is no failure.

        Raises:
            SchedulerUnavailable: APScheduler refuses; the block was not entered.
        """
        task = self._remove(task_id)
        self._let_go.add(task_id)
        try:
            yield
        except BaseException:
            if task is not None:
                self.register(task)
            raise

    def _add(self, task: DueTask, now: datetime) -> _Slot:
        """Put a task into the slot of its instant, or of one that follows at once."""
        instant = _instant(task)
        near = (self._slots.get(instant + later) for later in _NEAR)
        slot = next((slot for slot in near if slot is not None), None)
        if slot is None:
            slot = _Slot(instant, self._add_job(instant, now))
            self._slots[instant] = slot
        slot.tasks[task.task_id] = task
        return slot

    def _add_job(self, instant: datetime, now: datetime) -> str:
        """Let APScheduler wait from `now` until `instant`; return the job's id."""
        # A new id each time: APScheduler drops a job that is added while one of the same
        # id is being run.
        job_id = f"{instant.isoformat()}#{next(self._job_numbers)}"
        try:
            self._scheduler.add_job(
                self._fire_instant,
                # The wall clock is read after the other: it then fires a trifle late, not early.
                DateTrigger(self._wall.now() + (instant - now)),
                args=[instant],
                id=job_id,
                misfire_grace_time=None,
            )
        except Exception as error:
            raise SchedulerUnavailable(f"APScheduler refused a job: {error}") from error
        return job_id

    def _remove(self, task_id: str) -> DueTask | None:
        held = self._held.get(task_id)
        if held is None:
            return None
        slot = held.slot
        if slot is not None and slot.tasks.keys() == {task_id}:
            self._remove_job(slot)
            self._slots.pop(slot.instant, None)
        if slot is not None:
            slot.tasks.pop(task_id, None)
        del self._held[task_id]
        return held.task

    def _remove_job(self, slot: _Slot) -> None:
        try:
            self._scheduler.remove_job(slot.job_id)
        except JobLookupError:
            pass  # It fires just now, and will find its slot empty or gone.
        except Exception as error:
            raise SchedulerUnavailable(f"APScheduler kept a job: {error}") from error

    async def _fire_instant(self, instant: datetime) -> None:
        # A coroutine function: a plain one would be run in a thread.
        slot = self._slots.get(instant)
        if slot is None:
            return
        now = self._clock.now()
        if now < instant <= now + LOOKAHEAD:
            try:
                slot.job_id = self._add_job(instant, now)
            except SchedulerUnavailable:
                _logger.exception("%d tasks are left to a sweep", len(slot.tasks))
            return
        del self._slots[instant]
        if instant <= now:
            due = self._release(slot)
            for place in range(0, len(due), _SLICE):
                self._fire(due[place : place + _SLICE])
                await asyncio.sleep(0)
        else:  # The database's clock was put back: nothing that lies so far ahead is held.
            self._release(slot)

    def _release(self, slot: _Slot) -> list[DueTask]:
        """Hold the tasks of a slot no longer; return them without those not committed yet."""
        due = []
        for task_id, task in slot.tasks.items():
            if task_id in self._reserved:
                self._held[task_id] = _Held(task, None)
            else:
                del self._held[task_id]
                due.append(task)
        return due


def _instant(task: DueTask) -> datetime:
    """Return the first whole millisecond at which the task is due."""
    return task.due + timedelta(microseconds=-task.due.microsecond % 1000)
