"""Questions that take long to answer: one is worked on at a time, and few wait, not for long."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from job_scheduler.exceptions import Overloaded

T = TypeVar("T")

_LOOK_SECONDS = 0.5
"""How often it is looked whether those who wait are still there."""


@dataclass(slots=True, eq=False)
class _Question:
    """A question that was asked, and by how many who have not left."""

    askers: int = 0
    has_begun: bool = False


class Questions:
    """Questions that are answered one at a time; who asks what waits already shares its answer.

    Up to `waiting` of them wait, for up to `patience` seconds. Those that nobody waits for any more
    are dropped.
    """

    def __init__(self, waiting: int, patience: float) -> None:
        self.patience = patience
        self._most = 1 + waiting
        self._number = 0
        self._turn = asyncio.Lock()
        self._waiting: dict[Hashable, tuple[_Question, asyncio.Task[Any]]] = {}

    async def ask(
        self,
        question: Hashable,
        work: Callable[[], Awaitable[T]],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Return what `work` answers to a question. `is_gone` tells whether the caller has left.

        An answer is not older than the call: what is being worked on is not shared.

        Raises:
            Overloaded: too many others wait, its turn has not come in time, or the caller has left.
        """
        asked, answer = self._waiting.get(question) or self._take(question, work)
        asked.askers += 1
        end = time.monotonic() + self.patience
        try:
            while not (await asyncio.wait([answer], timeout=_LOOK_SECONDS))[0]:
                too_late = not asked.has_begun and time.monotonic() >= end
                if too_late or await is_gone():
                    raise Overloaded
            found: T = answer.result()
            return found
        finally:
            asked.askers -= 1
            if not asked.askers:
                self._leave(question, asked)
                answer.cancel()

    def _take(
        self, question: Hashable, work: Callable[[], Awaitable[T]]
    ) -> tuple[_Question, "asyncio.Task[T]"]:
        if self._number >= self._most:
            raise Overloaded
        asked = _Question()

        async def answered() -> T:
            async with self._turn:
                asked.has_begun = True
                self._leave(question, asked)
                return await work()

        answer = asyncio.ensure_future(answered())
        answer.add_done_callback(self._settle)
        self._number += 1
        self._waiting[question] = asked, answer
        return asked, answer

    def _leave(self, question: Hashable, asked: _Question) -> None:
        """Let nobody share this answer any more."""
        if question in self._waiting and self._waiting[question][0] is asked:
            del self._waiting[question]

    def _settle(self, answer: "asyncio.Task[Any]") -> None:
        self._number -= 1
        if not answer.cancelled():
            answer.exception()  # Whoever asked may have left before it failed.
