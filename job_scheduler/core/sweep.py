"""The sweep: finds in the database what is due soon and not held yet, wherever it came from.

Rows of other instances, of plain SQL, of a slow transaction or of a dead instance are all
found the same way; nothing else has to be remembered, and losing a wake-up costs one sweep.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import Connection

from job_scheduler.clock import Clock
from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.slots import NEAR
from job_scheduler.core.store import DueTask, due_tasks
from job_scheduler.core.timekeeping import measure
from job_scheduler.core.timer import HELD_MAX, Timer
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable, SchedulerUnavailable

_logger = logging.getLogger(__name__)

_INTERVAL = 0.5
_PAUSE_FACTOR = 5
HORIZON = timedelta(seconds=2)
"""What is due within it is read again by each sweep, so it is no longer than it must be."""
_PAUSE_MAX = HORIZON.total_seconds() / 2
_PAGE = 5_000
_SLICE = 20
"""Tasks registered in one go, at most."""
_STRETCH = 0.0003
"""Seconds for which tasks are registered without a breath: each may be a job of its own for
APScheduler, and what has just come due waits meanwhile, at each of its steps."""
_BREATH = 0.003
"""Seconds between stretches, in which that which runs moves on."""
_SOON = timedelta(seconds=0.5)
"""What is due so soon does not wait for a breath."""


class Sweep:
    """Registers with the timer what is due within two seconds: twice a second, or more seldom when
    there is so much that looking takes long.

    It compares `clock` with the database's on the way. `interval` is in seconds.
    """

    def __init__(
        self,
        database: Database,
        timer: Timer,
        dispatcher: Dispatcher,
        clock: Clock,
        interval: float = _INTERVAL,
    ) -> None:
        self._database = database
        self._timer = timer
        self._dispatcher = dispatcher
        self._clock = clock
        self._interval = interval
        self._wanted = asyncio.Event()
        self._more = False
        self._look_seconds = 0.0
        self.last_at: datetime | None = None
        """When the latest sweep that reached the database ended."""

    async def run(self) -> None:
        """Sweep for ever; an outage of the database is waited out."""
        away = False
        while True:
            # Cleared before, not after: a wish that comes up meanwhile is for another sweep.
            self._wanted.clear()
            begin = time.monotonic()
            try:
                await self.sweep()
                if away:
                    _logger.warning("the database is back")
                away = False
            except DatabaseUnavailable:
                if not away:
                    _logger.warning("the database is away: nothing new is started until it is back")
                away = True
            except Exception:
                _logger.exception("a sweep failed; the next one follows in a moment")
            # A large backlog is looked at less often: looking is not to be the main work.
            pause = max(self._interval, min(_PAUSE_FACTOR * self._look_seconds, _PAUSE_MAX))
            # What is registered with breaths takes its time out of the pause.
            pause -= time.monotonic() - begin - self._look_seconds
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)

    def wake(self) -> None:
        """Sweep at once: somebody says that there is something to find."""
        self._wanted.set()

    def note_room(self) -> None:
        """Sweep at once if the last sweep left something behind, and the queue has run low."""
        if self._more and self._dispatcher.queued < _PAGE:
            self._wanted.set()

    async def sweep(self) -> int:
        """Register what is due soon and not held yet; return how many that were.

        What is held and overdue is fired.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        held = len(self._timer) + self._dispatcher.queued + self._dispatcher.running
        room = min(_PAGE, HELD_MAX - held)
        # When there is no room, nothing is wrong: there is more to do than may wait in memory. Then
        # only what has a raised priority is looked for; likewise while a part of a backlog waits
        # here, which would only be read again.
        urgent = room <= 0 or (self._more and self._dispatcher.queued >= _PAGE)
        # What is held may well be the most urgent: ask for as many more.
        limit = _PAGE if urgent else held + room
        self._timer.note_look()
        begin = time.monotonic()
        found, new = await self._database.read(self._look, limit, urgent)
        self._look_seconds = time.monotonic() - begin
        self._timer.fire_overdue()
        if not urgent:
            del new[room:]
        now = self._clock.now()
        # Found in the order of their priority. What is due first must not wait for a breath that is
        # taken for something else.
        new.sort(key=lambda task: max(task.due, now))
        self._more = urgent or found == limit or len(new) == room
        brought, stretch_end = 0, 0.0
        for slice_ in _slices(new, now):
            if time.monotonic() >= stretch_end:
                # Nor does whoever has woken us wait: the next sweep is for them; nor, for longer
                # than between two sweeps, what nobody has told us of.
                hurry = self._wanted.is_set() or time.monotonic() - begin >= self._interval
                soon = slice_[0].due <= self._clock.now() + _SOON
                await asyncio.sleep(0 if hurry or soon else _BREATH)
                stretch_end = time.monotonic() + _STRETCH
            brought += self._register(slice_)
        self.last_at = self._clock.now()
        return brought

    def _register(self, tasks: Sequence[DueTask]) -> int:
        """Hand tasks to the timer; return how many it took."""
        now = self._clock.now()
        due = [task for task in tasks if task.due <= now]
        # The last one first: those that are due just before it can share its job.
        ahead = [task for task in reversed(tasks) if task.due > now]
        brought = 0
        for task in (*due, *ahead):
            if self._timer.has_let_go(task.task_id):
                continue
            try:
                self._timer.register(task)
                brought += 1
            except SchedulerUnavailable:
                # The others are not to suffer; the next sweep finds this one again.
                _logger.exception("task %s could not be registered", task.task_id)
        return brought

    def _look(self, connection: Connection, limit: int, urgent: bool) -> tuple[int, list[DueTask]]:
        """Return how many are due soon, and those of them that are not held."""
        found = due_tasks(connection, HORIZON, limit, urgent=urgent)
        measure(connection, self._clock)
        # Here, in a thread: what is held or let go of meanwhile is looked up again by the loop.
        return len(found), [task for task in found if not self._is_held(task)]

    def _is_held(self, task: DueTask) -> bool:
        return task.task_id in self._timer or task.task_id in self._dispatcher


def _slices(tasks: Sequence[DueTask], now: datetime) -> Iterator[Sequence[DueTask]]:
    """Divide tasks, which are in the order of their times, into those that are due by `now`, and
    those that may share a job.
    """
    begin = 0
    while begin < len(tasks):
        last = max(tasks[begin].due + NEAR, now)
        end = begin + 1
        while end < len(tasks) and end - begin < _SLICE and tasks[end].due <= last:
            end += 1
        yield tasks[begin:end]
        begin = end
