"""When a recurring task runs next: after it has run, after a downtime, and at all.

The times follow from the task's ``recurrence``, a JSON object as it stands in the database, and
from its ``run_at`` alone: an occurrence is known by that, however late it ran.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any

from job_scheduler.constants import (
    CATCH_UP_MAX,
    SECONDS_MAX,
    CatchUp,
    DstFold,
    DstGap,
    Overlap,
    RecoverPastTasks,
)
from job_scheduler.core.cron import Cron
from job_scheduler.core.rhythm import CronRhythm, IntervalRhythm, Rhythm, load_zone

UTC_NAME = "UTC"


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What is asked of a recurring task. Of `cron` and `interval_seconds` one is given.

    All times are UTC. `start_at` and `end_at` are the bounds of its occurrences, both included;
    `max_runs` is how many of them are run.
    """

    cron: str | None = None
    interval_seconds: float | None = None
    timezone: str = UTC_NAME
    start_at: datetime | None = None
    end_at: datetime | None = None
    max_runs: int | None = None
    jitter_seconds: float | None = None
    dst_gap: DstGap = DstGap.Shift
    dst_fold: DstFold = DstFold.First
    overlap: Overlap = Overlap.Skip
    catch_up: CatchUp = CatchUp.Latest

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Recurrence":
        """Return the recurrence that is stored as `document`.

        Raises:
            ValueError: nobody can read it; some other program may have stored it.
        """
        try:
            members = {name: _READ.get(name, _as_is)(value) for name, value in document.items()}
            found = cls(**members)
            found._examine()
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(str(error)) from error
        return found

    def _examine(self) -> None:
        load_zone(self.timezone)
        self.rhythm(_LONG_AGO)
        if any(moment.tzinfo is None for moment in (self.start_at, self.end_at) if moment):
            raise ValueError("a time without offset")
        if any(
            not 0 <= seconds <= SECONDS_MAX
            for seconds in (self.jitter_seconds or 0, self.interval_seconds or 0)
        ):
            raise ValueError("a number out of bounds")
        if self.max_runs is not None and self.max_runs < 1:
            raise ValueError("max_runs is less than 1")

    def as_document(self) -> dict[str, Any]:
        """Return it as a JSON object, without what is not asked for."""
        members = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in members.items()
            if value is not None
        }

    def rhythm(self, run_at: datetime) -> Rhythm:
        """Return what tells its times. `run_at`, any of them, is the anchor of an interval
        without `start_at`.
        """
        if self.interval_seconds is not None:
            return IntervalRhythm(self.interval_seconds, self.start_at or run_at)
        if self.cron is None:
            raise ValueError("neither cron nor interval_seconds")
        return _cron_rhythm(self.cron, self.timezone, self.dst_gap, self.dst_fold)

    def times(self, begin: datetime) -> Iterator[datetime]:
        """Return its times from `begin` on, itself included where it is one."""
        begin = max(begin, self.start_at or begin)
        rhythm = self.rhythm(begin)
        found = rhythm.last_until(begin)
        if found != begin:
            found = rhythm.first_after(begin)
        while found is not None and not self._is_over(found):
            yield found
            found = rhythm.first_after(found)

    def first(self, now: datetime) -> datetime | None:
        """Return when it runs first, if it is created `now`; None: never.

        An interval without `start_at` begins to count now.
        """
        if self.interval_seconds is not None and self.start_at is None:
            return self._bounded(now + timedelta(seconds=self.interval_seconds))
        return next(self.times(now), None)

    def following(
        self, run_at: datetime, started_at: datetime, now: datetime, runs: int
    ) -> datetime | None:
        """Return which occurrence comes after that of `run_at`, which has ended; None: none.

        It was started at `started_at`, and was the last of `runs` so far. What fell due while it
        ran is the concern of `overlap`; what fell due before its start was queued, or else missed:
        nobody was there to run it.
        """
        if self.max_runs is not None and runs >= self.max_runs:
            return None
        rhythm = self.rhythm(run_at)
        makes_up = self.overlap is Overlap.Queue or self.catch_up is CatchUp.All
        since = (
            _made_up_from(rhythm, run_at, self._until(now)) if makes_up else max(run_at, started_at)
        )
        found = rhythm.first_after(since)
        if found is not None and started_at < found <= now and self.overlap is Overlap.Skip:
            found = rhythm.first_after(now)
        return self._bounded(found)

    def after_downtime(
        self, run_at: datetime, now: datetime, policy: RecoverPastTasks
    ) -> datetime | None:
        """Return which occurrence comes next when that of `run_at` was missed; None: none.

        It lies in the past if it is to be made up for.
        """
        rhythm = self.rhythm(run_at)
        if policy is RecoverPastTasks.Run:
            if self.catch_up is CatchUp.Latest:
                return max(run_at, rhythm.last_until(self._until(now)) or run_at)
            if self.catch_up is CatchUp.All:
                since = _made_up_from(rhythm, run_at, self._until(now))
                return run_at if since == run_at else self._bounded(rhythm.first_after(since))
        return self._bounded(rhythm.first_after(now))

    def after_move(
        self, task_id: str, run_at: datetime, now: datetime, policy: RecoverPastTasks
    ) -> datetime | None:
        """Return which occurrence comes next when that of `run_at` was, until the task was moved
        here; None: none. The time in between was a downtime.
        """
        if (self.starts_at(task_id, run_at) or run_at) < now:
            return self.after_downtime(run_at, now, policy)
        return self._bounded(run_at)

    def starts_at(self, task_id: str, run_at: datetime) -> datetime | None:
        """Return when the occurrence of `run_at` starts, if not at once: `jitter_seconds` are the
        most that it waits. The same for whoever asks.
        """
        if not self.jitter_seconds:
            return None
        share = random.Random(f"{task_id} {run_at.isoformat()}").random()  # noqa: S311 (no secret)
        return run_at + timedelta(seconds=self.jitter_seconds * share)

    def _until(self, now: datetime) -> datetime:
        """Return until when its times may have passed."""
        return now if self.end_at is None else min(now, self.end_at)

    def _is_over(self, moment: datetime) -> bool:
        return self.end_at is not None and moment > self.end_at

    def _bounded(self, moment: datetime | None) -> datetime | None:
        return None if moment is None or self._is_over(moment) else moment


def _made_up_from(rhythm: Rhythm, run_at: datetime, now: datetime) -> datetime:
    """Return after which instant occurrences are made up for: of very many, the last ones."""
    return max(run_at, next(islice(_backwards(rhythm, now), CATCH_UP_MAX, None), run_at))


def _backwards(rhythm: Rhythm, moment: datetime) -> Iterator[datetime]:
    """Return its times until `moment`, the last first."""
    found = rhythm.last_until(moment)
    while found is not None:
        yield found
        found = rhythm.last_until(found - _TICK)


_TICK = timedelta(microseconds=1)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def _as_is(value: Any) -> Any:
    return value


_READ: dict[str, Any] = {
    "start_at": datetime.fromisoformat,
    "end_at": datetime.fromisoformat,
    "dst_gap": DstGap,
    "dst_fold": DstFold,
    "overlap": Overlap,
    "catch_up": CatchUp,
}


@lru_cache(maxsize=4_096)  # to read a line takes longer than to find its next time
def _cron_rhythm(line: str, timezone: str, gap: DstGap, fold: DstFold) -> Rhythm:
    return CronRhythm(Cron.parse(line), load_zone(timezone), gap, fold)
