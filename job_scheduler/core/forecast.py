"""How many tasks fall due in each interval of the time to come, and which names make the peaks.

Tasks that run once are counted by the database. The times of recurring ones follow from their
rules: those of an interval are reckoned, those of a cron line are gone through, the earliest first
over all lines. So when there are too many for the work that is allowed, all is told up to an
instant.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from job_scheduler.core.recurrence import Recurrence
from job_scheduler.core.rhythm import Rhythm

NAMES_TOLD = 5
"""Names that an interval tells, at most."""
PEAKS_TOLD = 5
"""Intervals that are told as peaks, at most."""

_USUAL = (60, 300, 900, 3_600)
"""Lengths of intervals, in seconds: the first by which there are not too many."""
_USUALLY_MAX = 200
_MEMBERS_AT_ONCE = 20
"""Followers of a rule for whom a time is counted in one step: as long as it takes to find it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)

Counts = defaultdict[int, Counter[str]]
"""How many tasks of each name fall due, by the places of intervals."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Intervals from `begin` until `until`, each of some whole `seconds` from the Unix epoch on, so
    that they begin at round times.
    """

    begin: datetime
    until: datetime
    seconds: int

    @classmethod
    def of(cls, begin: datetime, hours: int, intervals: int | None) -> "Grid":
        """Return about so many intervals for so many hours."""
        length = hours * 3_600
        if intervals is None:
            seconds = next(each for each in _USUAL if length <= each * _USUALLY_MAX)
        else:
            seconds = -(-length // intervals)
        return cls(begin, begin + timedelta(seconds=length), seconds)

    @property
    def origin(self) -> datetime:
        """When the first interval begins: not after `begin`."""
        return _EPOCH + (self.begin - _EPOCH) // self._step * self._step

    @property
    def number(self) -> int:
        """How many intervals there are."""
        return -((self.origin - self.until) // self._step)

    @property
    def _step(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def place(self, moment: datetime) -> int:
        """Return which interval a moment lies in."""
        return (moment - self.origin) // self._step

    def at(self, place: int) -> datetime:
        """Return when an interval begins."""
        return self.origin + place * self._step

    def holds(self, moment: datetime) -> bool:
        """Tell whether a moment lies in any of them."""
        return self.begin <= moment < self.until


@dataclass(frozen=True, slots=True)
class Recurring:
    """A recurring task as it stands in the database; `due` is None while it runs."""

    task_id: str
    name: str
    due: datetime | None
    run_at: datetime
    document: Any
    run_count: int


@dataclass(slots=True)
class _Members:
    """Tasks of one name that follow a rule after `since`, up to `end` and so many times more.

    With a `jitter` it is one task, whose starts are put off.
    """

    name: str
    since: datetime
    end: datetime
    left: float
    tasks: int = 0
    jitter: tuple[str, Recurrence] | None = None


@dataclass(slots=True)
class _Stream:
    """A rule that is gone through, and those who follow it."""

    rhythm: Rhythm
    members: dict[Any, _Members] = field(default_factory=dict)


class Expansion:
    """The times of recurring tasks, counted by intervals in `counts` as far as the work has gone.

    Before `complete_until` none is left out.
    """

    def __init__(self, grid: Grid, tasks: Sequence[Recurring]) -> None:
        self.counts: Counts = defaultdict(Counter)
        self.complete_until = grid.begin
        self._grid = grid
        self._tasks = tasks
        self._streams: dict[Any, _Stream] = {}

    def steps(self) -> Iterator[None]:
        """Do the work, of which each step takes about a tenth of a millisecond."""
        for task in self._tasks:
            self._take(task)
            yield
        heap: list[tuple[datetime, int, _Stream]] = []
        for order, stream in enumerate(self._streams.values()):
            since = min(each.since for each in stream.members.values())
            self._push(heap, stream, order, max(since, self._grid.begin - _TICK))
            yield
        while heap:
            moment, order, stream = heapq.heappop(heap)
            self.complete_until = moment
            for number, members in enumerate(stream.members.values()):
                if number % _MEMBERS_AT_ONCE == 0:
                    yield
                self._count(members, moment)
            self._push(heap, stream, order, moment)
        self.complete_until = self._grid.until

    def _push(
        self,
        heap: list[tuple[datetime, int, _Stream]],
        stream: _Stream,
        order: int,
        since: datetime,
    ) -> None:
        """Let a rule wait for its next time, if that is of interest to anybody."""
        end = max((each.end for each in stream.members.values() if each.left > 0), default=None)
        if end is None:
            return
        following = stream.rhythm.first_after(since)
        if following is not None and following <= end:
            heapq.heappush(heap, (following, order, stream))

    def _take(self, task: Recurring) -> None:
        """Count a task's next time, and put those after it down for reckoning or going through."""
        if task.due is not None and self._grid.holds(task.due):
            self.counts[self._grid.place(task.due)][task.name] += 1
        try:
            recurrence = Recurrence.of(task.document)
        except ValueError:
            return  # It runs once more, and ends then.
        left = float("inf")
        if recurrence.max_runs is not None:
            left = recurrence.max_runs - task.run_count - 1
        if left <= 0:
            return
        end = self._grid.until - _TICK
        if recurrence.end_at is not None:
            end = min(end, recurrence.end_at)
        rhythm = recurrence.rhythm(task.run_at)
        since = max(task.run_at, self._grid.begin - _TICK)
        if recurrence.interval_seconds is not None and not recurrence.jitter_seconds:
            step = timedelta(seconds=recurrence.interval_seconds)
            self._reckon(task.name, rhythm.first_after(since), step, end, left)
            return
        jitter = (task.task_id, recurrence) if recurrence.jitter_seconds else None
        key: Any = task.task_id
        if recurrence.cron is not None:
            # Who follows one rule is gone through together.
            key = (recurrence.cron, recurrence.timezone, recurrence.dst_gap, recurrence.dst_fold)
        stream = self._streams.setdefault(key, _Stream(rhythm))
        member = (task.name, since, end, left, jitter and task.task_id)
        wanted = _Members(task.name, since, end, left, jitter=jitter)
        stream.members.setdefault(member, wanted).tasks += 1

    def _reckon(
        self, name: str, first: datetime | None, step: timedelta, end: datetime, left: float
    ) -> None:
        """Count the times of an interval: `first` and those after it, up to `end`."""
        if first is None or first > end:
            return
        times = int(min((end - first) // step + 1, left))
        grid, passed = self._grid, 0
        for place in range(grid.place(first), grid.place(first + (times - 1) * step) + 1):
            # As many as come before the next interval begins.
            until = min(times, -((first - grid.at(place + 1)) // step))
            if until > passed:
                self.counts[place][name] += until - passed
                passed = until

    def _count(self, members: _Members, moment: datetime) -> None:
        """Count one time of a rule for those who follow it."""
        if not members.since < moment <= members.end or members.left <= 0:
            return
        members.left -= 1
        if members.jitter is not None:
            task_id, recurrence = members.jitter
            moment = recurrence.starts_at(task_id, moment) or moment
        if self._grid.holds(moment):
            self.counts[self._grid.place(moment)][members.name] += members.tasks


@dataclass(frozen=True, slots=True)
class Interval:
    """How many tasks fall due from an instant on, and the most frequent names of them."""

    at: datetime
    tasks: int
    names: list[tuple[str, int]]


def summed(
    grid: Grid, totals: Counter[int], once: Counts, recurring: Counts
) -> tuple[list[Interval], list[Interval]]:
    """Return all intervals, and the busiest of them.

    `totals` counts what runs `once` by intervals, of which only the most frequent names are given.
    """
    intervals = []
    for place in range(grid.number):
        names = once[place] + recurring[place]
        tasks = totals[place] + recurring[place].total()
        most = sorted(names.items(), key=lambda each: (-each[1], each[0]))[:NAMES_TOLD]
        intervals.append(Interval(grid.at(place), tasks, most))
    busiest = sorted(intervals, key=lambda each: (-each.tasks, each.at))[:PEAKS_TOLD]
    return intervals, [each for each in busiest if each.tasks]
