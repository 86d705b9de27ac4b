"""The other side of webhooks: a resolver and a network that reach nothing, and a real receiver."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import httpcore

from job_scheduler.clock import Clock, SystemClock
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.webhook.addresses import Address
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.sending import WebhookSender
from job_scheduler.core.handlers.webhook.transport import CONNECT_SECONDS, GuardedTransport
from job_scheduler.core.schemas_webhook import Webhook
from job_scheduler.webhook_allow import parse_webhook_allow

TASK_ID = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
NOW = datetime(2027, 7, 1, 10, 0, 3, 500_000, tzinfo=UTC)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class FixedClock:
    """Always shows the same instant."""

    error = timedelta()

    def now(self) -> datetime:
        """Return it."""
        return NOW


def context(attempt: int = 1) -> RunContext:
    """The run of a task that was due three and a half seconds ago."""
    due = datetime(2027, 7, 1, 10, tzinfo=UTC)
    return RunContext(TASK_ID, "nightly", attempt, "token", due)


class FakeResolver:
    """Knows what it is told, each time the next answer (the last one for ever), and asks nobody.

    An address is its own, as for the real one.
    """

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {host: list(each) for host, each in answers.items()}
        self.asked: list[str] = []
        self.is_closed = False

    async def resolve(self, host: str) -> Sequence[Address]:
        """Return the next answer."""
        self.asked.append(host)
        try:
            return [ip_address(host)]
        except ValueError:
            answers = self._answers[host]
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [ip_address(address) for address in addresses]

    def close(self) -> None:
        """Take note of it."""
        self.is_closed = True


class FakeStream(httpcore.AsyncNetworkStream):
    """A connection to nowhere, on which a response lies ready."""

    def __init__(self, response: bytes) -> None:
        self._response = [response]
        self.sent = b""
        self.tls_name: str | None = None
        self.is_closed = False

    async def read(self, *_: Any, **__: Any) -> bytes:
        """Return the response, then nothing more."""
        return self._response.pop() if self._response else b""

    async def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        """Take note of what is sent."""
        self.sent += buffer

    async def aclose(self) -> None:
        """Take note of it."""
        self.is_closed = True

    async def start_tls(
        self, *_: Any, server_hostname: str | None = None, **__: Any
    ) -> "FakeStream":
        """Take note of the name that the certificate would have to have."""
        self.tls_name = server_hostname
        return self

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002 (it is httpcore's)
        """Know nothing."""
        return None


class FakeNetwork(httpcore.AsyncNetworkBackend):
    """Takes note of what is dialled, and dials nothing: each call gets the next response.

    A response may be an exception, which is raised instead.
    """

    def __init__(self, *responses: bytes | Exception) -> None:
        self._responses = list(responses) or [OK]
        self.dialled: list[tuple[str, int]] = []
        self.seconds: list[float | None] = []
        self.streams: list[FakeStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (it is httpcore that calls)
        *_: Any,
        **__: Any,
    ) -> FakeStream:
        """Hand out a connection to nowhere."""
        self.dialled.append((host, port))
        self.seconds.append(timeout)
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        self.streams.append(FakeStream(response))
        return self.streams[-1]


@asynccontextmanager
async def sender(
    allow: str = "",
    keys: Sequence[bytes] = (),
    clock: Clock | None = None,
    resolver: Any = None,
    network: httpcore.AsyncNetworkBackend | None = None,
    connect_seconds: float = CONNECT_SECONDS,
) -> AsyncIterator[WebhookSender]:
    """A sender, closed at the end."""
    guard = Guard(parse_webhook_allow(allow))
    transport = GuardedTransport(guard, resolver, network, connect_seconds)
    one = WebhookSender(transport, keys, clock or SystemClock())
    try:
        yield one
    finally:
        await one.close()


def webhook(url: str = "http://example.com/hook", **members: Any) -> Webhook:
    """A webhook as it comes out of a request."""
    return Webhook.model_validate({"url": url} | members)


@dataclass
class Received:
    """A request as it came over the wire; the names of its headers in small letters."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """A response; `status` with its reason."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(status: str, location: str) -> bytes:
    """A response that redirects; where to is sent as it is, in UTF-8."""
    return answer(status, b"", "Location: <>").replace(b"<>", location.encode())


@dataclass
class Receiver:
    """A real HTTP server on 127.0.0.1, which answers each request with the next of its answers."""

    answers: list[Answer]
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    tasks: list[Any] = field(default_factory=list)

    def url(self, path: str = "/hook") -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes over one connection, until the other side closes it."""
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.requests.append(await _read(reader))
                reply = self.answers.pop(0)
                if not isinstance(reply, bytes):
                    await reply(reader, writer)
                    break
                writer.write(reply)
                await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.strip().split("\r\n")
    pairs = (each.split(": ", 1) if ": " in each else (each[:-1], "") for each in fields)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(line, headers, body)


@asynccontextmanager
async def receiver(*answers: Answer) -> AsyncIterator[Receiver]:
    """A receiver with these answers."""
    one = Receiver(list(answers))
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*one.tasks), 10)
        await server.wait_closed()
