"""The database: engine, transactions, and the threads in which its blocking calls run."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from job_scheduler import postgresql, sqlite, strict_json
from job_scheduler.calls import Call, bounded
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable
from job_scheduler.outages import as_outage, is_rolled_back, was_lost
from job_scheduler.threads import DaemonThreads

P = ParamSpec("P")
T = TypeVar("T")
Dialect = Literal["postgresql", "sqlite"]

_THREADS = 4
PATIENCE_SECONDS = 17.0
"""How long a call may take. The server itself ends a statement after 15 seconds, and says so: the
two more let that answer arrive, so that only a call that gets no answer is given up."""
_CLOSE_SECONDS = 3.0
_TRIES = 6
_PAUSE_SECONDS = 0.05


class Database:
    """An engine, and how work is done with it: in a few threads, one transaction a call.

    Reads and writes have threads of their own, so that a long list never holds up a claim.
    """

    def __init__(self, engine: Engine, patience: float = PATIENCE_SECONDS) -> None:
        self.engine = engine
        self._patience = patience
        self.dialect: Dialect = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"
        self._readers = DaemonThreads(_THREADS, "database-read")
        self._writers = DaemonThreads(_THREADS, "database-write")
        # SQLite has one writer at a time. Threads of this process queue here, fairly, rather
        # than in SQLite's busy handler, which sleeps and may starve one of them.
        self._sqlite_writer = threading.Lock() if self.dialect == "sqlite" else nullcontext()
        self._under_way: set[Call] = set()
        self._ping: asyncio.Future[float] | None = None

    async def read(
        self,
        work: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work(connection, …)`, which only SELECTs, in a thread.

        Raises:
            DatabaseUnavailable: it cannot be reached.
        """

        def call() -> T:
            return self._read(None, lambda connection: work(connection, *args, **kwargs))

        return await self._within_patience(self._readers, call, DatabaseUnavailable())

    async def read_at_once(
        self,
        work: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do what ``read`` does, where several statements are to see the database at one instant.

        Raises:
            DatabaseUnavailable: it cannot be reached.
        """

        def call() -> T:
            return self._read(
                None, lambda connection: work(connection, *args, **kwargs), at_once=True
            )

        return await self._within_patience(self._readers, call, DatabaseUnavailable())

    def read_here(
        self,
        patience: float | None,
        work: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do what ``read`` does, in the caller's own thread; cut off after `patience` seconds.

        Raises:
            DatabaseUnavailable: it cannot be reached.
        """
        return self._read(patience, lambda connection: work(connection, *args, **kwargs))

    def _read(
        self, patience: float | None, work: Callable[[Connection], T], *, at_once: bool = False
    ) -> T:
        try:
            with self.reading(patience, at_once=at_once) as connection:
                return work(connection)
        except DatabaseUnavailable as error:
            if not was_lost(error):
                raise
        with self.reading(patience, at_once=at_once) as connection:
            return work(connection)

    async def write(
        self,
        work: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work(connection, …)` in a thread, in a transaction that is committed after it.

        A transaction that the server has rolled back for the sake of another one (a deadlock) is
        repeated, a few times, and one whose connection was lost before its COMMIT once: so `work`
        may be called more than once.

        Raises:
            DatabaseUnavailable: it cannot be reached; nothing was changed.
            CommitOutcomeUnknown: the connection broke during COMMIT, or no answer came.
        """

        def once() -> T:
            with self.writing() as connection:
                return work(connection, *args, **kwargs)

        def call() -> T:
            for _ in range(_TRIES - 1):
                try:
                    return once()
                except DatabaseUnavailable as error:
                    if was_lost(error):
                        break
                    if not is_rolled_back(error):
                        raise
                # Not in step with the other one.
                threading.Event().wait(_PAUSE_SECONDS * random.random())  # noqa: S311 (no secret)
            return once()

        return await self._within_patience(self._writers, call, CommitOutcomeUnknown())

    async def _within_patience(
        self, threads: DaemonThreads, work: Callable[[], T], unknown: DatabaseUnavailable
    ) -> T:
        """Give up on a server that keeps the connection but does not answer.

        The call is cut off, which frees its thread and its place in the pool. What it was at may
        have been carried out (`unknown`); one whose turn had not come was not begun. This goes on
        when whoever waits is cancelled.
        """
        call = Call()
        answer = threads.submit(lambda: call.run(work))

        def give_up() -> None:
            answer.set_exception(unknown if call.give_up() else DatabaseUnavailable())

        def settle(_answer: "asyncio.Future[T]") -> None:
            timer.cancel()
            self._under_way.discard(call)
            answer.exception()  # Whoever waited may have gone.

        timer = asyncio.get_running_loop().call_later(self._patience, give_up)
        self._under_way.add(call)
        answer.add_done_callback(settle)
        await asyncio.wait([answer])
        return answer.result()

    async def ping(self, patience: float) -> float:
        """Return in how many seconds the database answers.

        One question is under way at a time, however many ask.

        Raises:
            DatabaseUnavailable: it has not answered within `patience` seconds.
        """
        if self._ping is None or self._ping.done():
            self._ping = asyncio.ensure_future(self.read(_round_trip))
            # Whoever asked may have lost patience before it fails.
            self._ping.add_done_callback(lambda ping: ping.cancelled() or ping.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._ping), patience)
        except TimeoutError:
            raise DatabaseUnavailable from None

    @contextmanager
    def reading(
        self, patience: float | None = None, *, at_once: bool = False
    ) -> Iterator[Connection]:
        """Open a connection for SELECTs only; it is cut off after `patience` seconds, if given.

        With `at_once` all of them see the database as it was when the first one was made. (On
        SQLite that is always so.)
        """
        level = "REPEATABLE READ" if at_once else "AUTOCOMMIT"
        options = {} if self.dialect == "sqlite" else {"isolation_level": level}
        try:
            with (
                bounded(patience),
                self.engine.connect().execution_options(**options) as connection,
            ):
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise as_outage(error, DatabaseUnavailable()) from error

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[Connection]:
        """Open a transaction; it is committed at the end, or rolled back on any error.

        It is cut off after `patience` seconds, if given.
        """
        failure: DatabaseUnavailable = DatabaseUnavailable()
        try:
            with (
                bounded(patience),
                self._sqlite_writer,
                self.engine.connect().execution_options(immediate=True) as connection,
            ):
                yield connection
                failure = CommitOutcomeUnknown()
                connection.commit()
        except (DBAPIError, PoolTimeoutError) as error:
            raise as_outage(error, failure) from error

    def close(self) -> None:
        """Wait a little for the calls under way, cut off the others, and disconnect."""
        self._readers.close(_CLOSE_SECONDS)
        self._writers.close(_CLOSE_SECONDS)
        for call in tuple(self._under_way):
            call.give_up()
        self.engine.dispose()


def _round_trip(connection: Connection) -> float:
    begin = time.perf_counter()
    connection.execute(text("SELECT 1"))
    return time.perf_counter() - begin


def build_engine(
    url: URL,
    pool_size: int = 2 * _THREADS + 1,
    connect_seconds: int = postgresql.CONNECT_SECONDS,
    *,
    try_first: bool = False,
) -> Engine:
    """Build an engine for PostgreSQL or SQLite; nothing is opened yet.

    With `try_first` each connection is tried before it is used, for those who cannot repeat.

    Raises:
        ConfigurationError: SQLite's file lies on a network file system.
    """
    json = {"json_serializer": strict_json.dumps, "json_deserializer": strict_json.loads}
    if url.get_backend_name() == "sqlite":
        sqlite.refuse_network_file_system(url)
        engine = create_engine(url, pool_size=pool_size, max_overflow=0, **json)
        event.listen(engine, "connect", sqlite.configure)
        event.listen(engine, "begin", sqlite.begin)
        return engine
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=try_first,
        connect_args=postgresql.connect_arguments(url, connect_seconds),
        **json,
    )
    event.listen(engine, "connect", postgresql.configure)
    event.listen(engine, "do_execute", postgresql.execute_prepared)
    return engine
