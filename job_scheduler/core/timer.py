"""The timer: holds tasks that are due soon, and wakes them at their instant.

Only what is due within the lookahead is held; tasks of one instant share one job of APScheduler
(``slots.py``). All of this memory can be lost at any moment: the sweep finds every task again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from apscheduler.schedulers.base import BaseScheduler

from job_scheduler.clock import Clock
from job_scheduler.core.slots import Slot, Slots
from job_scheduler.core.store import DueTask
from job_scheduler.exceptions import SchedulerUnavailable

_logger = logging.getLogger(__name__)

LOOKAHEAD = timedelta(seconds=5)
_PUT_BACK_DELAY = timedelta(milliseconds=200)
_BRIEF_DELAY = timedelta(milliseconds=2)
"""How long a task waits that was to be claimed just before its time."""
_SLICE = 1_000
"""Tasks that are fired in one go: the event loop does not stand still for all of an instant."""
HELD_MAX = 20_000
"""Tasks held in memory, at most; the sweep brings the rest when there is room."""


class _Held(NamedTuple):
    """A task that is held; one without a slot waits for its commit alone."""

    task: DueTask
    slot: Slot | None


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
        self._clock = clock
        self._fire = fire
        self._slots = Slots(scheduler, wall, clock, LOOKAHEAD, self._close)
        self._held: dict[str, _Held] = {}
        self._reserved: set[str] = set()
        self._let_go: set[str] = set()

    @property
    def running(self) -> bool:
        """Whether APScheduler runs."""
        return self._slots.running

    def __len__(self) -> int:
        """Return how many tasks are held."""
        return len(self._held)

    def __contains__(self, task_id: str) -> bool:
        """Tell whether a task is held."""
        return task_id in self._held

    def start(self) -> None:
        """Begin to fire."""
        self._slots.start()

    def stop(self) -> None:
        """Fire nothing any more and forget everything."""
        self._slots.stop()
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
        slot = self._slots.add(task, now) if task.due > now else None
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
        self._held[task.task_id] = _Held(task, self._slots.add(task, now))

    def fire_overdue(self) -> None:
        """Fire what is still held after its time: APScheduler has overslept.

        Likewise what it did not take back, and what the database's clock has jumped over.
        """
        for slot in self._slots.take_overdue():
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

    def _remove(self, task_id: str) -> DueTask | None:
        held = self._held.get(task_id)
        if held is None:
            return None
        if held.slot is not None:
            self._slots.remove(held.slot, task_id)
        del self._held[task_id]
        return held.task

    async def _close(self, slot: Slot, is_due: bool) -> None:
        due = self._release(slot)
        if is_due:
            for place in range(0, len(due), _SLICE):
                self._fire(due[place : place + _SLICE])
                await asyncio.sleep(0)

    def _release(self, slot: Slot) -> list[DueTask]:
        """Hold the tasks of a slot no longer; return them without those not committed yet."""
        due = []
        for task_id, task in slot.tasks.items():
            if task_id in self._reserved:
                self._held[task_id] = _Held(task, None)
            else:
                del self._held[task_id]
                due.append(task)
        return due
