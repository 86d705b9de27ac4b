"""When a recurring task falls due: its rhythm, and what time zones make of local times.

Instants are aware and in UTC, local times ("walls") are naive. What a zone's clocks do is read off
`ZoneInfo` alone (PEP 495): a local time has one offset by ``fold=0``, another by ``fold=1``. Where
clocks are put forward, by whatever and for whatever reason, lies a gap of local times that do not
exist; where they are put back, a fold of times that come twice, in two passes.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Protocol
from zoneinfo import ZoneInfo

from job_scheduler.constants import DstFold, DstGap
from job_scheduler.core.cron import Cron

NAME_MAX_LENGTH = 64
"""Of a time zone, in characters; the longest known has 32."""

_FIRST, _LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
"""From here to there, no zone's time leaves the years that Python counts."""
_PATIENCE = 100
"""For how many years an occurrence is sought.

A 29 February comes on a given weekday after 40 years at most; what the rules of a zone leave out
each time would be sought for ever.
"""
_TICK = timedelta(microseconds=1)


class Rhythm(Protocol):
    """When a recurring task falls due: instants, those given and those returned, in UTC."""

    def first_after(self, moment: datetime) -> datetime | None:
        """Return the first occurrence after a moment, not at it; None: there never is one."""

    def last_until(self, moment: datetime) -> datetime | None:
        """Return the last occurrence at a moment or before; None: there never was one."""


@dataclass(frozen=True, slots=True)
class IntervalRhythm:
    """Every so many seconds, counted from an anchor, which is the first occurrence.

    The interval is a whole number of microseconds, at least one: no occurrence drifts.
    """

    seconds: float
    anchor: datetime

    def __post_init__(self) -> None:
        if timedelta(seconds=self.seconds) <= timedelta(0):
            raise ValueError("an interval must have a microsecond at least")

    def first_after(self, moment: datetime) -> datetime | None:
        """Return the first occurrence after a moment, not at it; None: there never is one."""
        if moment < self.anchor:
            return self.anchor
        step = timedelta(seconds=self.seconds)
        try:
            return self.anchor + ((moment - self.anchor) // step + 1) * step
        except OverflowError:
            return None

    def last_until(self, moment: datetime) -> datetime | None:
        """Return the last occurrence at a moment or before; None: there never was one."""
        if moment < self.anchor:
            return None
        step = timedelta(seconds=self.seconds)
        return self.anchor + (moment - self.anchor) // step * step


@dataclass(frozen=True, slots=True)
class CronRhythm:
    """A cron line on the clocks of a zone.

    If it names times of day (`Cron.fixed`), `gap` and `fold` tell what becomes of one that does not
    exist or comes twice. Else it follows elapsed time, as in Debian's cron: it fires whenever the
    clocks show a time that matches, in both passes of a fold, and nothing is made up for a gap.
    """

    cron: Cron
    zone: ZoneInfo
    gap: DstGap
    fold: DstFold

    def first_after(self, moment: datetime) -> datetime | None:
        """Return the first occurrence after a moment, not at it; None: there never is one."""
        if moment >= _LAST:
            return None
        moment = max(moment, _FIRST)
        wall, first, second = self._place(moment)
        limit = wall.replace(year=min(wall.year + _PATIENCE, _LAST.year), month=1, day=1)
        walls = takewhile(lambda each: each < limit, self.cron.walls_after(wall))
        found = [self._first(walls, moment)]
        if second > moment:  # in the first pass of a fold: what was passed comes again
            begin = wall_at(offset_change(first, second, self.zone), self.zone)
            again = self.cron.walls_after(begin - _TICK)
            found.append(self._first(takewhile(lambda each: each <= wall, again), moment))
        return min((each for each in found if each is not None), default=None)

    def last_until(self, moment: datetime) -> datetime | None:
        """Return the last occurrence at a moment or before; None: there never was one."""
        if moment < _FIRST:
            return None
        moment = min(moment, _LAST)
        wall, first, second = self._place(moment)
        limit = wall.replace(year=max(wall.year - _PATIENCE, _FIRST.year), month=1, day=1)
        walls = takewhile(lambda each: each >= limit, self.cron.walls_before(wall + _TICK))
        found = [self._last(walls, moment)]
        if first < moment:  # in the second pass of a fold: the first one has been further
            change = offset_change(first, second, self.zone)
            end = wall_at(change - _TICK, self.zone) + _TICK
            before = self.cron.walls_before(end)
            found.append(self._last(takewhile(lambda each: each > wall, before), moment))
        return max((each for each in found if each is not None), default=None)

    def _place(self, moment: datetime) -> tuple[datetime, datetime, datetime]:
        """Return what the clocks show, and when they do so first and last."""
        wall = wall_at(moment, self.zone)
        instants = local_instants(wall, self.zone)
        return wall, instants[0], instants[-1]

    def _first(self, walls: Iterable[datetime], moment: datetime) -> datetime | None:
        """Return the first occurrence after a moment, of those that local times in order make."""
        instants = (each for wall in walls for each in self._instants(wall))
        return next((each for each in instants if each > moment), None)

    def _last(self, walls: Iterable[datetime], moment: datetime) -> datetime | None:
        """Return the last one until a moment, the latest local time being given first."""
        instants = (each for wall in walls for each in reversed(self._instants(wall)))
        return next((each for each in instants if each <= moment), None)

    def _instants(self, wall: datetime) -> list[datetime]:
        """Return when a local time that matches is an occurrence."""
        found = local_instants(wall, self.zone)
        if not self.cron.fixed or len(found) == 1:
            return found
        if not found:
            return [after_gap(wall, self.zone)] if self.gap is DstGap.Shift else []
        if self.fold is DstFold.Both:
            return found
        return found[:1] if self.fold is DstFold.First else found[1:]


def local_instants(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return when a zone's clocks show a local time: never, once or, in order, twice."""
    passes = {_instant(wall, zone, fold) for fold in (0, 1)}
    return sorted(each for each in passes if wall_at(each, zone) == wall)


def after_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the first instant after the gap that a local time lies in."""
    # By the offset after the change the time comes too early to have it, and the other way round.
    return offset_change(_instant(wall, zone, 1), _instant(wall, zone, 0), zone)


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def wall_at(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return the local time that a zone's clocks show at an instant."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def offset_change(early: datetime, late: datetime, zone: ZoneInfo) -> datetime:
    """Return when the offset of an instant ends, before a later one that has another."""
    begin = early.replace(microsecond=0)  # offsets change at full seconds
    offset = begin.astimezone(zone).utcoffset()
    seconds = range(int((late - begin).total_seconds()) + 1)

    def changed(second: int) -> bool:
        return (begin + timedelta(seconds=second)).astimezone(zone).utcoffset() != offset

    return begin + timedelta(seconds=bisect_left(seconds, True, key=changed))


class UnknownZone(ValueError):
    """A text names no time zone; it says to its author which one might be meant."""


@cache
def zone_names() -> frozenset[str]:
    """Return the names of the time zones, of the package tzdata: the same on each machine."""
    names = files("tzdata").joinpath("zones").read_text().splitlines()
    return frozenset(names) - {"Factory"}  # which stands for a clock that nobody has set


@cache
def load_zone(name: str) -> ZoneInfo:
    """Return the time zone of a name.

    Raises:
        UnknownZone: there is none.
    """
    if name not in zone_names():
        raise UnknownZone(_unknown(name))
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


def _unknown(name: str) -> str:
    if len(name) > NAME_MAX_LENGTH:
        return f"a time zone's name has at most {NAME_MAX_LENGTH} characters, this one {len(name)}"
    known = {each.lower(): each for each in sorted(zone_names())}
    cities = {each.rpartition("/")[2]: name for each, name in known.items()}
    likely = cities | known
    near = [likely[each] for each in get_close_matches(name.lower(), likely, cutoff=0.75)]
    meant = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"{name!r} is no time zone; write a name like Europe/Berlin, or UTC{meant}"
