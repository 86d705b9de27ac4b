"""The due queue: starts runs in the order of their times, while there is capacity for them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from job_scheduler.core.lanes import Lane
from job_scheduler.core.places import Place
from job_scheduler.core.store import DueTask

_logger = logging.getLogger(__name__)

_BROKEN_PAUSE = 1.0
RECORDING_MAX = 200
"""While so many results wait to be recorded no more runs are started: each may be a megabyte."""
QUEUE_MAX = 20_000
"""Due tasks that wait for capacity in memory, at most; as many again of a raised priority."""


class Dispatcher:
    """Starts `run_task` for due tasks, at most `max_running` at a time, most urgent first.

    `run_task` gets, beside the task, the place that it takes. `lane_of` tells the lane of a
    task; a lane that is full holds nobody else up. `on_room` is called when a run has ended.

    Belongs to the event loop's thread.
    """

    def __init__(
        self,
        run_task: Callable[[DueTask, Place], Coroutine[Any, Any, None]],
        lane_of: Callable[[DueTask], Lane],
        max_running: int,
        on_room: Callable[[], None],
    ) -> None:
        self._run_task = run_task
        self._lane_of = lane_of
        self._max_running = max_running
        self._on_room = on_room
        self._lanes: list[Lane] = []
        self._known: set[str] = set()
        self._runs: set[asyncio.Future[None]] = set()
        self._taken = 0
        self.lost = 0
        """How many places are taken by handlers whose runs have ended before them."""
        self._stopping = False

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return len(self._runs)

    @property
    def queued(self) -> int:
        """How many due tasks wait for capacity."""
        return sum(len(lane) for lane in self._lanes)

    def __contains__(self, task_id: str) -> bool:
        """Tell whether a task waits or runs here."""
        return task_id in self._known

    def offer(self, tasks: Iterable[DueTask]) -> None:
        """Take due tasks and start those for which there is capacity.

        What is too much for memory is left to a later sweep.
        """
        queued = self.queued
        for task in tasks:
            room = QUEUE_MAX if task.priority == 0 else 2 * QUEUE_MAX
            if task.task_id in self._known or queued >= room:
                continue
            lane = self._lane_of(task)
            if lane not in self._lanes:
                self._lanes.append(lane)
            lane.put(task)
            queued += 1
            self._known.add(task.task_id)
        self._start_runs()

    def stop(self) -> None:
        """Start nothing any more."""
        self._stopping = True

    async def drain(self, seconds: float) -> bool:
        """Wait up to `seconds` for the runs; tell whether all have ended."""
        if self._runs:
            await asyncio.wait(self._runs, timeout=seconds)
        return not self._runs

    def _start_runs(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping and self._has_room():
            ready = [(first, lane) for lane in self._lanes if (first := lane.first()) is not None]
            if not ready:
                return
            _, lane = min(ready, key=lambda each: each[0])
            task = lane.take()
            self._taken += 1
            place = Place(partial(self._give_back, lane, task.name), self._note_loss)
            run = loop.create_task(self._run_task(task, place))
            self._runs.add(run)
            run.add_done_callback(partial(self._finish, task, place))

    def _has_room(self) -> bool:
        recording = len(self._runs) - (self._taken - self.lost)
        return self._taken < self._max_running and recording < RECORDING_MAX

    def _note_loss(self) -> None:
        self.lost += 1

    def _give_back(self, lane: Lane, name: str, place: Place) -> None:
        self._taken -= 1
        self.lost -= place.is_lost
        lane.give_back(name)
        self._start_runs()

    def _finish(self, task: DueTask, place: Place, run: asyncio.Future[None]) -> None:
        self._runs.discard(run)
        place.free()
        if not run.cancelled() and (error := run.exception()) is not None:
            _logger.error("the run of task %s broke off", task.task_id, exc_info=error)
            # Not at once again: what broke may well break again.
            asyncio.get_running_loop().call_later(_BROKEN_PAUSE, self._known.discard, task.task_id)
        else:
            self._known.discard(task.task_id)
        self._start_runs()
        self._on_room()
