"""What all operations of a client stand on: where the service is, and how it is asked."""

from collections.abc import Callable
from typing import TypeVar

import httpx

from job_scheduler.client.answers import understood
from job_scheduler.client.exchange import Ask, Steps, exchange

T = TypeVar("T")


class Asking:
    """Asks the service at `_address`, and asks again up to `_retries` times.

    Each operation raises:
        ApiError: the service refuses, or could not do it; see ``errors.py`` for its kinds.
    """

    _address: str
    _retries: int

    def _ask(self, ask: Ask, reader: Callable[[httpx.Response], T]) -> Steps[T]:
        """Ask, and return what is read from the answer, which must be a success."""
        answer = yield from exchange(ask, self._address, self._retries)
        return understood(answer, reader)
