"""Shares: which of the tasks that are due at one instant each of several instances begins with.

All instances hold the same tasks, and whoever comes second has tried for nothing. So of one
instant's tasks each begins with a share of its own; then it takes those of the others, from the end
of theirs. Nothing depends on it: who runs a task is decided by its claim.
"""

from typing import NamedTuple
from zlib import crc32

_FROM_THE_END = bytes(reversed(range(256)))


class Share(NamedTuple):
    """The share of the instance that is at `place`, from 0, among a `number` of them."""

    place: int = 0
    number: int = 1

    def turn(self, task_id: str) -> tuple[int, bytes]:
        """Return what sorts tasks of one instant: the own share first, in the order of its ids; the
        others after it, each from its end.
        """
        if self.number == 1:
            return 0, b""
        letters = task_id.encode()
        shares_before = (crc32(letters) - self.place) % self.number
        return shares_before, letters.translate(_FROM_THE_END) if shares_before else b""
