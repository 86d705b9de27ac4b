"""When the service was down: how a task that was missed says so, and how it follows from when
instances lived.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_scheduler.clock import in_iso_8601

_WORDS = re.compile(r"missed: the service was down (?:from (\S+Z) to|until) (\S+Z)")

_GIVEN_UP = "given up after "


@dataclass(frozen=True, slots=True)
class Downtime:
    """A time in which no instance lived; `since` is None where it is not known when it began."""

    since: datetime | None
    until: datetime

    @property
    def words(self) -> str:
        """From when to when, for a sentence."""
        until = in_iso_8601(self.until, "seconds")
        if self.since is None:
            return f"until {until}"
        return f"from {in_iso_8601(self.since, 'seconds')} to {until}"

    @property
    def result(self) -> str:
        """What becomes the result of a task that it made miss its time."""
        return f"missed: the service was down {self.words}"

    def gives_up(self, attempts: int) -> str:
        """Return what becomes the result of a run that it made miss its next attempt."""
        made = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        return (
            f"{_GIVEN_UP}{made}: the next one was missed, since the service was down {self.words}"
        )


def tells_of_giving_up(result: Any) -> bool:
    """Tell whether a result is that of a run whose next attempt was missed."""
    return isinstance(result, str) and result.startswith(_GIVEN_UP)


def downtime_in(result: Any) -> Downtime | None:
    """Return the downtime that a task's result tells of, if it does."""
    found = _WORDS.fullmatch(result) if isinstance(result, str) else None
    if found is None:
        return None
    since, until = found.groups()
    try:
        begin = None if since is None else datetime.fromisoformat(since)
        return Downtime(begin, datetime.fromisoformat(until))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Life:
    """From when to when an instance lived; of one that has died, until its last heartbeat."""

    begin: datetime
    end: datetime


def downtime_at(moment: datetime, lives: Iterable[Life]) -> Downtime | None:
    """Return the downtime in which a moment lies; None: there was none, or it has not ended."""
    known = list(lives)
    if any(life.begin <= moment <= life.end for life in known):
        return None
    later = [life.begin for life in known if life.begin > moment]
    before = [life.end for life in known if life.end < moment]
    return Downtime(max(before, default=None), min(later)) if later else None


def downtime_before(moment: datetime, lives: Iterable[Life]) -> Downtime | None:
    """Return the downtime after which a start was at work at a moment; None: it is not known."""
    known = list(lives)
    since = max((life.end for life in known if life.end < moment), default=None)
    starts = [
        life.begin
        for life in known
        if life.begin <= moment and (since is None or life.begin > since)
    ]
    return Downtime(since, min(starts)) if starts else None
