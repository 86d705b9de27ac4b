"""Wake-ups: on PostgreSQL, whoever inserts a task that is due can say so at once.

``NOTIFY job_scheduler`` reaches every instance when its transaction is committed. It is only a
hint: one that is lost costs the time until the next sweep.
"""

import asyncio
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from job_scheduler.calls import bounded
from job_scheduler.constants import CHANNEL

_logger = logging.getLogger(__name__)

_GATHER_SECONDS = 0.05
_PAUSE_SECONDS = 1.0
_LISTEN_SECONDS = 5.0
_JOIN_SECONDS = 0.5


class Wakeups:
    """Calls `wake` on the event loop when a notification has come, at most 20 times a second.

    It has a thread and a connection of its own. A connection that is lost is opened again after
    a pause of `pause` seconds; `wake` is called then, too, since something may have been missed.
    """

    def __init__(
        self, engine: Engine, wake: Callable[[], None], pause: float = _PAUSE_SECONDS
    ) -> None:
        self._engine = engine
        self._wake = wake
        self._pause = pause
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)

    def start(self) -> None:
        """Begin to listen; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        # A byte in it ends the wait for a notification.
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._thread.start()

    def stop(self) -> None:
        """End; a thread that is just connecting to a server that does not answer ends later."""
        self._stop_writer.send(b".")
        self._stopping.set()  # not before: the thread closes the socket as it ends
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with self._engine.connect() as connection:
                        self._listen(connection.execution_options(isolation_level="AUTOCOMMIT"))
                except (DBAPIError, psycopg2.Error) as error:
                    # The sweep says so if the database is away; without it, nothing is lost.
                    _logger.debug("no notifications for the moment", exc_info=error)
                    self._stopping.wait(self._pause)
        finally:
            self._stop_reader.close()
            self._stop_writer.close()

    def _listen(self, connection: Connection) -> None:
        try:
            with bounded(_LISTEN_SECONDS):
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            driver: Any = connection.connection.dbapi_connection
            with selectors.DefaultSelector() as selector:
                selector.register(self._stop_reader, selectors.EVENT_READ)
                while not self._stopping.is_set():
                    self._loop.call_soon_threadsafe(self._wake)
                    self._stopping.wait(_GATHER_SECONDS)  # what comes meanwhile is one wake-up
                    selector.register(driver, selectors.EVENT_READ)
                    while not driver.notifies and not self._stopping.is_set():
                        selector.select()
                        driver.poll()
                    driver.notifies.clear()
                    selector.unregister(driver)
        finally:
            # It listens, and may be broken: it is closed, the pool is not to have it back.
            connection.invalidate()
