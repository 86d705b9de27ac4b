"""The lock that elects who claims a task: its interface, and the kind for one process.

The lock saves work, the claim decides: without any lock a task still runs once.
"""

from datetime import datetime
from typing import Protocol


class TaskLock(Protocol):
    """Elects one of those who want to claim the same task at the same moment."""

    backend: str

    async def acquire(self, task_id: str, token: str) -> bool:
        """Try to take the lock of a task; False when another token holds it.

        True also when the backend cannot be asked: the claim decides then.
        """

    def release(self, task_id: str, token: str) -> None:
        """Give the lock back, soon, if `token` still holds it; never raises."""

    def settle(self, task_id: str, token: str) -> None:
        """Take note that the claim is made: `token` needs the lock no longer; never raises.

        Where there are other processes it may stay until it expires, and keep them, when they come
        late, from asking the database.
        """

    async def away_since(self) -> datetime | None:
        """Ask the backend how it does: None when it answers; never raises."""

    async def close(self) -> None:
        """Send what is still to be released, and disconnect."""


class InProcessLock:
    """The lock for one process: a table of who holds what."""

    backend = "in-process"

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    async def acquire(self, task_id: str, token: str) -> bool:
        """Try to take the lock of a task; False when another token holds it."""
        return self._holders.setdefault(task_id, token) == token

    def release(self, task_id: str, token: str) -> None:
        """Give the lock back if `token` still holds it."""
        if self._holders.get(task_id) == token:
            del self._holders[task_id]

    settle = release  # nobody else is there to come late

    async def away_since(self) -> datetime | None:
        """Return None: there is nothing that could be away."""
        return None

    async def close(self) -> None:
        """Do nothing: there is no connection."""
