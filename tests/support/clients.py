"""Both kinds of the Python client behind one face, and what stands between it and the service."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import httpx

from job_scheduler.client import AsyncClient

Respond = Callable[[httpx.Request], httpx.Response]
Make = Callable[..., Any]
"""Makes a client: of the kind that is tried, and closed at the end."""


class Awaited:
    """An AsyncClient, each of whose answers is awaited at once: the same tests serve both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "pause" in options:
            options["pause"] = as_coroutine(options["pause"])
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)
        self._runner.run(self._client.__aenter__())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **members: Any) -> Any:
            if "on_open" in members:
                members["on_open"] = as_coroutine(members["on_open"])
            return self._awaited(method(*arguments, **members))

        return call

    def _awaited(self, answer: Any) -> Any:
        return self._each(answer) if isinstance(answer, AsyncGenerator) else self._run(answer)

    def _each(self, iterator: AsyncGenerator[Any, None]) -> Iterator[Any]:
        """Go through what an iterator yields; it is closed when this is."""
        end = object()
        try:
            while (found := self._run(anext(iterator, end))) is not end:
                yield found
        finally:
            self._run(iterator.aclose())

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self._runner.run(wait())

    def end(self) -> None:
        """Close it, and its loop."""
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()


def as_coroutine(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function, to be awaited."""

    async def call(argument: Any) -> None:
        function(argument)

    return call


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Notes each request that goes to the real service.

    It may refuse the first connections, and then lose the first answers.
    """

    def __init__(self, *, losses: int = 0, refusals: int = 0) -> None:
        self.losses = losses
        self.refusals = refusals
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Hand it on."""
        if self.refusals:
            self.refusals -= 1
            return refused(request)
        self.requests.append(request)
        with httpx.HTTPTransport() as real:
            response = real.handle_request(request)
            response.read()
        if len(self.requests) <= self.losses:
            raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(
            response.status_code, headers=response.headers, content=response.read()
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Hand it on."""
        if not self.refusals:
            await request.aread()
        return await asyncio.to_thread(self.handle_request, request)


def answering(make: Make, respond: Respond, **options: Any) -> tuple[Any, list[float]]:
    """A client whose every question is answered by a function; and for how long it pauses."""
    pauses: list[float] = []
    transport = httpx.MockTransport(respond)
    return make(transport=transport, pause=pauses.append, **options), pauses


def problem(status: int, error_code: str, **headers: str) -> httpx.Response:
    """An error as the service tells it."""
    return httpx.Response(
        status,
        json={"status": status, "error_code": error_code, "detail": "in words"},
        headers={"Content-Type": "application/problem+json"} | headers,
    )


def lost(request: httpx.Request) -> httpx.Response:
    """Give no answer, though it may have been done."""
    raise httpx.ReadTimeout("timed out", request=request)


def refused(request: httpx.Request) -> httpx.Response:
    """Take no connection."""
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)
