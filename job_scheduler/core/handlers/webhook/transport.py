"""The way out: a pool of connections, each to an address that was examined and then dialled."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence

import httpcore
import httpx

from job_scheduler.core.handlers.webhook.addresses import Address
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.resolver import Resolver, SystemResolver

CONNECT_SECONDS = 5.0
"""How long it may take to find a host's addresses and connect; as long again for TLS."""

_IDLE_MAX = 20
_IDLE_SECONDS = 4.0
"""How long an unused connection is kept: many servers close it after five seconds, and what is
sent at that moment is lost."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Dials the very addresses that the guard has examined: the host is looked up only once.

    Whoever asked for a host still speaks to it by its name, in TLS and in the header Host.
    """

    def __init__(
        self, guard: Guard, resolver: Resolver, network: httpcore.AsyncNetworkBackend
    ) -> None:
        self._guard = guard
        self._resolver = resolver
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (it is httpcore that calls)
        local_address: str | None = None,  # noqa: ARG002 (our pool sets none)
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 (likewise)
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the host's addresses, if all of them may be reached.

        Raises:
            AddressRefused: one of them may not.
            httpcore.ConnectError, httpcore.ConnectTimeout: there is no connection.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                addresses = await self._resolver.resolve(host)
                self._guard.examine(host, addresses)
                return await self._dial(addresses, port, limit.when())
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from None

    async def _dial(
        self, addresses: Sequence[Address], port: int, deadline: float | None
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers; each gets its part of the time left."""
        problem = "the host has no address"
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            now = asyncio.get_running_loop().time()
            share = None if deadline is None else (deadline - now) / left
            try:
                return await self._network.connect_tcp(str(address), port, share)
            except httpcore.ConnectTimeout:
                problem = "no answer"
            except httpcore.ConnectError as error:
                problem = _reason(error)
        raise httpcore.ConnectError(f"cannot connect: {problem}")


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's transport over guarded connections; raises httpcore's errors as they are.

    Proxies that the environment names are not asked: they would do the dialling.
    """

    def __init__(
        self,
        guard: Guard,
        resolver: Resolver | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self._resolver = resolver or SystemResolver()
        self._timeout = {"connect": connect_seconds}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            # As many as tasks run at a time, which is bounded elsewhere.
            max_connections=None,
            max_keepalive_connections=_IDLE_MAX,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=GuardedNetwork(
                guard, self._resolver, network or httpcore.AnyIOBackend()
            ),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response, whose body is still to be read.

        Raises:
            AddressRefused: the host leads inside.
        """
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions={"timeout": self._timeout},
            )
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_ResponseBody(response)
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
        self._resolver.close()


class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


def _reason(error: BaseException) -> str:
    """Return in the system's words why there is no connection: the first of the causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) else str(error)
