"""The two clients: one that waits for each answer, and one that awaits it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address
from threading import Event
from typing import Self, Unpack

import httpx

from job_scheduler.client.exchange import RETRIES
from job_scheduler.client.members import Place, TaskFilter, as_query
from job_scheduler.client.operations import Operations
from job_scheduler.client.running import Awaiting, Blocking
from job_scheduler.client.shapes import Task
from job_scheduler.urls import parse_url

BASE_URL = "http://127.0.0.1:8000"
_TIMEOUT = 30.0


class Client(Operations, Blocking):
    """A client of the service at `base_url`; close it, or use it in a ``with``.

    `timeout` is how many seconds connecting, sending and each part of an answer may take.
    Questions that were not answered, or answered 503 with Retry-After, are repeated up to
    `retries` times, where that does no more than once. `transport` and `pause`, which waits so
    many seconds before a repetition, take the place of the usual ones.

    Raises:
        ValueError: `base_url` is no address; the message says what to do.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: float = _TIMEOUT,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        trust_env = _by_proxy(base_url)
        self._address = base_url
        self._retries = retries
        self._timeout = timeout
        self._pause = pause or Event().wait
        self._http = httpx.Client(base_url=base_url, transport=transport, trust_env=trust_env)

    def list(self, *, limit: int | None = None, **filters: Unpack[TaskFilter]) -> Iterator[Task]:
        """Go through the tasks that meet all filters, `limit` at most, page by page."""
        place: Place | None = Place(as_query(filters), limit)
        while place is not None:
            page, place = self._page(place)
            yield from page

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Operations, Awaiting):
    """A client of the service for asyncio: as `Client`, but what it returns is awaited."""

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: float = _TIMEOUT,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        trust_env = _by_proxy(base_url)
        self._address = base_url
        self._retries = retries
        self._timeout = timeout
        self._pause = pause or asyncio.sleep
        self._http = httpx.AsyncClient(base_url=base_url, transport=transport, trust_env=trust_env)

    async def list(
        self, *, limit: int | None = None, **filters: Unpack[TaskFilter]
    ) -> AsyncIterator[Task]:
        """Go through the tasks that meet all filters, `limit` at most, page by page."""
        place: Place | None = Place(as_query(filters), limit)
        while place is not None:
            page, place = await self._page(place)
            for task in page:
                yield task

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _by_proxy(base_url: str) -> bool:
    """Tell whether a proxy that the environment names may stand in between.

    This machine itself is not reached through one, whether NO_PROXY says so or not.

    Raises:
        ValueError: `base_url` is no address.
    """
    try:
        host = parse_url(base_url).host
    except ValueError as error:
        raise ValueError(f"base_url: {error} (found: {base_url!r})") from None
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
