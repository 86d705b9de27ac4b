"""Cron lines: five fields that name the minutes at which a recurring task falls due.

The syntax is that of Vixie's cron, as Debian has it (crontab(5)), with ``L``, ``LW``, ``5L`` and
``1#2`` besides. It is read here, more strictly than by the library `cronsim`, which then finds the
times: no field more, no form that two crons understand differently. Times are those of a clock on
the wall, without a zone; what zones make of them stands in ``rhythm.py``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cronsim import CronSim

from job_scheduler.core.cron_fields import (
    LAST,
    LAST_WORKDAY,
    UNITS,
    Field,
    InvalidCron,
    parse_field,
)

MAX_LENGTH = 200
"""Of a line, in characters."""

SHORTHANDS = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron line, parsed; it fires now and again."""

    line: str
    """The line in one form: names in capitals, no blank or zero too many, no shorthand."""
    spec: str
    """The same with numbers for names, as cronsim reads it."""
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Return the line that stands there.

        Raises:
            InvalidCron: it is none, or names only days that no year has.
        """
        words = _words(text)
        fields = [parse_field(word, unit) for word, unit in zip(words, UNITS, strict=True)]
        line = " ".join(field.text for field in fields)
        cron = cls(line, " ".join(field.spec for field in fields), *fields)
        if not cron._has_days():
            raise InvalidCron(
                f"{cron.line!r} never fires, since no year has such a day: day of month"
                f" {cron.day.text!r}, month {cron.month.text!r}, day of week {cron.weekday.text!r};"
                " change one of them, or write L for a month's last day"
            )
        return cron

    @property
    def fixed(self) -> bool:
        """Whether it names times of day, and none of minute and hour begins with a star."""
        return not (self.minute.starred or self.hour.starred)

    @property
    def either_day(self) -> bool:
        """Whether a day needs to match by month or by week only, as neither begins with a star."""
        return not (self.day.starred or self.weekday.starred)

    def walls_after(self, wall: datetime) -> Iterator[datetime]:
        """Yield the local times after one, in order; all are naive."""
        return self._walls(wall, reverse=False)

    def walls_before(self, wall: datetime) -> Iterator[datetime]:
        """Yield the local times before one, the latest first; all are naive."""
        return self._walls(wall, reverse=True)

    def _walls(self, wall: datetime, *, reverse: bool) -> Iterator[datetime]:
        try:
            yield from CronSim(self.spec, wall, reverse)
        except OverflowError:
            return  # beyond the years that Python counts

    def _has_days(self) -> bool:
        """Return whether it fires in a month of any length that begins on any weekday."""
        if self.either_day:
            return True
        lengths = {length for month in self.month.values for length in lengths_of(month)}
        return any(
            _days_by_week(self.weekday, _days_by_month(self.day, first, length), first, length)
            for length in lengths
            for first in range(7)
        )


def lengths_of(month: int) -> tuple[int, ...]:
    """Return how many days a month has, in one year or another."""
    return (28, 29) if month == 2 else (30,) if month in {4, 6, 9, 11} else (31,)


def _days_by_month(field: Field, first: int, length: int) -> set[int]:
    """Return the days that the day of month names; the 1st is of weekday `first`, 0 a Sunday."""
    last = (first + length - 1) % 7
    special = {LAST: length, LAST_WORKDAY: length - {0: 2, 6: 1}.get(last, 0)}
    days = {day for day in field.values if day <= length}
    return days | {special[name] for _, name in field.specials}


def _days_by_week(field: Field, days: set[int], first: int, length: int) -> set[int]:
    """Return those of some days that the day of week names, likewise."""
    values, specials = field.values, field.specials
    found = set()
    for day in days:
        weekday = (first + day - 1) % 7
        names = {(weekday, str((day + 6) // 7)), (weekday, LAST if day + 7 > length else "")}
        if weekday in values or names & specials:
            found.add(day)
    return found


def _words(text: str) -> list[str]:
    """Return a line's five fields, in capitals."""
    if len(text) > MAX_LENGTH:
        raise InvalidCron(f"a cron line has at most {MAX_LENGTH} characters, this one {len(text)}")
    odd = re.search(r"[^!-~ \t]", text)
    if odd is not None:
        raise InvalidCron(
            f"a cron line has only ASCII letters, digits, signs and blanks, not {odd[0]!r};"
            " write the five fields on one line, like 0 9 * * MON-FRI"
        )
    line = text.strip().upper()
    if line.startswith("@"):
        if line not in SHORTHANDS:
            names = ", ".join(SHORTHANDS).lower()
            raise InvalidCron(f"{text.strip()!r} is not supported; there are {names}")
        line = SHORTHANDS[line]
    words = line.split()
    if len(words) != len(UNITS):
        names = ", ".join(unit.name for unit in UNITS)
        raise InvalidCron(
            f"a cron line has five fields ({names}), this one {len(words)};"
            " there is none for seconds or years"
        )
    return words
