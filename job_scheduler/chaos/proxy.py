"""A TCP proxy before a server, which takes the network away and gives it back."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from sqlalchemy.engine import make_url

LOOPBACK = "127.0.0.1"
POSTGRESQL_PORT = 5432
REDIS_PORT = 6379

_EFFECT_SECONDS = 20.0
"""How long a change may take to have its effect, at most."""


class Proxy:
    """A TCP proxy before a server, to take the network away: `cut`, `stall`, `heal`.

    One thread carries all connections; each method has taken effect when it returns.
    A host that begins with a slash is the directory of PostgreSQL's Unix socket.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = _resolve(host, port)
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._listening = False
        self.port = 0

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy before the server that this URL (of PostgreSQL or Redis) names."""
        parsed = make_url(url)
        default = REDIS_PORT if parsed.get_backend_name() == "redis" else POSTGRESQL_PORT
        host = parsed.host or parsed.query.get("host") or LOOPBACK
        port = parsed.port or parsed.query.get("port") or default
        return cls(str(host), int(str(port)))

    def url_for(self, original_url: str) -> str:
        """The same URL by way of this proxy."""
        url = make_url(original_url).set(host=LOOPBACK, port=self.port)
        url = url.difference_update_query(["host", "port"])
        return url.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        self._listener = _bound_socket(0)
        self.port = self._listener.getsockname()[1]
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._carry_connections(),), name=f"proxy {self.port}"
        )
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._finished.set)
        self._thread.join()

    def cut(self) -> None:
        """Close every connection and refuse new ones: the server is gone."""
        self._in_loop(self._cut())

    def stall(self) -> None:
        """Accept and keep connections, but forward nothing: the network swallows packets."""
        self._in_loop(self._set_flowing(False))

    def heal(self) -> None:
        """Forward again; what a stall has held back arrives late, as it would by TCP."""
        self._in_loop(self._set_flowing(True))

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_EFFECT_SECONDS)

    async def _carry_connections(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flowing = asyncio.Event()
        self._finished = asyncio.Event()
        await self._set_flowing(True)
        self._started.set()
        await self._finished.wait()
        self._close_listener()
        await self._close_connections()

    async def _set_flowing(self, flowing: bool) -> None:
        if not self._listening:
            self._listener.listen(128)
            self._loop.add_reader(self._listener, self._accept)
            self._listening = True
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _cut(self) -> None:
        self._close_listener()
        self._listener = _bound_socket(self.port)  # kept for us, and refusing
        await self._close_connections()

    def _close_listener(self) -> None:
        if self._listening:
            self._loop.remove_reader(self._listener)
            self._listening = False
        self._listener.close()

    async def _close_connections(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionError):  # the client has gone again
            client, _ = self._listener.accept()
            client.setblocking(False)
            connection = self._loop.create_task(self._carry(client))
            self._connections[connection] = client
            connection.add_done_callback(self._forget)

    def _forget(self, connection: asyncio.Task[None]) -> None:
        self._connections.pop(connection).close()

    async def _carry(self, client: socket.socket) -> None:
        await self._flowing.wait()
        family, address = self._target
        with suppress(OSError), socket.socket(family) as server:
            server.setblocking(False)
            await self._loop.sock_connect(server, address)
            directions = [
                asyncio.create_task(self._forward(client, server)),
                asyncio.create_task(self._forward(server, client)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)

    async def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        data = b"any"
        while data:
            data = await self._loop.sock_recv(source, 65536)
            await self._flowing.wait()
            await self._loop.sock_sendall(sink, data)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    if host.startswith("/"):
        return socket.AF_UNIX, f"{host}/.s.PGSQL.{port}"
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda info: info[0] != socket.AF_INET)  # "localhost" is 127.0.0.1 first
    return found[0][0], found[0][4]


def _bound_socket(port: int) -> socket.socket:
    """A socket that holds a port of the loopback interface and refuses until it listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, port))
    bound.setblocking(False)
    return bound
