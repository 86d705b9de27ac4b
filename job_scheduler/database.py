"""The database: engine, transactions, and the threads in which its blocking calls run."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from job_scheduler import strict_json
from job_scheduler.exceptions import CommitOutcomeUnknown, ConfigurationError, DatabaseUnavailable
from job_scheduler.threads import DaemonThreads

P = ParamSpec("P")
T = TypeVar("T")
Dialect = Literal["postgresql", "sqlite"]

_logger = logging.getLogger(__name__)

_THREADS = 4
# A little longer than the server itself may take over a statement.
_PATIENCE_SECONDS = 20.0
_CLOSE_SECONDS = 3.0
_WAL_SECONDS = 5.0
_WAL_PAUSE_SECONDS = 0.02
_READ_ONLY_TRANSACTION = "25006"
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "fuse.sshfs")
_MOUNTS = Path("/proc/self/mounts")


class Database:
    """An engine, and how work is done with it: in a few threads, one transaction a call.

    Reads and writes have threads of their own, so that a long list never holds up a claim.
    """

    def __init__(self, engine: Engine, patience: float = _PATIENCE_SECONDS) -> None:
        self.engine = engine
        self._patience = patience
        self.dialect: Dialect = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"
        self._readers = DaemonThreads(_THREADS, "database-read")
        self._writers = DaemonThreads(_THREADS, "database-write")
        # SQLite has one writer at a time. Threads of this process queue here, fairly, rather
        # than in SQLite's busy handler, which sleeps and may starve one of them.
        self._sqlite_writer = threading.Lock() if self.dialect == "sqlite" else nullcontext()
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
            with self.reading() as connection:
                return work(connection, *args, **kwargs)

        return await self._within_patience(self._readers.submit(call), DatabaseUnavailable())

    async def write(
        self,
        work: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work(connection, …)` in a thread, in a transaction that is committed after it.

        Raises:
            DatabaseUnavailable: it cannot be reached; nothing was changed.
            CommitOutcomeUnknown: the connection broke during COMMIT, or no answer came.
        """

        def call() -> T:
            with self.writing() as connection:
                return work(connection, *args, **kwargs)

        return await self._within_patience(self._writers.submit(call), CommitOutcomeUnknown())

    async def _within_patience(self, answer: asyncio.Future[T], failure: DatabaseUnavailable) -> T:
        """Give up on a server that keeps the connection but does not answer.

        The call is left to itself: should the server come round, it may still be carried out.
        """
        await asyncio.wait([answer], timeout=self._patience)
        if not answer.done():
            answer.cancel()
            raise failure
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
    def reading(self) -> Iterator[Connection]:
        """Open a connection for SELECTs only."""
        options = {} if self.dialect == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        try:
            with self.engine.connect().execution_options(**options) as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise _unavailable(error, DatabaseUnavailable()) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction; it is committed at the end, or rolled back on any error."""
        failure: DatabaseUnavailable = DatabaseUnavailable()
        try:
            with (
                self._sqlite_writer,
                self.engine.connect().execution_options(immediate=True) as connection,
            ):
                yield connection
                failure = CommitOutcomeUnknown()
                connection.commit()
        except (DBAPIError, PoolTimeoutError) as error:
            raise _unavailable(error, failure) from error

    def close(self) -> None:
        """Wait a little for the calls under way, and disconnect."""
        self._readers.close(_CLOSE_SECONDS)
        self._writers.close(_CLOSE_SECONDS)
        self.engine.dispose()


def _round_trip(connection: Connection) -> float:
    begin = time.perf_counter()
    connection.execute(text("SELECT 1"))
    return time.perf_counter() - begin


def build_engine(url: URL, pool_size: int = 2 * _THREADS + 1) -> Engine:
    """Build an engine for PostgreSQL or SQLite; nothing is opened yet.

    Raises:
        ConfigurationError: SQLite's file lies on a network file system.
    """
    json = {"json_serializer": strict_json.dumps, "json_deserializer": strict_json.loads}
    if url.get_backend_name() == "sqlite":
        _refuse_network_file_system(url)
        engine = create_engine(url, pool_size=pool_size, max_overflow=0, **json)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        # A connection that the server has closed is noticed before it is used for anything.
        pool_pre_ping=True,
        connect_args=_postgresql_arguments(url),
        **json,
    )


def _postgresql_arguments(url: URL) -> dict[str, Any]:
    """Bound every wait: a server that vanished without a word is a failure within seconds.

    See libpq's "Connection Control Functions" and PostgreSQL's "Client Connection Defaults".
    """
    options = (
        "-c timezone=UTC -c default_transaction_isolation=read\\ committed "
        "-c statement_timeout=15s -c lock_timeout=10s "
        "-c idle_in_transaction_session_timeout=30s"
    )
    return {
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "application_name": "job-scheduler",
        # What the URL itself asks for comes last, and so wins.
        **url.query,
        "options": f"{options} {url.query.get('options', '')}".strip(),
    }


def _configure_sqlite(connection: Any, _record: object) -> None:
    # Without this, Python 3.11's driver begins transactions by itself, too late and deferred.
    connection.isolation_level = None
    # Another program may have written text that is not UTF-8: one bad row is not to hide the rest.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 10000")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor, patience: float = _WAL_SECONDS) -> None:
    """Of several that switch a new file at once SQLite refuses all but one, without waiting."""
    deadline = time.monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            threading.Event().wait(_WAL_PAUSE_SECONDS)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails with SQLITE_BUSY when another has
    # written in between; one that begins IMMEDIATE waits its turn instead.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _refuse_network_file_system(url: URL, mounts: Path = _MOUNTS) -> None:
    """SQLite's locks do not work on network file systems (sqlite.org, "How To Corrupt")."""
    if not mounts.exists():
        return
    file = Path(url.database or "").resolve()
    entries = (line.split() for line in mounts.read_text().splitlines())
    holding = [
        (len(Path(entry[1]).parts), entry[2]) for entry in entries if file.is_relative_to(entry[1])
    ]
    _, kind = max(holding, default=(0, ""))
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        raise ConfigurationError(
            f"Configuration error: DB_URL: {file} lies on a network file system ({kind}), where "
            "SQLite loses data. Choose a local path, or PostgreSQL."
        )


def _unavailable(error: DBAPIError | PoolTimeoutError, failure: DatabaseUnavailable) -> Exception:
    """Tell an outage (to be reported as `failure`) from a mistake of ours (raised as it is)."""
    if isinstance(error, PoolTimeoutError | InterfaceError) or error.connection_invalidated:
        return failure
    if getattr(error.orig, "pgcode", None) == _READ_ONLY_TRANSACTION:
        return failure
    # SQLite's general code stands for a wrong statement; its outages have codes of their own.
    mistake = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    if isinstance(error, OperationalError) and not mistake:
        _logger.debug("database unavailable", exc_info=error)
        return failure
    return error
