"""Limits over all instances: how many tasks of a handler, or with a key, run or start at a time.

Who may start is decided here, from what runs and what waits; ``limited.py`` and ``blocked.py`` have
the statements around it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from job_scheduler.core.rates import Rate

KEY, HANDLER, RATE = "key:", "handler:", "rate:"
"""How the name of a limit begins; a concurrency key or a handler's name follows."""

Urgency = tuple[int, datetime, str]
"""How urgent a task is: the least comes first."""


@dataclass(frozen=True, slots=True)
class HandlerLimit:
    """How many tasks of one handler run at a time, and how many start; None: any number."""

    max_running: int | None
    rate: Rate | None


Limits = Mapping[str, HandlerLimit]
"""The limits of handlers, by their names."""


@dataclass(frozen=True, slots=True)
class Limited:
    """A task that is due, with what limits it."""

    task_id: str
    name: str
    urgency: Urgency
    key: str | None
    max_running: int | None

    def places(self, limits: Limits) -> Iterator[tuple[str, int]]:
        """Yield the limits on what runs at a time: the name of each, and how many."""
        if self.key is not None:
            yield KEY + self.key, self.max_running or 1
        limit = limits.get(self.name)
        if limit is not None and limit.max_running is not None:
            yield HANDLER + self.name, limit.max_running

    def rate(self, limits: Limits) -> Rate | None:
        """Return the limit on what starts in a time."""
        limit = limits.get(self.name)
        return None if limit is None else limit.rate


@dataclass(frozen=True, slots=True)
class Usage:
    """How far limits are taken up at the instant `now`.

    `running` counts by the name of a limit; `following` tells by a handler's name when its next
    start falls due, `fronts` how urgent the first of those is that a limit blocks already.
    """

    now: datetime
    running: Counter[str]
    following: Mapping[str, datetime]
    fronts: Mapping[str, Urgency]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may start, by id; what blocks the others; and `following` as it is then."""

    admitted: set[str]
    blocked: dict[str, str]
    following: dict[str, datetime]


def names_of(due: Iterable[Limited], limits: Limits) -> list[str]:
    """Return the names of all limits on some tasks, sorted."""
    names = {name for task in due for name, _ in task.places(limits)}
    names |= {RATE + task.name for task in due if task.rate(limits)}
    return sorted(names)


def admit(due: Iterable[Limited], limits: Limits, usage: Usage) -> Admission:
    """Return which of the tasks may start now, the most urgent first.

    None overtakes a more urgent one that the same limit has set aside before.
    """
    running = Counter(usage.running)
    started: Counter[str] = Counter()
    rates: dict[str, Rate] = {}
    admitted: set[str] = set()
    blocked: dict[str, str] = {}
    for task in sorted(due, key=lambda each: each.urgency):
        rate = task.rate(limits)
        if rate is not None:
            rates[task.name] = rate
        room = None if rate is None else rate.room(usage.following.get(task.name), usage.now)
        full = [name for name, most in task.places(limits) if running[name] >= most]
        if room is not None and started[task.name] >= room:
            full.append(RATE + task.name)
        full += _overtaken(task, limits, usage.fronts)
        if full:
            blocked[task.task_id] = full[0]
            continue
        admitted.add(task.task_id)
        running.update(name for name, _ in task.places(limits))
        started[task.name] += 1
    following = {
        name: rate.after(usage.following.get(name), usage.now, started[name])
        for name, rate in rates.items()
        if started[name]
    }
    return Admission(admitted, blocked, following)


def _overtaken(task: Limited, limits: Limits, fronts: Mapping[str, Urgency]) -> Sequence[str]:
    return [
        name for name in names_of([task], limits) if name in fronts and fronts[name] < task.urgency
    ]


def room_of(name: str, limits: Limits, usage: Usage) -> int | None:
    """Return for how many tasks a limit has room; None: for any number.

    That of a key depends on the task: each says itself how many may run beside it.
    """
    kind, _, rest = name.partition(":")
    limit = limits.get(rest)
    if limit is None:
        return None
    if kind + ":" == RATE:
        return None if limit.rate is None else limit.rate.room(usage.following.get(rest), usage.now)
    return None if limit.max_running is None else limit.max_running - usage.running[name]
