"""What the handlers have noted: which task started when."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 12.0
"""When nothing has started for so long, what is missing is taken for lost."""
_LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Start:
    """One start of a handler, by the wall clock (Unix seconds)."""

    number: int
    at: float


def read(path: Path) -> list[Start]:
    """Return all starts, in the order of time."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return sorted((Start(int(number), float(at)) for number, at in pairs), key=lambda s: s.at)


def wait_for(path: Path, number: int, seconds: float, due: float) -> bool:
    """Wait until so many starts are noted; return whether they are.

    It ends after `seconds`, or when none has come for PATIENCE_SECONDS since `due` or the last.
    """
    end = time.monotonic() + seconds
    seen, moved = 0, time.monotonic()
    with path.open("rb") as file:
        while seen < number:
            now = time.monotonic()
            block = file.read()
            if block:
                seen, moved = seen + block.count(b"\n"), now
            elif now > end or (now - moved > PATIENCE_SECONDS < time.time() - due):
                return False
            else:
                time.sleep(_LOOK_SECONDS)
    return True


def wait_until_none(left: Callable[[], int], seconds: float) -> float:
    """Wait until nothing is left to be recorded, or nothing moves; return when that was seen."""
    end = time.monotonic() + seconds
    last, moved = -1, time.monotonic()
    while (now := time.monotonic()) < end:
        value = left()
        if value == 0:
            break
        if value != last:
            last, moved = value, now
        elif now - moved > PATIENCE_SECONDS:
            break
        time.sleep(_LOOK_SECONDS)
    return time.time()


def counts(starts: Sequence[Start], number: int) -> dict[str, float]:
    """How many of the tasks 0 to number - 1 ran never, and more than once."""
    times = Counter(start.number for start in starts)
    return {
        "never": sum(times[place] == 0 for place in range(number)),
        "twice": sum(count > 1 for count in times.values()),
    }


def lateness(starts: Sequence[Start], due: Sequence[float]) -> dict[str, float]:
    """Percentiles of start minus due, in milliseconds."""
    values = [(start.at - due[start.number]) * 1000 for start in starts]
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "worst_ms": max(values), "min_ms": min(values)}
