"""The one reader of the clocks: this machine's, and the database's as it is known here."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from threading import Lock
from typing import Protocol

_logger = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NANOSECONDS = 1_000
"""In a microsecond, which is the tick of PostgreSQL's clock and of Python's `datetime`."""

_DRIFT = 200
"""Millionths by which the database's clock may run faster or slower than ours; two quartz
clocks rarely differ by half of it."""

_NOTABLE_STEP = timedelta(milliseconds=100)


def in_iso_8601(instant: datetime, timespec: str = "auto") -> str:
    """Return an instant in UTC as ISO 8601 writes it, with a Z; `timespec` as for isoformat."""
    return instant.isoformat(timespec=timespec).replace("+00:00", "Z")


class Clock(Protocol):
    """Tells the time that decides when tasks run: that of the database."""

    def now(self) -> datetime:
        """Return the present instant, aware; the database's clock shows it already."""

    @property
    def error(self) -> timedelta:
        """How far ahead of `now` the database's clock may be, at most."""


class SystemClock:
    """The machine's own clock, which is also that of a SQLite database."""

    error = timedelta()

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC or the zone that was asked for."""
        return datetime.now(self._zone)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Between which two times the database's clock was at one moment of the monotonic clock.

    All are in nanoseconds, so that nothing is rounded the wrong way.
    """

    moment: int
    earliest: int
    latest: int

    def at(self, moment: int) -> "_Bounds":
        """Return the bounds at a later moment: they move on, and apart by the drift."""
        elapsed = moment - self.moment
        drift = -(-elapsed * _DRIFT // 1_000_000)
        return _Bounds(moment, self.earliest + elapsed - drift, self.latest + elapsed + drift)


class DatabaseClock:
    """The database's clock, measured over the network.

    A time that the database tells was true at some moment between question and answer. So at
    any later moment its clock shows at least that time and what has passed since the answer,
    and at most that time and what has passed since the question. Each measurement narrows the
    bounds that the former ones have left, and the best one counts for as long as it is better
    than its successors. `now` is the lower bound: nothing that goes by it is early. One that
    contradicts the former bounds says that the database's clock was stepped, and starts anew.

    This machine's wall clock has no part in it. May be used from any thread.
    """

    def __init__(
        self, read: Callable[[], datetime], monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._monotonic = monotonic
        self._lock = Lock()
        self._bounds = self._ask(read)

    def now(self) -> datetime:
        """Return the latest instant that the database's clock has certainly reached."""
        return _EPOCH + self._present().earliest // _NANOSECONDS * _MICROSECOND

    @property
    def error(self) -> timedelta:
        """How far ahead of `now` the database's clock may be, at most."""
        bounds = self._present()
        # Rounded up, and one more for what `now` has rounded down.
        return ((bounds.latest - bounds.earliest) // _NANOSECONDS + 2) * _MICROSECOND

    def measure(self, read: Callable[[], datetime]) -> None:
        """Compare with the database's clock, which `read` asks; the faster it is, the better."""
        answer = self._ask(read)
        with self._lock:
            moment = max(self._bounds.moment, answer.moment)
            former, fresh = self._bounds.at(moment), answer.at(moment)
            earliest = max(former.earliest, fresh.earliest)
            latest = min(former.latest, fresh.latest)
            stepped = earliest > latest
            self._bounds = fresh if stepped else _Bounds(moment, earliest, latest)
        step = (fresh.earliest - former.earliest) // _NANOSECONDS * _MICROSECOND
        if stepped and abs(step) >= _NOTABLE_STEP:
            _logger.warning("the database's clock was stepped by %+.3f s", step.total_seconds())

    def _ask(self, read: Callable[[], datetime]) -> _Bounds:
        question = self._monotonic()
        told = (read() - _EPOCH) // _MICROSECOND * _NANOSECONDS
        answer = self._monotonic()
        # It tells whole microseconds, and may have been almost one further.
        latest = told + _NANOSECONDS
        return _Bounds(answer, told, _Bounds(question, latest, latest).at(answer).latest)

    def _present(self) -> _Bounds:
        # Read first: were the moment older than the bounds, they would be moved backwards.
        bounds = self._bounds
        return bounds.at(self._monotonic())
