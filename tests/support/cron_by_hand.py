"""What a cron line means, told in the dumbest way: each minute is looked at, one after the other.

Nothing here is shared with the service, so that the two can be compared.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def at(text: str) -> datetime:
    """A local time."""
    return datetime.fromisoformat(text)


def utc(text: str) -> datetime:
    """An instant."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def number(text: str) -> int:
    """A value, by its number or name."""
    if text in MONTHS:
        return MONTHS.index(text) + 1
    return WEEKDAYS.index(text) if text in WEEKDAYS else int(text)


def names(term: str, value: int, low: int, high: int) -> bool:
    """Whether a plain term names a value."""
    span, _, step = term.partition("/")
    start, _, end = span.partition("-")
    first = low if span == "*" else number(start)
    last = high if span == "*" else number(end or start)
    last = 7 if end == "SUN" and first > 0 else last
    return first <= value <= last and (value - first) % int(step or 1) == 0


def day_of_month_matches(field: str, day: date) -> bool:
    """Whether the third field names a day."""
    later = [day + n * DAY for n in range(1, 7) if (day + n * DAY).month == day.month]
    for term in field.split(","):
        if term == "L":
            matches = (day + DAY).month != day.month
        elif term == "LW":
            left = [each for each in later if each.weekday() < 5]
            matches = day.weekday() < 5 and not left and (day + 7 * DAY).month != day.month
        else:
            matches = names(term, day.day, 1, 31)
        if matches:
            return True
    return False


def day_of_week_matches(field: str, day: date) -> bool:
    """Whether the fifth field names a day."""
    numbers = (0, 7) if day.weekday() == 6 else (day.weekday() + 1,)
    for term in field.split(","):
        if term.endswith("L"):
            matches = number(term[:-1]) in numbers and (day + 7 * DAY).month != day.month
        elif "#" in term:
            weekday, nth = term.split("#")
            before = [day - n * 7 * DAY for n in range(1, 5)]
            place = 1 + len([each for each in before if each.month == day.month])
            matches = number(weekday) in numbers and place == int(nth)
        else:
            matches = any(names(term, each, 0, 7) for each in numbers)
        if matches:
            return True
    return False


def day_matches(line: str, day: date) -> bool:
    """Whether a line fires on a day."""
    _, _, by_month, months, by_week = line.split()
    if not any(names(term, day.month, 1, 12) for term in months.split(",")):
        return False
    both = by_month.startswith("*") or by_week.startswith("*")
    found = (day_of_month_matches(by_month, day), day_of_week_matches(by_week, day))
    return all(found) if both else any(found)


def times(line: str) -> list[tuple[int, int]]:
    """The hours and minutes that a line names, in order."""
    minutes, hours, *_ = line.split()
    return [
        (hour, minute)
        for hour in range(24)
        if any(names(term, hour, 0, 23) for term in hours.split(","))
        for minute in range(60)
        if any(names(term, minute, 0, 59) for term in minutes.split(","))
    ]


def walls(line: str, day: date, days: int) -> Iterator[datetime]:
    """The local times at which a line fires, on so many days."""
    clock = times(line)
    for n in range(days):
        if day_matches(line, day + n * DAY):
            first = datetime(day.year, day.month, day.day) + n * DAY  # noqa: DTZ001 - local times
            yield from (first.replace(hour=hour, minute=minute) for hour, minute in clock)


@cache
def what_clocks_show(zone: ZoneInfo, day: date, days: int) -> list[tuple[datetime, datetime]]:
    """The local time at each minute of some days, and of two around them, with the instant."""
    instant, shown = datetime(day.year, day.month, day.day, tzinfo=UTC) - 2 * DAY, []
    for _ in range((days + 4) * 24 * 60):
        shown.append((instant.astimezone(zone).replace(tzinfo=None, fold=0), instant))
        instant += MINUTE
    return shown


def occurrences(
    line: str, zone: ZoneInfo, day: date, days: int, *, gap: str, fold: str
) -> list[datetime]:
    """The instants at which a line fires on some local days; its zone has offsets of minutes."""
    shown = what_clocks_show(zone, day, days)
    instants: dict[datetime, list[datetime]] = {}
    for wall, instant in shown:
        instants.setdefault(wall, []).append(instant)
    elapsed = any(field.startswith("*") for field in line.split()[:2])
    fired = set()
    for wall in walls(line, day, days):
        found = instants.get(wall, [])
        if not found and not elapsed and gap == "shift":
            fired.add(next(instant for other, instant in shown if other > wall))
        if len(found) == 2 and not elapsed:
            found = {"first": found[:1], "second": found[1:], "both": found}[fold]
        fired.update(found)
    return sorted(fired)


# ------------------------------------------------------------------------------ lines by chance


def _terms(low: int, high: int, words: list[str], *special: str) -> st.SearchStrategy[str]:
    def ranges(bounds: list[int]) -> st.SearchStrategy[str]:
        first, last = sorted(bounds)
        plain = st.just(f"{first}-{last}")
        steps = st.integers(1, max(1, last - first)).map(lambda step: f"{first}-{last}/{step}")
        return steps | plain if first < last else plain

    values = st.integers(low, high)
    forms = [
        values.map(str),
        values.map("{:02}".format),
        st.integers(2, min(6, high) - low).map("*/{}".format),
        st.lists(values, min_size=2, max_size=2).flatmap(ranges),
    ]
    return st.one_of(*forms, *([st.sampled_from([*words, *special])] if words or special else []))


def _fields(terms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.just("*") | st.lists(terms, min_size=1, max_size=3).map(",".join)


_NTHS = [f"{day}{which}" for day in ("0", "3", "7", "FRI") for which in ("L", "#1", "#4", "#5")]
MINUTES, HOURS = _fields(_terms(0, 59, [])), _fields(_terms(0, 23, []))
DAYS = st.tuples(
    _fields(_terms(1, 31, [], "L", "LW", "29", "31")),
    st.just("*") | _fields(_terms(1, 12, MONTHS)),
    _fields(_terms(0, 7, WEEKDAYS, "FRI-SUN", *_NTHS)),
).map(" ".join)
LINES = st.tuples(MINUTES, HOURS, DAYS).map(" ".join)
"""Lines that are written rightly; some of them never fire."""
