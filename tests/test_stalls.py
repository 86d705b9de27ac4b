"""A connection that swallows answers holds no thread and no place in the pool for ever.

The proxy keeps the old connections open, and TCP goes on acknowledging: no timeout of the kernel
or of the driver ends such a wait.
"""

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import make_url

from job_scheduler.calls import Call, Line, bounded
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import InstanceState
from job_scheduler.core import instances
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.database import PATIENCE_SECONDS, Database, build_engine
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable, StartError
from job_scheduler.identifiers import new_token
from job_scheduler.migrations.upgrade import prepare
from job_scheduler.process import own_identity
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, finished, later, post, running, services_of, task_body
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
pytestmark = only_postgresql

CALLS = 30


class BlackHole(Proxy):
    """A proxy whose old connections can be swallowed for ever, while new ones get through."""

    def swallow(self) -> None:
        """From now on forward nothing on the connections that there are."""
        self._in_loop(self._swallow())

    async def _swallow(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallowed = set(self._connections)

    async def _forward(self, source: Any, sink: Any) -> None:
        mine = self._flowing
        data = b"any"
        while data:
            data = await self._loop.sock_recv(source, 65536)
            if mine is not self._flowing and data:
                continue
            await self._flowing.wait()
            await self._loop.sock_sendall(sink, data)


@contextmanager
def behind(store: Backend, patience: float = 0.5) -> Iterator[tuple[BlackHole, Database]]:
    """A database behind a black hole, of short patience."""
    with BlackHole.before(store.db_url) as hole:
        url = Backend(hole.url_for(store.db_url)).settings().database
        database = Database(build_engine(url), patience)
        try:
            yield hole, database
        finally:
            database.close()


def one(connection: Connection) -> int:
    """Ask for something."""
    return int(connection.execute(text("SELECT 1")).scalar_one())


def in_use(database: Database) -> int:
    """How many places of the pool are taken."""
    return int(database.engine.pool.checkedout())  # type: ignore[attr-defined]


def test_patience_outlasts_what_the_server_allows_a_statement(store: Backend) -> None:
    with store.database() as database, database.reading() as connection:
        allowed = connection.execute(
            text("SELECT setting::int / 1000 FROM pg_settings WHERE name = 'statement_timeout'")
        ).scalar_one()
    assert allowed < PATIENCE_SECONDS < allowed + 5


@pytest.mark.parametrize("writes", [False, True])
def test_calls_into_a_black_hole_are_given_up_and_leave_nothing_behind(
    store: Backend, writes: bool
) -> None:
    together = threading.Barrier(4)

    def one_each(connection: Connection) -> int:
        together.wait(30)  # so that each thread has a connection of its own
        return one(connection)

    async def scenario(hole: BlackHole, database: Database) -> None:
        ask = database.write if writes else database.read
        assert set(await asyncio.gather(*(ask(one_each) for _ in range(4)))) == {1}
        threads = threading.active_count()
        hole.swallow()
        answers = await asyncio.gather(*(ask(one) for _ in range(CALLS)), return_exceptions=True)
        assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
        unknown = [answer for answer in answers if isinstance(answer, CommitOutcomeUnknown)]
        # Four had begun, and a few more may have as threads became free. Those whose turn had not
        # come did nothing, and are told so.
        assert 0 < len(unknown) < CALLS / 2 if writes else not unknown
        assert await ask(one) == 1
        assert set(await asyncio.gather(*(ask(one) for _ in range(CALLS)))) == {1}
        assert (in_use(database), threading.active_count()) == (0, threads)
        assert not database._under_way

    with behind(store) as (hole, database):
        asyncio.run(scenario(hole, database))


def fail() -> None:
    """Make a mistake."""
    raise ValueError


@pytest.mark.parametrize("at", ["statement", "commit", "rollback"])
def test_wait_in_mid_transaction_is_ended(store: Backend, at: str) -> None:
    ended: list[BaseException | None] = []

    def work(connection: Connection, hole: BlackHole) -> int:
        one(connection)
        hole.swallow()
        try:
            if at == "rollback":
                fail()
            return 1 if at == "commit" else one(connection)
        except Exception as error:
            ended.append(error)
            raise

    async def scenario(hole: BlackHole, database: Database) -> None:
        with pytest.raises(CommitOutcomeUnknown):
            await database.write(work, hole)
        await asyncio.to_thread(wait_until, lambda: not in_use(database))
        assert len(ended) == (at != "commit")
        assert await database.write(one) == 1

    with behind(store) as (hole, database):
        asyncio.run(scenario(hole, database))


def test_call_that_was_given_up_does_not_connect_anew(store: Backend) -> None:
    connected: list[Any] = []

    async def scenario(database: Database, hole: BlackHole) -> None:
        assert await database.read(one) == 1
        event.listen(database.engine, "do_connect", lambda *given: connected.append(given))
        hole.swallow()
        with pytest.raises(DatabaseUnavailable):
            await database.read(one)
        await asyncio.to_thread(wait_until, lambda: in_use(database) == 0)

    with behind(store) as (hole, database):
        asyncio.run(scenario(database, hole))
    assert connected == []


def test_call_is_cut_off_also_when_nobody_waits_for_it_any_more(store: Backend) -> None:
    async def scenario(hole: BlackHole, database: Database) -> None:
        await database.write(one)
        hole.swallow()
        waiting = asyncio.ensure_future(database.write(one))
        await asyncio.to_thread(wait_until, lambda: in_use(database))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(wait_until, lambda: not in_use(database))

    with behind(store) as (hole, database):
        asyncio.run(scenario(hole, database))


def test_close_cuts_off_what_never_ends(store: Backend) -> None:
    async def scenario(hole: BlackHole, database: Database) -> None:
        await database.write(one)
        hole.swallow()
        waiting = asyncio.ensure_future(database.write(one))
        await asyncio.to_thread(wait_until, lambda: in_use(database))
        await asyncio.to_thread(database.close)
        with pytest.raises(DatabaseUnavailable):
            async with asyncio.timeout(30):
                await waiting

    with behind(store, patience=60) as (hole, database):
        asyncio.run(scenario(hole, database))


def test_call_that_was_given_up_before_its_turn_is_not_begun(store: Backend) -> None:
    call = Call()
    assert not call.give_up()
    with pytest.raises(DatabaseUnavailable), store.database() as database:
        call.run(lambda: pytest.fail(f"it was begun on {database.dialect}"))


def test_closed_connection_gives_its_descriptor_back_at_once(store: Backend) -> None:
    engine = build_engine(store.settings().database)
    raw = engine.raw_connection()
    driver: Any = raw.driver_connection
    driver.close()
    assert driver._line._socket.fileno() == -1
    raw.invalidate()
    engine.dispose()


def test_call_that_was_given_up_goes_no_further_through_a_new_connection(store: Backend) -> None:
    call, given_up = Call(), threading.Event()

    def work() -> int:
        call.give_up()
        given_up.set()
        with store.database() as database, database.writing() as connection:
            return one(connection)

    with pytest.raises(DatabaseUnavailable):
        call.run(work)
    assert given_up.is_set()


def test_line_that_serves_another_call_is_not_cut_off(store: Backend) -> None:
    former, present = Call(), Call()
    with store.database() as database, database.reading() as connection:
        assert former.run(lambda: one(connection)) == 1
        assert present.run(lambda: one(connection)) == 1
        assert former.give_up()
        assert one(connection) == 1


def test_call_ends_in_time_or_is_not_hurt(store: Backend) -> None:
    threads = threading.active_count()
    with store.database() as database:
        with database.writing(60) as connection:
            assert one(connection) == 1
        with database.reading(60) as connection:
            assert one(connection) == 1
        with bounded(None):
            pass
    assert threading.active_count() == threads


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_block_without_a_thread_of_the_database_is_bounded_too(store: Backend, way: str) -> None:
    with behind(store) as (hole, database):
        with getattr(database, way)() as connection:
            one(connection)
        hole.swallow()
        with pytest.raises(DatabaseUnavailable), getattr(database, way)(0.3) as connection:
            one(connection)
        with getattr(database, way)() as connection:
            assert one(connection) == 1
        assert in_use(database) == 0


def test_server_that_accepts_and_never_greets_is_given_up(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:
        proxy.stall()
        url = make_url(proxy.url_for(store.db_url))
        database = Database(build_engine(url, connect_seconds=2))
        with pytest.raises(DatabaseUnavailable), database.reading():
            pass
        proxy.heal()
        with database.reading() as connection:
            assert one(connection) == 1
        database.close()


def test_connections_leave_no_descriptor_behind(store: Backend) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with store.database() as database, database.reading() as connection:
        one(connection)
    before = descriptors()
    for _ in range(5):
        with store.database() as database, database.reading() as connection:
            one(connection)
    assert descriptors() == before
    driver = build_engine(store.settings().database).raw_connection().driver_connection
    del driver
    gc.collect()
    assert descriptors() <= before + 1


def test_line_that_is_closed_is_cut_off_without_harm(store: Backend) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    engine = build_engine(store.settings().database)
    raw = engine.raw_connection()
    line = Line(raw.driver_connection.fileno())  # type: ignore[union-attr]
    call = Call()
    call.run(line.use)
    line.close()
    assert call.give_up()
    raw.close()
    engine.dispose()
    os.close(reader)


# -------------------------------------------------------------------------- the start


@pytest.mark.parametrize("migrate", [False, True])
def test_start_gives_a_database_up_that_does_not_answer(store: Backend, migrate: bool) -> None:
    with behind(store) as (hole, database):
        with database.reading() as connection:
            assert one(connection) == 1
        hole.swallow()  # the connection in the pool is the one that will be used
        settings = Backend(hole.url_for(store.db_url)).settings(
            database_wait=0, auto_migrate=migrate
        )
        with pytest.raises(StartError, match="cannot be reached"):
            asyncio.run(asyncio.wait_for(prepare(database, settings), 60))


# ------------------------------------------------------------------ heart and service


def test_heart_beats_on_through_a_new_connection_before_its_lease_is_over(store: Backend) -> None:
    member = Member(new_token(), own_identity())
    lease = 3.0
    with store.database() as database, database.writing() as connection:
        instances.register(connection, member, InstanceState.Alive)
    with BlackHole.before(store.db_url) as hole:
        url = make_url(hole.url_for(store.db_url))
        heartbeat = Heartbeat(
            Database(build_engine(url, pool_size=1)), member, lease, new_token, lambda: None
        )
        heartbeat.beat()
        heartbeat.start()
        hole.swallow()

        def beats() -> int:
            rows = store.sql("SELECT heartbeat_seq AS n FROM instances")
            return int(rows[0]["n"])

        before = beats()
        wait_until(lambda: beats() > before + 1)
        heartbeat.stop()
    assert store.sql("SELECT state FROM instances") == [{"state": "dead"}]  # it took its leave


def test_stalled_heartbeat_is_given_up_within_a_third_of_the_lease(store: Backend) -> None:
    member = Member(new_token(), own_identity())
    with BlackHole.before(store.db_url) as hole:
        url = make_url(hole.url_for(store.db_url))
        database = Database(build_engine(url, pool_size=1))
        with database.writing() as connection:
            instances.register(connection, member, InstanceState.Alive)
        heartbeat = Heartbeat(database, member, 1.5, new_token, lambda: None)
        heartbeat.beat()
        hole.swallow()
        with pytest.raises(DatabaseUnavailable):
            heartbeat.beat()
        assert 0.5 <= heartbeat.silent_for() < 15
        heartbeat.beat()
        database.close()


def test_service_works_again_by_itself_after_its_connections_were_swallowed(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []
    registry.task("note")(lambda label: calls.append(label))
    with BlackHole.before(store.db_url) as hole:
        through = Backend(hole.url_for(store.db_url))
        with running(through, registry, threads=2) as client:
            services = services_of(client)
            services.database._patience = 1.0
            first = post(client, name="note", run_at=later(0), payload={"label": "before"})
            finished(client, first["task_id"])
            hole.swallow()
            body = task_body(
                task_id=new_token(), name="note", run_at=later(0), payload={"label": "after"}
            )
            # Some find a connection that is swallowed; the service is not restarted.
            wait_until(lambda: client.post("/tasks", json=body).status_code == 201, 30)
            assert finished(client, body["task_id"])["status"] == "done"
            wait_until(lambda: client.get("/health").status_code == 200, 15)
            instance_id = client.get("/health").json()["instance_id"]
            rows = store.sql("SELECT CAST(instance_id AS text) AS id, state FROM instances")
            assert rows == [{"id": instance_id, "state": "alive"}]
    assert calls == ["before", "after"]
