"""The places for runs: there are so many, and each is taken until a handler has ended."""

import asyncio
from collections.abc import Callable
from typing import Any


class Place:
    """A place that a run takes, and gives back when its handler has ended.

    `on_free` is called with it then. A handler that does not end when its run has to (a thread
    cannot be stopped) keeps the place: it is lost until then, and `on_loss` is called.
    """

    def __init__(
        self,
        on_free: Callable[["Place"], None] = lambda _: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_free = on_free
        self._on_loss = on_loss
        self._is_free = False
        self.is_lost = False

    def free(self) -> None:
        """Give it back, unless it is lost; once is enough."""
        if not self.is_lost:
            self._give_back()

    def lose_until(self, ended: "asyncio.Future[Any]") -> None:
        """Keep it taken until the handler has ended, whatever becomes of the run."""
        self.is_lost = True
        self._on_loss()
        ended.add_done_callback(lambda _: self._give_back())

    def _give_back(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._on_free(self)
