"""How long to wait before a task that has failed is tried again."""

from collections.abc import Sequence
from dataclasses import dataclass

DELAY_SECONDS = 5.0
"""Before the second attempt, at most, where neither task nor handler says otherwise."""
MAX_DELAY_SECONDS = 3600.0
"""Likewise before any later one."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays between attempts, in seconds.

    One `delay` is doubled with each attempt up to `max_delay`, and a random part of it is waited
    ("full jitter": M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so
    that tasks which failed together do not come back together. Several are waited as they stand,
    one after the other, and the last one again and again.
    """

    delay: float | Sequence[float]
    max_delay: float

    def seconds_after(self, attempt: int, chance: float) -> float:
        """Return the wait after the `attempt`th attempt, from 1; `chance` is from 0 to 1."""
        if isinstance(self.delay, Sequence):
            return self.delay[min(attempt, len(self.delay)) - 1]
        return chance * min(self.max_delay, self.delay * 2.0 ** (attempt - 1))
