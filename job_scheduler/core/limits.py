"""Limits over all instances: how many tasks of a handler, or with a key, run or start at a time.

Who may start is decided here, from what runs and what waits; ``limited.py`` and ``blocked.py`` have
the statements around it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
class Bounds:
    """What limits a task: its name, if that is a handler's, and its concurrency key."""

    handler: str | None
    key: str | None
    max_running: int | None = None

    def places(self, limits: Limits) -> Iterator[tuple[str, int]]:
        """Yield the limits on what runs at a time: the name of each, and how many."""
        if self.key is not None:
            yield KEY + self.key, self.max_running or 1
        limit = limits.get(self.handler or "")
        if limit is not None and limit.max_running is not None:
            yield f"{HANDLER}{self.handler}", limit.max_running

    def rates(self, limits: Limits) -> Iterator[tuple[str, Rate]]:
        """Yield the limits on what starts in a time, likewise."""
        limit = limits.get(self.handler or "")
        if limit is not None and limit.rate is not None:
            yield f"{RATE}{self.handler}", limit.rate

    def names(self, limits: Limits) -> list[str]:
        """Return the names of all its limits."""
        return [name for name, _ in (*self.places(limits), *self.rates(limits))]


@dataclass(frozen=True, slots=True)
class Limited:
    """A task that is due, with what limits it."""

    task_id: str
    urgency: Urgency
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Usage:
    """How far limits are taken up at the instant `now`.

    By the names of limits: `running` counts, `following` tells when the next start falls due.
    """

    now: datetime
    running: Counter[str]
    following: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may start, by id; what blocks the others; and `following` as it is then."""

    admitted: set[str]
    blocked: dict[str, str]
    following: dict[str, datetime]


def names_of(due: Iterable[Limited], limits: Limits) -> list[str]:
    """Return the names of all limits on some tasks, sorted."""
    return sorted({name for task in due for name in task.bounds.names(limits)})


def admit(
    due: Iterable[Limited], limits: Limits, usage: Usage, waiting: Mapping[str, Urgency]
) -> Admission:
    """Return which of the tasks may start now, the most urgent first.

    None overtakes a more urgent one that the same limit blocks: now, or since before, as `waiting`
    tells by the names of limits.
    """
    running = Counter(usage.running)
    following = dict(usage.following)
    fronts = dict(waiting)
    admitted: set[str] = set()
    blocked: dict[str, str] = {}
    for task in sorted(due, key=lambda each: each.urgency):
        bounds = task.bounds
        full = [name for name, most in bounds.places(limits) if running[name] >= most]
        full += [
            name
            for name, rate in bounds.rates(limits)
            if not rate.room(following.get(name), usage.now)
        ]
        full += [
            name for name in bounds.names(limits) if name in fronts and fronts[name] < task.urgency
        ]
        if full:
            blocked[task.task_id] = full[0]
            fronts[full[0]] = min(task.urgency, fronts.get(full[0], task.urgency))
            continue
        admitted.add(task.task_id)
        running.update(name for name, _ in bounds.places(limits))
        for name, rate in bounds.rates(limits):
            following[name] = rate.after(following.get(name), usage.now, 1)
    changed = following.items() - usage.following.items()
    return Admission(admitted, blocked, dict(changed))


def room_of(name: str, limits: Limits, usage: Usage) -> int | None:
    """Return for how many tasks a limit has room; None: for any number.

    That of a key depends on the task: each says itself how many may run beside it.
    """
    if name.startswith(KEY):
        return None
    kind, _, handler = name.partition(":")
    limit = limits.get(handler)
    if limit is None:
        return None
    if kind + ":" == RATE:
        return None if limit.rate is None else limit.rate.room(usage.following.get(name), usage.now)
    return None if limit.max_running is None else limit.max_running - usage.running[name]
