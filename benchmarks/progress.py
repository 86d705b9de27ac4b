"""How far the run is: one line on standard error, with the time that is left."""

import sys
import time
from collections.abc import Sequence

from benchmarks.plan import Step

_WIDTH = 24


class Progress:
    """A bar on a terminal; elsewhere a line a step."""

    def __init__(self, steps: Sequence[Step], *, terminal: bool | None = None) -> None:
        self._steps = steps
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._took: dict[tuple[str, str, str], float] = {}
        self._begun = time.monotonic()

    def show(self, place: int) -> None:
        """Show that the step at `place` begins."""
        step = self._steps[place]
        left = self.seconds_left(place)
        full = _WIDTH * place // len(self._steps)
        bar = "█" * full + "░" * (_WIDTH - full)
        line = (
            f"{bar} {place + 1}/{len(self._steps)}, about {left // 60:.0f}:{left % 60:02.0f} left; "
            f"run {step.run}: {step.case.work} {step.case.label}: {step.peer.title}"
        )
        self._write(line)

    def took(self, step: Step, seconds: float) -> None:
        """Learn how long such a step takes."""
        self._took[_kind(step)] = seconds

    def seconds_left(self, place: int) -> float:
        """The sum of what the steps from `place` on took the last time, or are thought to take."""
        return sum(self._took.get(_kind(step), step.case.seconds) for step in self._steps[place:])

    def end(self) -> None:
        """Leave the line."""
        self._write(f"{len(self._steps)} steps in {time.monotonic() - self._begun:.0f} s")
        if self._terminal:
            sys.stderr.write("\n")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line[:118]}\x1b[K" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def _kind(step: Step) -> tuple[str, str, str]:
    return (step.case.work, step.case.label, step.peer.key)
