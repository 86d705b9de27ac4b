"""What the fields of a cron line may say, and how they are read.

The gate is strict: it admits only what means the same in Vixie's cron (Debian's crontab(5)) and in
the library `cronsim`, and the special forms ``L``, ``LW``, ``5L`` and ``1#2``.
"""

import re
from dataclasses import dataclass

LAST, LAST_WORKDAY = "L", "LW"
NTH = ("1", "2", "3", "4", "5")

_PLAIN = re.compile(r"(?:(\*)|([A-Z0-9]+)(?:-([A-Z0-9]+))?)(?:/([0-9]+))?")
_NTH = re.compile(r"([A-Z0-9]+?)(?:(L)|#([0-9]+))")


class InvalidCron(ValueError):
    """A cron line is none, or never fires; the text says to its author why, and what to write."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a field counts: from where to where, and the names of its values from `first` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    forms: str = ""
    first: int = 0

    def number(self, text: str, term: str) -> int:
        """Return a value of this unit, given as a number or by its name in some term."""
        if text in self.names:
            return self.first + self.names.index(text)
        if re.fullmatch("[0-9]{1,2}", text) and self.low <= int(text) <= self.high:
            return int(text)
        raise self.unknown(term)

    def plain(self, text: str) -> str:
        """Return a value's one way to be written: its name, if given by that, or no zero first."""
        return text if text in self.names else str(int(text))

    def unknown(self, text: str) -> InvalidCron:
        """Return what is said of a text that is none of this unit's forms."""
        named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return InvalidCron(
            f"{self.name}: {text!r} is not from {self.low} to {self.high}{named};"
            f" a field is *, a value, a range like {self.low}-{self.low + 3},"
            f" a step like */2{self.forms}, or a list of those with commas"
        )


MINUTE = Unit("minute", 0, 59)
HOUR = Unit("hour", 0, 23)
DAY = Unit("day of month", 1, 31, forms=", L (the last day), LW (the last from Monday to Friday)")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
MONTH = Unit("month", 1, 12, MONTHS, first=1)
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
WEEKDAY = Unit(
    "day of week", 0, 7, WEEKDAYS, ", 5L (the month's last Friday), 1#2 (its second Monday)"
)
UNITS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


@dataclass(frozen=True, slots=True)
class Term:
    """One entry of a field: values, or `special` ones.

    Days of a month have ``L`` and ``LW``. A weekday has ``L`` for the month's last one, and a digit
    for its first to fifth. `spec` is the text with numbers for names.
    """

    text: str
    spec: str
    values: range
    special: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """One of a line's five fields."""

    unit: Unit
    terms: tuple[Term, ...]

    @property
    def text(self) -> str:
        """How it is written."""
        return ",".join(term.text for term in self.terms)

    @property
    def spec(self) -> str:
        """The same with numbers for names."""
        return ",".join(term.spec for term in self.terms)

    @property
    def starred(self) -> bool:
        """Whether it begins with a star, by which cron tells what is free from what is fixed."""
        return self.text.startswith("*")

    @property
    def values(self) -> frozenset[int]:
        """What it names, without the special entries; Sunday is 0."""
        modulus = 7 if self.unit is WEEKDAY else 60
        plain = (term.values for term in self.terms if not term.special)
        return frozenset(value % modulus for values in plain for value in values)

    @property
    def specials(self) -> frozenset[tuple[int, str]]:
        """The special entries: the weekday, Sunday being 0 (as days of a month have), and which."""
        named = ((term.values, term.special) for term in self.terms if term.special)
        return frozenset((values[0] % 7 if values else 0, special) for values, special in named)

    @property
    def everything(self) -> bool:
        """Whether it names all values that there are."""
        low, high = self.unit.low, self.unit.high
        return len(self.values) == (7 if self.unit is WEEKDAY else high - low + 1)


def parse_field(word: str, unit: Unit) -> Field:
    """Return the field that stands there.

    Raises:
        InvalidCron: it is none of this unit.
    """
    terms = tuple(_term(text, unit) for text in word.split(","))
    if len(terms) > 1 and any(term.text == "*" for term in terms):
        raise InvalidCron(f"{unit.name}: {word!r} names every value and more; write * alone")
    return Field(unit, terms)


def _term(text: str, unit: Unit) -> Term:
    if unit is DAY and text in {LAST, LAST_WORKDAY}:
        return Term(text, text, range(0), text)
    nth = _NTH.fullmatch(text) if unit is WEEKDAY else None
    if nth is not None:
        return _nth(text, *nth.groups())
    found = _PLAIN.fullmatch(text)
    if found is None:
        raise unit.unknown(text)
    star, start, end, given = found.groups()
    top = 6 if unit is WEEKDAY else unit.high
    if star:
        return _range(text, unit, ("*", "*"), range(unit.low, top + 1), given)
    low = unit.number(start, text)
    high = unit.number(end or start, text)
    if end == WEEKDAYS[0] and low:
        high = 7
    if high < low:
        raise InvalidCron(
            f"{unit.name}: the range {text!r} runs backwards; write {low}-{top},{unit.low}-{high}"
        )
    if given and not end:
        raise InvalidCron(
            f"{unit.name}: crons differ in what {text!r} means; write {low}-{top}/{given}"
        )
    span = range(low, high + 1)
    if low == high:
        return _range(text, unit, (unit.plain(start), str(low)), span, given)
    names = f"{unit.plain(start)}-{unit.plain(end)}"
    return _range(text, unit, (names, f"{low}-{high}"), span, given)


def _range(text: str, unit: Unit, form: tuple[str, str], span: range, given: str | None) -> Term:
    """Return a range, spelled for people and for cronsim, with the step that may be `given`."""
    if given is None or (len(span) > 1 and int(given) == 1):
        return Term(*form, span)
    if not 0 < int(given) < len(span):
        raise InvalidCron(
            f"{unit.name}: the step of {text!r} must be from 1 to {len(span) - 1}"
            if len(span) > 1
            else f"{unit.name}: {text!r} has a step in a range of one; write {form[1]}"
        )
    step = int(given)
    return Term(f"{form[0]}/{step}", f"{form[1]}/{step}", span[::step])


def _nth(text: str, name: str, last: str | None, digit: str | None) -> Term:
    weekday = WEEKDAY.number(name, text)
    values = range(weekday, weekday + 1)
    if last:
        return Term(WEEKDAY.plain(name) + LAST, f"{weekday}{LAST}", values, LAST)
    if digit not in NTH:
        raise InvalidCron(
            f"{WEEKDAY.name}: in {text!r}, what follows # must be from 1 to 5, the number of the"
            " weekday in its month; for the last one write L, like 5L"
        )
    form = f"#{digit}"
    return Term(WEEKDAY.plain(name) + form, f"{weekday}{form}", values, digit)
