"""The database: transactions, outages told from mistakes, and settings of the connections."""

import asyncio
import socket
import sqlite3
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Integer, Text, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from job_scheduler.calls import Call, Line
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.clock import SystemClock
from job_scheduler.core.columns import UtcDateTime
from job_scheduler.core.given import batched
from job_scheduler.core.store import tasks
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import ConfigurationError, DatabaseUnavailable
from job_scheduler.identifiers import new_task_id, new_token, parse_uuid
from job_scheduler.sqlite import refuse_network_file_system, switch_to_wal
from tests.conftest import POSTGRESQL, SQLITE
from tests.support.app import Backend, statements
from tests.support.services import find_free_port, wait_until

only_sqlite = pytest.mark.parametrize("db_url", [SQLITE], indirect=True)
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def scalar(connection: Connection, statement: str) -> Any:
    """The one value that a statement returns."""
    return connection.execute(text(statement)).scalar_one()


# ------------------------------------------------------------------- transactions


def test_write_commits_and_an_error_rolls_all_of_it_back(store: Backend) -> None:
    def add(connection: Connection, name: str, *, fail: bool = False) -> str:
        values = {"name": name, "run_at": datetime(2027, 7, 1, tzinfo=UTC)}
        connection.execute(insert(tasks).values(values))
        if fail:
            raise ValueError("changed my mind")
        return name

    async def scenario(database: Database) -> None:
        assert await database.write(add, "first") == "first"
        with pytest.raises(ValueError, match="changed my mind"):
            await database.write(add, "second", fail=True)
        names = await database.read(
            lambda connection: list(connection.scalars(select(tasks.c.name)))
        )
        assert names == ["first"]

    with store.database() as database:
        asyncio.run(scenario(database))
    assert store.count() == 1


def test_mistakes_are_raised_as_they_are(store: Backend) -> None:
    with store.database() as database:
        with pytest.raises((ProgrammingError, OperationalError)), database.reading() as connection:
            scalar(connection, "SELECT 1 FROM no_such_table")
        with pytest.raises(DBAPIError), database.writing() as connection:
            scalar(connection, "SELECT FROM WHERE")
        with pytest.raises(IntegrityError), database.writing() as connection:
            scalar(connection, "INSERT INTO scheduled_tasks (name) VALUES ('x') RETURNING 1")
        with database.reading() as connection:
            assert scalar(connection, "SELECT 1") == 1


def test_full_pool_is_an_outage(store: Backend) -> None:
    with store.database() as full:
        url = full.engine.url
        engine = build_engine(url, pool_size=1)
        engine.pool._timeout = 0.05  # type: ignore[attr-defined]  # the pool's own is 5 s and more
        database = Database(engine)
        with (
            database.reading(),
            pytest.raises(DatabaseUnavailable),
            database.reading(),
        ):
            pass
        database.close()


def test_many_writers_at_once_all_succeed(store: Backend) -> None:
    number = 60

    def count_up(connection: Connection) -> None:
        attempt = scalar(connection, "SELECT max(attempt) FROM scheduled_tasks")
        connection.execute(update(tasks).values(attempt=attempt + 1))

    def serialized(connection: Connection) -> None:
        if store.dialect == "postgresql":
            connection.execute(text("LOCK TABLE scheduled_tasks IN EXCLUSIVE MODE"))
        count_up(connection)

    async def scenario() -> None:
        with store.database() as one, store.database() as other:
            writes = [
                database.write(serialized) for database in (one, other) for _ in range(number)
            ]
            await asyncio.gather(*writes)

    task_id = store.insert_task()
    asyncio.run(scenario())
    assert store.row(task_id)["attempt"] == 2 * number


@only_sqlite
def test_reads_go_on_while_a_write_is_under_way(store: Backend) -> None:
    async def scenario(database: Database) -> None:
        release, writing = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
            connection.execute(text("DELETE FROM scheduled_tasks"))
            writing.set()
            assert release.wait(30)

        write = asyncio.ensure_future(database.write(slow))
        await asyncio.to_thread(writing.wait, 10)
        for _ in range(20):
            assert await database.read(scalar, "SELECT count(*) FROM scheduled_tasks") == 1
        release.set()
        await write
        assert await database.read(scalar, "SELECT count(*) FROM scheduled_tasks") == 0

    store.insert_task()
    with store.database() as database:
        asyncio.run(scenario(database))


# ----------------------------------------------------------------------- outages


def test_ping_tells_how_long_an_answer_takes(store: Backend) -> None:
    async def scenario(database: Database) -> None:
        with statements(database.engine) as executed:
            answers = await asyncio.gather(*(database.ping(5) for _ in range(50)))
        assert all(0 < answer < 5 for answer in answers)
        assert sum("SELECT 1" in statement for statement in executed) == 1
        assert 0 < await database.ping(5) < 5

    with store.database() as database:
        asyncio.run(scenario(database))


@only_postgresql
def test_ping_of_a_hung_database_ends_and_asks_it_once(store: Backend) -> None:
    async def scenario(database: Database, proxy: Proxy) -> None:
        assert await database.ping(5) < 5
        proxy.stall()
        with statements(database.engine) as executed:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await database.ping(0.05)
            proxy.heal()
            assert await database.ping(10) < 10
        assert len(executed) == 1

    with (
        Proxy.before(store.db_url) as proxy,
        Backend(proxy.url_for(store.db_url)).database() as database,
    ):
        asyncio.run(scenario(database, proxy))


@only_postgresql
def test_database_that_is_cut_off_is_unavailable_and_comes_back(store: Backend) -> None:
    with (
        Proxy.before(store.db_url) as proxy,
        Backend(proxy.url_for(store.db_url)).database() as database,
    ):
        with database.reading() as connection:
            assert scalar(connection, "SELECT 1") == 1
        proxy.cut()
        with pytest.raises(DatabaseUnavailable), database.reading() as connection:
            scalar(connection, "SELECT 1")
        with pytest.raises(DatabaseUnavailable), database.writing() as connection:
            scalar(connection, "SELECT 1")
        proxy.heal()
        with database.writing() as connection:
            assert scalar(connection, "SELECT 1") == 1


@only_postgresql
@pytest.mark.parametrize("way", ["read", "read_at_once", "write"])
def test_connection_that_the_server_has_closed_is_replaced_unnoticed(
    store: Backend, way: str
) -> None:
    async def scenario(database: Database) -> None:
        do = getattr(database, way)
        pid = await do(scalar, "SELECT pg_backend_pid()")
        store.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        assert await do(scalar, "SELECT pg_backend_pid()") != pid

    with store.database() as database:
        asyncio.run(scenario(database))


def change(database: Database, *statements_: str) -> None:
    """Run statements in a transaction."""
    with database.writing() as connection:
        for statement in statements_:
            connection.exec_driver_sql(statement)


@only_postgresql
def test_connection_that_is_lost_after_the_answer_costs_neither_it_nor_a_place_in_the_pool(
    store: Backend,
) -> None:
    def answer_and_cut(connection: Connection, proxy: Proxy) -> int:
        answer = int(scalar(connection, "SELECT 1"))
        proxy.cut()
        return answer

    async def scenario(database: Database, proxy: Proxy) -> None:
        for _ in range(5):  # more than the pool has places
            assert await database.read(answer_and_cut, proxy) == 1
            proxy.heal()
            assert await database.read(scalar, "SELECT 2") == 2

    with (
        Proxy.before(store.db_url) as proxy,
        Backend(proxy.url_for(store.db_url)).database() as database,
    ):
        asyncio.run(scenario(database, proxy))


@only_postgresql
def test_read_only_server_is_an_outage(store: Backend) -> None:
    with store.database() as database, pytest.raises(DatabaseUnavailable):
        change(database, "SET TRANSACTION READ ONLY", "DELETE FROM scheduled_tasks")


def test_server_that_is_not_there_is_an_outage() -> None:
    database = Database(
        build_engine(make_url(f"postgresql+psycopg2://x@127.0.0.1:{find_free_port()}/x"))
    )
    with pytest.raises(DatabaseUnavailable), database.reading():
        pass
    database.close()


@only_sqlite
def test_sqlite_file_that_cannot_be_opened_or_written_is_an_outage(
    store: Backend, tmp_path: Path
) -> None:
    missing = Backend(f"sqlite:///{tmp_path}/no/such/directory/tasks.db")
    with missing.database() as database, pytest.raises(DatabaseUnavailable):
        change(database, "SELECT 1")
    with store.database() as database, pytest.raises(DatabaseUnavailable):
        change(database, "PRAGMA query_only = ON", "DELETE FROM scheduled_tasks")


# --------------------------------------------------------------------- connections


@only_postgresql
def test_every_wait_for_postgresql_is_bounded(store: Backend) -> None:
    expected = {
        "statement_timeout": "15s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "5s",
        "default_transaction_isolation": "read committed",
        "TimeZone": "UTC",
        "application_name": "job-scheduler",
    }
    with store.database() as database, database.reading() as connection:
        found = {name: scalar(connection, f"SHOW {name}") for name in expected}
    assert found == expected


def test_line_that_is_dropped_while_another_is_used_holds_nobody_up() -> None:
    with socket.socket() as here, socket.socket() as there:
        line, dropped = Line(here.fileno()), Line(there.fileno())
        call = Call()
        # As for a connection that is dropped unclosed: garbage is collected anywhere.
        weakref.finalize(call, dropped.close)
        call.run(line.use)
        del call
        using = threading.Thread(target=line.use, daemon=True)
        using.start()
        using.join(10)
        assert not using.is_alive()
        line.close()


@only_postgresql
def test_statement_for_batches_is_planned_once_for_each_connection(store: Backend) -> None:
    statement = batched(
        "postgresql",
        "SELECT :first || '%' AS text, CAST(:second AS integer) + length(:first) AS number",
        {"text": Text(), "number": Integer()},
    )
    plans = text("SELECT name, statement FROM pg_prepared_statements")
    with store.database() as database:
        for _ in range(2):
            with database.reading() as connection:
                for word, number in (("a", 1), ("b'c", 2)):
                    given = {"first": word, "second": number}
                    found = connection.execute(statement, given).one()
                    assert found == (f"{word}%", number + len(word))
                (plan,) = connection.execute(plans)
                assert "$1 || '%' AS text, CAST($2 AS integer) + length($1)" in plan.statement
        with database.reading() as connection, pytest.raises(DBAPIError, match="integer"):
            connection.execute(statement, {"first": "a", "second": "x"})
        with database.reading() as first, database.reading() as second:
            for connection in (first, second):
                connection.execute(statement, {"first": "a", "second": 1})
                assert len(connection.execute(plans).all()) == 1


@only_postgresql
def test_statement_that_cannot_be_prepared_is_a_mistake_and_the_next_one_is_not(
    store: Backend,
) -> None:
    wrong = batched("postgresql", "SELECT :one AS number FROM no_such_table", {"number": Integer()})
    right = batched("postgresql", "SELECT CAST(:one AS integer) AS number", {"number": Integer()})
    with store.database() as database:
        for _ in range(2):
            with pytest.raises(ProgrammingError), database.reading() as connection:
                connection.execute(wrong, {"one": 1})
            with database.reading() as connection:
                assert connection.execute(right, {"one": 1}).scalar_one() == 1


@only_postgresql
def test_options_of_the_url_win(store: Backend) -> None:
    url = make_url(store.db_url).update_query_dict(
        {"application_name": "mine", "options": "-c statement_timeout=7s"}
    )
    mine = Backend(url.render_as_string(hide_password=False))
    with mine.database() as database, database.reading() as connection:
        assert scalar(connection, "SHOW application_name") == "mine"
        assert scalar(connection, "SHOW statement_timeout") == "7s"
        assert scalar(connection, "SHOW lock_timeout") == "10s"


@only_sqlite
def test_sqlite_is_set_up_to_lose_nothing(store: Backend) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with store.database() as database, database.reading() as connection:
        found = {name: scalar(connection, f"PRAGMA {name}") for name in expected}
    assert found == expected


class CountingCursor(sqlite3.Cursor):
    """Counts what is executed."""

    executed = 0

    def execute(self, *arguments: Any) -> "CountingCursor":
        """Count, and execute."""
        self.executed += 1
        super().execute(*arguments)
        return self


def test_new_sqlite_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    other, mine = (sqlite3.connect(file, timeout=0, check_same_thread=False) for _ in range(2))
    other.execute("BEGIN EXCLUSIVE")
    cursor = mine.cursor(CountingCursor)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        switch_to_wal(cursor, patience=0)
    switching = threading.Thread(target=switch_to_wal, args=[cursor, 30])
    switching.start()
    wait_until(lambda: cursor.executed >= 3)
    other.rollback()
    switching.join()
    assert mine.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    mine.close()


@only_sqlite
def test_writes_to_sqlite_take_their_turn_from_the_beginning(store: Backend) -> None:
    with store.database() as database:
        with statements(database.engine) as executed, database.writing() as connection:
            scalar(connection, "SELECT 1")
        assert executed == ["BEGIN IMMEDIATE", "SELECT 1"]
        with statements(database.engine) as executed, database.reading() as connection:
            scalar(connection, "SELECT 1")
        assert executed == ["BEGIN", "SELECT 1"]


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/root / ext4 rw 0 0\nserver:/data {tmp_path} {kind} rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
    )
    url = make_url(f"sqlite:///{tmp_path}/tasks.db")
    with pytest.raises(ConfigurationError, match=rf"DB_URL: .* network file system \({kind}\)"):
        refuse_network_file_system(url, mounts)
    refuse_network_file_system(make_url("sqlite:////elsewhere/tasks.db"), mounts)
    refuse_network_file_system(url, tmp_path / "no such file")


def test_local_mount_inside_a_network_file_system_is_taken(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/ / nfs4 rw 0 0\n/dev/sda {tmp_path} ext4 rw 0 0\n")
    refuse_network_file_system(make_url(f"sqlite:///{tmp_path}/tasks.db"), mounts)


# --------------------------------------------------------------- values and identifiers


def test_times_are_kept_in_utc_to_the_microsecond(store: Backend) -> None:
    given = datetime(2027, 7, 1, 12, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2, minutes=30)))
    with store.database() as database:
        with database.writing() as connection:
            connection.execute(insert(tasks).values(name="probe", run_at=given))
        with database.reading() as connection:
            row = connection.execute(select(tasks)).one()
    assert row.run_at == given
    assert row.run_at.tzinfo is UTC
    assert row.finished_at is None
    assert UtcDateTime().process_bind_param(None, database.engine.dialect) is None


def test_system_clock_is_aware_and_in_utc() -> None:
    before = datetime.now(UTC)  # noqa: TID251 (what the clock is compared with)
    now = SystemClock().now()
    assert now.tzinfo is UTC
    assert timedelta(0) <= now - before < timedelta(seconds=30)


def test_task_ids_are_made_in_the_order_of_their_milliseconds() -> None:
    begin = datetime(2027, 7, 1, tzinfo=UTC)
    instants = [begin + timedelta(milliseconds=number) for number in range(100)]
    ids = [UUID(new_task_id(instant)) for instant in instants]
    assert ids == sorted(ids)
    for uuid, instant in zip(ids, instants, strict=True):
        assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
        assert uuid.int >> 80 == int(instant.timestamp() * 1000)
    assert len({uuid.int & (1 << 62) - 1 for uuid in ids}) == 100


def test_tokens_are_random() -> None:
    tokens = {UUID(new_token()) for _ in range(100)}
    assert len(tokens) == 100
    assert {token.version for token in tokens} == {4}


CANONICAL = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (CANONICAL, CANONICAL),
        (CANONICAL.upper(), CANONICAL),
        (CANONICAL.replace("-", ""), None),
        (f"{{{CANONICAL}}}", None),
        (f"urn:uuid:{CANONICAL}", None),
        (f" {CANONICAL}", None),
        (CANONICAL[:-1], None),
        ("no uuid", None),
        ("", None),
    ],
)
def test_uuids_are_read_as_they_are_written_by_everyone(written: str, read: str | None) -> None:
    assert parse_uuid(written) == read


def test_calls_under_way_end_before_the_database_is_closed(store: Backend) -> None:
    ended: list[str] = []
    begun = threading.Event()

    def slow(_connection: Connection) -> None:
        begun.set()
        threading.Event().wait(0.2)
        ended.append("write")

    async def scenario(work: Callable[[Connection], None]) -> None:
        database = Database(build_engine(store.settings().database))
        write = asyncio.ensure_future(database.write(work))
        await asyncio.to_thread(begun.wait, 10)
        await asyncio.to_thread(database.close)
        assert ended == ["write"]
        await write

    asyncio.run(scenario(slow))
