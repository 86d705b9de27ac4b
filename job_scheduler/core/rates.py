"""Rate limits: how many tasks of a name may start in a time."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0}
_FORM = re.compile(r"([1-9][0-9]{0,6})/(second|minute|hour|day)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many starts in so many seconds, evenly spread: at most a second's worth comes at once.

    The rule is GCRA (ITU-T I.371, "virtual scheduling"): one instant is all that is remembered,
    the one at which the next start falls due if all come evenly.
    """

    starts: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Return the rate that stands there as in ``100/minute``.

        Raises:
            ValueError: it is none.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError("write it like 10/second, 100/minute, 1000/hour or 5000/day")
        return cls(int(found[1]), _SECONDS[found[2]])

    @property
    def interval(self) -> timedelta:
        """The time between two starts."""
        return timedelta(seconds=self.seconds / self.starts)

    def room(self, following: datetime | None, now: datetime) -> int:
        """Return how many may start now, when the next one falls due at `following`."""
        begin = self._begin(following, now)
        return 0 if begin > now else int((now - begin) / self.interval) + 1

    def after(self, following: datetime | None, now: datetime, started: int) -> datetime:
        """Return when the next one falls due, after so many have `started` now."""
        return self._begin(following, now) + started * self.interval

    def _begin(self, following: datetime | None, now: datetime) -> datetime:
        burst = max(1.0, self.starts / self.seconds)
        earliest = now - (burst - 1) * self.interval
        return earliest if following is None else max(following, earliest)
