"""A cron line in words, and what its author may not expect of it.

The words follow from the values that a line names, not from how it is written: ``0,30`` and
``*/30`` read the same.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

from job_scheduler.constants import DstFold, DstGap
from job_scheduler.core.cron import Cron, lengths_of
from job_scheduler.core.cron_fields import LAST, LAST_WORKDAY
from job_scheduler.core.rhythm import CronRhythm, offset_change, wall_at

TIMES_NAMED = 6
"""So many times of day, at most, are named one by one."""
WEEKS_AHEAD = 5 * 53
"""For so many weeks, changes of the clocks are looked for."""

_MONTHS = (
    *("", "January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PLACES = {"1": "first", "2": "second", "3": "third", "4": "fourth", "5": "fifth", LAST: "last"}
_DAYS = {LAST: "the last day", LAST_WORKDAY: "the last working day (Monday to Friday)"}
_WEEK = timedelta(weeks=1)
_TICK = timedelta(microseconds=1)


def describe(cron: Cron) -> str:
    """Return a sentence that says when a line fires, by the clocks of its zone."""
    return f"{_times(cron)}{_days(cron)}."


def warnings(cron: Cron, zone: ZoneInfo, gap: DstGap, fold: DstFold, now: datetime) -> list[str]:
    """Return what may surprise: days that months lack, either of two days, clocks that change."""
    return [*_of_days(cron), *_of_steps(cron), *_of_clocks(CronRhythm(cron, zone, gap, fold), now)]


# ------------------------------------------------------------------------------- times of day


def _times(cron: Cron) -> str:
    minutes, hours = sorted(cron.minute.values), sorted(cron.hour.values)
    step = 60 // len(minutes)
    every = ""
    if len(minutes) > 1 and minutes == list(range(0, 60, step)):
        every = "Every minute" if step == 1 else f"Every {step} minutes"
    named = every or f"At {_counted('minute', minutes)}"
    if cron.hour.everything:
        return named if every else f"{named} of every hour"
    if len(minutes) * len(hours) <= TIMES_NAMED:
        times = [_clock(hour, minute) for hour in hours for minute in minutes]
        return f"At {_listed(times)}"
    apart = _apart(hours)
    span = f"from {_clock(hours[0], minutes[0])} through {_clock(hours[-1], minutes[-1])}"
    if every and apart == 1:
        return f"{every} {span}"
    if len(minutes) == 1 and apart:
        return f"Every {'hour' if apart == 1 else f'{apart} hours'} {span}"
    return f"{named} of {_counted('hour', hours)}"


def _clock(hour: int, minute: int) -> str:
    return f"{hour:02}:{minute:02}"


def _counted(unit: str, values: Sequence[int]) -> str:
    return f"{unit}{'s' if len(values) > 1 else ''} {_listed(_runs(values, str))}"


# --------------------------------------------------------------------------------------- days


def _days(cron: Cron) -> str:
    by_month, by_week = not cron.day.everything, not cron.weekday.everything
    if not (by_month or by_week) or (cron.either_day and not (by_month and by_week)):
        every = "" if cron.hour.everything else " every day"
        return every if cron.month.everything else f"{every} in {_months(cron)}"
    if not by_week:
        return f" on {_by_month(cron)}"
    if not by_month:
        return f" on {_by_week(cron)}"
    if cron.either_day:
        return f" on {_by_month(cron)} and also on {_by_week(cron)}"
    return f" on {_by_month(cron)} if it is {_listed([*_weekdays(cron), *_nth(cron)], 'or')}"


def _by_month(cron: Cron) -> str:
    days = _runs(sorted(cron.day.values), lambda day: f"the {_ordinal(day)}")
    days += [_DAYS[name] for _, name in sorted(cron.day.specials)]
    return f"{_listed(days)} of {_months(cron)}"


def _by_week(cron: Cron) -> str:
    plain, nth = _weekdays(cron), _nth(cron)
    within = "" if cron.month.everything else f" in {_months(cron)}"
    parts = [f"{_listed(plain)}{within}"] if plain else []
    parts += [f"{_listed(nth)} of {_months(cron)}"] if nth else []
    return " and on ".join(parts)


def _months(cron: Cron) -> str:
    if cron.month.everything:
        return "each month"
    return _listed(_runs(sorted(cron.month.values), _MONTHS.__getitem__))


def _weekdays(cron: Cron) -> list[str]:
    values = cron.weekday.values
    # Sunday is the week's end where Saturday comes along, else its beginning.
    week = (value or 7 for value in values) if 6 in values else values
    return _runs(sorted(week), _WEEKDAYS.__getitem__)


def _nth(cron: Cron) -> list[str]:
    found = sorted((weekday, place) for weekday, place in cron.weekday.specials)
    return [f"the {_PLACES[place]} {_WEEKDAYS[weekday]}" for weekday, place in found]


def _ordinal(number: int) -> str:
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number in {11, 12, 13} else suffixes.get(number % 10, 'th')}"


# -------------------------------------------------------------------------------------- lists


def _listed(items: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(part for part in (", ".join(items[:-1]), items[-1]) if part)


def _apart(values: Sequence[int]) -> int | None:
    """Return how far values in order are apart, if all are equally."""
    steps = {after - before for before, after in pairwise(values)}
    return steps.pop() if len(steps) == 1 else None


def _runs(values: Sequence[int], name: Callable[[int], str]) -> list[str]:
    """Return the names of values in order; three or more in a row become a range."""
    apart = _apart(values)
    if len(values) > TIMES_NAMED and apart is not None and apart > 1:
        return [f"{name(values[0])} through {name(values[-1])} in steps of {apart}"]
    named: list[str] = []
    rest = list(values)
    while rest:
        length = next((n for n in range(1, len(rest)) if rest[n] != rest[0] + n), len(rest))
        run, rest = [name(value) for value in rest[:length]], rest[length:]
        named += run if length < 3 else [f"{run[0]} through {run[-1]}"]
    return named


# ----------------------------------------------------------------------------------- warnings


def _of_days(cron: Cron) -> Iterator[str]:
    if cron.either_day and not (cron.day.everything or cron.weekday.everything):
        yield (
            f"Fires on {_by_month(cron)} AND ALSO on {_by_week(cron)}: with both a day of month"
            " and a day of week, either is enough."
        )
    named = {term.values[0] for term in cron.day.terms if len(term.values) == 1}
    lowest = min(cron.day.values, default=0)
    for day in sorted({*named, lowest} & {29, 30, 31}) if not cron.day.specials else ():
        lacking = [month for month in sorted(cron.month.values) if lengths_of(month)[0] < day]
        if lacking == [2] and day == 29:
            yield "29 February comes in leap years only; for a month's last day write L."
        elif lacking:
            skipped = _listed([_MONTHS[month] for month in lacking])
            yield f"The {_ordinal(day)}: skips {skipped}; for a month's last day write L."
    for weekday, place in sorted(cron.weekday.specials):
        if place == "5":
            yield (
                f"Not every month has a fifth {_WEEKDAYS[weekday]};"
                f" for the last one write {weekday}{LAST}."
            )


def _of_steps(cron: Cron) -> Iterator[str]:
    for field, size, whole in ((cron.minute, 60, "hour"), (cron.hour, 24, "day")):
        found = [term.values for term in field.terms if term.text.startswith("*/")]
        for values in found:
            if size % values.step:
                unit = field.unit.name
                yield (
                    f"Every {values.step} {unit}s begins anew each {whole}:"
                    f" from {unit} {values[-1]} to {unit} 0 it is {size - values[-1]}."
                )


def _of_clocks(rhythm: CronRhythm, now: datetime) -> Iterator[str]:
    """Yield what becomes of the first times that do not exist, and of the first that come twice."""
    zone, cron = rhythm.zone, rhythm.cron
    if rhythm.first_after(now) is None:
        yield f"In {zone.key}, it never fires: its times do not exist there, and are left out."
        return
    if cron.hour.everything and not cron.fixed:
        return  # it follows elapsed time, all day long: nothing is missed, nothing is doubled
    told: set[bool] = set()
    for change in _changes(zone, now):
        before, after = wall_at(change - _TICK, zone) + _TICK, wall_at(change, zone)
        walls = _between(cron, min(before, after), max(before, after))
        if walls and (after > before) not in told:
            told.add(after > before)
            tell = _gap if after > before else _fold
            yield f"In {zone.key}, {tell(rhythm, walls, after)}."


def _changes(zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    """Yield when a zone's clocks will change."""
    for weeks in range(WEEKS_AHEAD):
        early, late = now + weeks * _WEEK, now + (weeks + 1) * _WEEK
        if early.astimezone(zone).utcoffset() != late.astimezone(zone).utcoffset():
            yield offset_change(early, late, zone)


def _between(cron: Cron, first: datetime, end: datetime) -> list[datetime]:
    return list(takewhile(lambda wall: wall < end, cron.walls_after(first - _TICK)))


def _gap(rhythm: CronRhythm, walls: list[datetime], after: datetime) -> str:
    if not rhythm.cron.fixed:
        follows = "nothing fires instead, as a line with * for minute or hour follows elapsed time"
    elif rhythm.gap is DstGap.Skip:
        follows = "left out (gap: skip)"
    else:
        day = "" if after.date() == walls[0].date() else f" on {after:%Y-%m-%d}"
        follows = f"fires at {after:%H:%M}{day} instead (gap: shift)"
    one = "does" if len(walls) == 1 else "do"
    return f"{_span(walls)} {one} not exist on {walls[0]:%Y-%m-%d}: {follows}"


def _fold(rhythm: CronRhythm, walls: list[datetime], _: datetime) -> str:
    if not rhythm.cron.fixed:
        follows = "fires both times, as a line with * for minute or hour follows elapsed time"
    elif rhythm.fold is DstFold.Both:
        follows = "fires both times (fold: both)"
    else:
        follows = f"fires the {rhythm.fold.value} time only (fold: {rhythm.fold.value})"
    comes = "comes" if len(walls) == 1 else "come"
    return f"{_span(walls)} {comes} twice on {walls[0]:%Y-%m-%d}: {follows}"


def _span(walls: list[datetime]) -> str:
    return " to ".join(f"{wall:%H:%M}" for wall in dict.fromkeys((walls[0], walls[-1])))
