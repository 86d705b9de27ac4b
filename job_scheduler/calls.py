"""A call to the database that is under way, and how another thread ends its waiting.

A driver that waits for an answer waits in the C library, where no exception reaches it. What
ends the wait is that its connection is cut off (``shutdown``): it returns with an error at once,
and its thread and its place in the pool are free again.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from job_scheduler.exceptions import DatabaseUnavailable

T = TypeVar("T")

_current: "ContextVar[Call | None]" = ContextVar("call", default=None)
# A line goes from call to call, while some other thread may give one of them up. What is done
# under this lock is short, and waits for nothing. It may be taken once more by the thread that has
# it: garbage is collected anywhere, and a connection that is dropped closes its line then.
_lock = threading.RLock()


class Call:
    """Something asked of the database, which may be given up by another thread."""

    def __init__(self) -> None:
        self._begun = False
        self._given_up = False
        self._line: Line | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up

    def run(self, work: Callable[[], T]) -> T:
        """Do the work, unless the call was given up before its turn came.

        Raises:
            DatabaseUnavailable: it was given up; nothing was begun.
        """
        with _lock:
            if self._given_up:
                raise DatabaseUnavailable
            self._begun = True
        token = _current.set(self)
        try:
            return work()
        finally:
            _current.reset(token)

    def give_up(self) -> bool:
        """Cut off the connection that the call uses, or will use; tell whether it had begun."""
        with _lock:
            self._given_up = True
            if self._line is not None:
                self._line.cut_off(self)
            return self._begun

    def take(self, line: "Line") -> bool:
        """Use this line from now on; False when the call was given up. For `Line` alone."""
        self._line = line
        return not self._given_up


def is_given_up() -> bool:
    """Tell whether the call that this thread is at was given up."""
    call = _current.get()
    return call is not None and call.is_given_up


class Line:
    """The socket of a connection, known by a descriptor of its own.

    The driver may close its own at any moment, and the number then stands for something else.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._user: Call | None = None

    def use(self) -> None:
        """Note that the present call, if there is one, waits for this line from now on."""
        with _lock:
            self._user = call = _current.get()
            if call is not None and not call.take(self):
                self.cut_off(call)

    def cut_off(self, call: Call) -> None:
        """End all waiting, unless the line serves another call by now. For `Call` alone."""
        if self._user is call:
            with suppress(OSError):  # the other side has gone, or the line is closed
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        with _lock:
            self._socket.close()


@contextmanager
def bounded(patience: float | None) -> Iterator[None]:
    """Give up what the block asks of the database after `patience` seconds (None: never)."""
    if patience is None:
        yield
        return
    call = Call()
    timer = threading.Timer(patience, call.give_up)
    timer.name = "database-patience"
    timer.daemon = True
    timer.start()
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
        timer.cancel()
        timer.join()
