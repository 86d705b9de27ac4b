"""One question to the service, and when it is asked once more; nothing is sent here.

An operation is a generator: it yields what to ask, gets the answer back, and returns what that
means. So the same operation serves a client that waits and one that awaits. One whose answer is a
stream is a flow: it asks for more of the answer as well, and yields what it has found.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from job_scheduler.client.errors import error_of, unreachable
from job_scheduler.client.lines import Lines

T = TypeVar("T")

RETRIES = 3
"""How often a question is repeated, unless the client is told otherwise."""
LONGEST_PAUSE = 30
"""Seconds that the service may ask a caller to wait before it is asked again."""
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 2.0
"""Seconds before the first repetition where nobody answers; each further one doubles them, up to
the last."""

# The service says so where it has done nothing; a proxy's 503 says neither.
_NOTHING_DONE = ("DATABASE_503", "OVERLOADED_503", "UNAVAILABLE_503")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Ask:
    """A question; it is put after `after` seconds.

    `repeatable`: it does no more when it is put twice. `wait`: for how many seconds the service is
    asked to hold its answer back. `streamed`: the answer is not read yet when it is given back.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    body: bytes | Lines | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    wait: int = 0
    after: float = 0.0
    streamed: bool = False


Answer = httpx.Response | httpx.RequestError
"""What comes back: also that there is no answer."""

Steps = Generator[Ask, Answer, T]


class More:
    """A question for what comes next of a streamed answer: bytes (none: it has ended), or why not.

    What comes back is a ``Part``.
    """


MORE = More()
Part = bytes | httpx.RequestError


@dataclass(frozen=True, slots=True)
class Call:
    """A function that is to be called, and awaited by a client that awaits."""

    function: Callable[[Any], Any]
    argument: object


Flow = Generator[Ask | More | Call | list[T], Any, None]
"""An operation that finds one thing after the other."""


def exchange(ask: Ask, address: str, retries: int) -> Steps[httpx.Response]:
    """Ask, and ask again while that may help; return the answer, whatever its status is.

    Raises:
        Unreachable: nobody answers at `address`.
    """
    answer = yield ask
    for tried in range(retries):
        pause = _pause(ask, answer, tried)
        if pause is None:
            break
        answer = yield replace(ask, after=pause)
    if isinstance(answer, httpx.RequestError):
        raise unreachable(address, answer) from answer
    return answer


def pause_before(tried: int) -> float:
    """Return for how many seconds to pause when it was repeated `tried` times already."""
    return min(_FIRST_PAUSE * 2.0**tried, _LAST_PAUSE)


def _pause(ask: Ask, answer: Answer, tried: int) -> float | None:
    """Return after how many seconds to ask again; None: not at all.

    What has surely done nothing is always repeated; what may have been done, only where that does
    no more.
    """
    if isinstance(ask.body, Lines) and ask.body.is_spent:
        return None
    pause = pause_before(tried)
    if isinstance(answer, httpx.RequestError):
        return pause if ask.repeatable or isinstance(answer, _NOT_SENT) else None
    wanted = answer.headers.get("Retry-After", "")
    if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE or not re.fullmatch("[0-9]+", wanted):
        return None
    if not ask.repeatable and error_of(answer).error_code not in _NOTHING_DONE:
        return None
    return max(pause, float(wanted)) if float(wanted) <= LONGEST_PAUSE else None
