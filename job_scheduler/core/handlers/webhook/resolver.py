"""Names to addresses, without holding up the event loop or the exit of the process."""

import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Protocol

import httpcore

from job_scheduler.core.handlers.webhook.addresses import Address
from job_scheduler.threads import DaemonThreads

_THREADS = 8
"""Names looked up at a time. One that hangs holds a thread for as long as the system tries."""


class Resolver(Protocol):
    """Knows the addresses of hosts."""

    async def resolve(self, host: str) -> Sequence[Address]:
        """Return the addresses of a host, the best first.

        Raises:
            httpcore.ConnectError: it has none, or cannot be looked up.
        """

    def close(self) -> None:
        """Look nothing up any more."""


def ask_system(host: str) -> list[str]:
    """Return the addresses of a host as the system knows them; may take long."""
    # As bytes: Python would else put a name into another form by itself.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class SystemResolver:
    """Asks the system, in a few threads of its own."""

    def __init__(self, ask: Callable[[str], list[str]] = ask_system) -> None:
        self._ask = ask
        self._threads = DaemonThreads(_THREADS, "resolver")

    async def resolve(self, host: str) -> Sequence[Address]:
        """Return the addresses of a host; an address is its own."""
        try:
            return [ip_address(host)]
        except ValueError:
            return [ip_address(text) for text in await self._look_up(host)]

    def close(self) -> None:
        """Let the threads end after what they are at."""
        self._threads.close()

    async def _look_up(self, host: str) -> list[str]:
        is_wanted = True
        # Behind a name server that hangs, calls pile up whose callers have given up.
        call = self._threads.submit(lambda: self._ask(host) if is_wanted else [])
        try:
            return await call
        except OSError as error:
            words = f"the host {host!r} is not found: {error.strerror}"
            raise httpcore.ConnectError(words) from None
        finally:
            is_wanted = False
