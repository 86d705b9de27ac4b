"""The watch over the other instances: who lives, by what one observer has seen itself.

No clock is compared with another one. An instance is dead when its heartbeat has stood still
for a whole lease of the observer's own monotonic clock, with the database answering throughout;
or at once when its process is gone from this very host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from job_scheduler.core.instances import InstanceRow
from job_scheduler.process import ProcessIdentity, is_gone

_GAP_SECONDS = 1.0
"""How much of the time between two looks counts as watched, at most."""
_RECONNECT_SECONDS = 6.0
"""How long a living instance may take to reach a database that has just come back."""


@dataclass(frozen=True, slots=True)
class View:
    """What one look at the others has shown; ``undecided`` are those seen for too short a time."""

    living: list[InstanceRow] = field(default_factory=list)
    undecided: list[InstanceRow] = field(default_factory=list)
    dead: list[InstanceRow] = field(default_factory=list)


@dataclass(slots=True)
class _Sighting:
    heartbeat_seq: int
    since: float
    has_advanced: bool = False


class Watch:
    """Judges the others, look by look (`lease` in seconds, `monotonic` tells the time).

    Only time in which it really looked counts: when this process was paused or the machine
    stood still, the others may well have been held up by the same cause.
    """

    def __init__(
        self, process: ProcessIdentity, lease: float, monotonic: Callable[[], float]
    ) -> None:
        self._process = process
        self._lease = lease
        self._monotonic = monotonic
        self._sightings: dict[str, _Sighting] = {}
        self._last_look = monotonic()
        self._watched = 0.0
        self._credit = 0.0

    def look(self, others: Sequence[InstanceRow]) -> View:
        """Judge each of `others`, as just read from the database."""
        now = self._monotonic()
        self._watched += min(now - self._last_look, _GAP_SECONDS)
        self._last_look = now
        view = View()
        for other in others:
            match self._is_alive(other):
                case True:
                    view.living.append(other)
                case None:
                    view.undecided.append(other)
                case _:
                    view.dead.append(other)
        present = {other.instance_id for other in others}
        self._sightings = {key: seen for key, seen in self._sightings.items() if key in present}
        self._credit = 0.0
        return view

    def start_again(self) -> None:
        """Forget what was seen, and give the others time to reach the database again.

        To be called when the database was away.
        """
        self._sightings.clear()
        self._credit = _RECONNECT_SECONDS

    def _is_alive(self, other: InstanceRow) -> bool | None:
        if is_gone(other.process, self._process):
            return False
        seen = self._sightings.setdefault(
            other.instance_id, _Sighting(other.heartbeat_seq, self._watched + self._credit)
        )
        if other.heartbeat_seq != seen.heartbeat_seq:
            self._sightings[other.instance_id] = _Sighting(
                other.heartbeat_seq, self._watched, has_advanced=True
            )
            return True
        if self._watched - seen.since >= self._lease:
            return False
        return seen.has_advanced or None
