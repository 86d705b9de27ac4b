"""Lanes: the due tasks of one kind, and the places that they have."""

import heapq
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from job_scheduler.core.shares import Share
from job_scheduler.core.store import DueTask

_Entry = tuple[int, datetime, tuple[int, bytes], DueTask]
"""Sorts by priority, then by time, then by whose share it is."""
_NO_RESERVE_BELOW = 4
_RESERVE = 16


class Lane:
    """A kind of run with a `capacity` of its own, such as those that need a thread.

    Of the tasks that wait, the one with the highest priority starts first, then the one that is due
    first; of those due at one instant, first what is in this instance's `share`. Tasks of one name
    never take all places: one in sixteen is left to others, so that a handler which hangs does not
    keep every other one from running.
    """

    def __init__(self, capacity: int, share: Callable[[], Share] = Share) -> None:
        self.capacity = capacity
        self.running = 0
        self._share = share
        self._most_of_one = most_of_one(capacity)
        self._running_of: Counter[str] = Counter()
        self._queues: dict[str, list[_Entry]] = {}
        self._firsts: list[_Entry] = []
        """The first of each name that may start; and entries that are out of date."""
        self._queued = 0

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return self._queued

    def put(self, task: DueTask) -> None:
        """Let a task wait."""
        entry = (-task.priority, task.due, self._share().turn(task.task_id), task)
        queue = self._queues.setdefault(task.name, [])
        heapq.heappush(queue, entry)
        self._queued += 1
        if queue[0] is entry:
            self._offer_first(task.name)

    def first(self) -> _Entry | None:
        """Return what is to start next, or None if there is no place, or nothing for it."""
        while self._firsts and self.running < self.capacity:
            entry = self._firsts[0]
            name = entry[-1].name
            queue = self._queues.get(name)
            if queue and queue[0] is entry and self._running_of[name] < self._most_of_one:
                return entry
            heapq.heappop(self._firsts)
        return None

    def take(self) -> DueTask:
        """Take a place for what ``first`` has returned, and return it."""
        *_, task = heapq.heappop(self._firsts)
        queue = self._queues[task.name]
        heapq.heappop(queue)
        self._queued -= 1
        self.running += 1
        self._running_of[task.name] += 1
        if queue:
            self._offer_first(task.name)
        else:
            del self._queues[task.name]
        return task

    def give_back(self, name: str) -> None:
        """Give back the place that a task of this name had."""
        self.running -= 1
        self._running_of[name] -= 1
        if not self._running_of[name]:
            del self._running_of[name]
        if name in self._queues:
            self._offer_first(name)

    def _offer_first(self, name: str) -> None:
        if self._running_of[name] < self._most_of_one:
            heapq.heappush(self._firsts, self._queues[name][0])


def most_of_one(capacity: int) -> int:
    """Return how many of a lane's places tasks of one name take, at most."""
    reserve = 0 if capacity < _NO_RESERVE_BELOW else max(1, capacity // _RESERVE)
    return capacity - reserve
