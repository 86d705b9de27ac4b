"""Wake-ups: a notification is found at once, a lost one costs a sweep, and the thread ends."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import CHANNEL
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.wakeups import Wakeups
from job_scheduler.database import build_engine
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, running, services_of
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


class Woken:
    """Counts wake-ups, which come on the loop."""

    def __init__(self) -> None:
        self.times = 0
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.times += 1
        self.thread = threading.current_thread()

    async def reaches(self, times: int, seconds: float = 10.0) -> None:
        """Wait until there have been so many."""
        for _ in range(int(seconds * 100)):
            if self.times >= times:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"woken {self.times} times, not {times}, within {seconds:g} s")


def listening(
    url: str,
    scenario: Callable[[Woken, Wakeups], Coroutine[Any, Any, None]],
    pause: float = 0.05,
) -> None:
    """Run a scenario beside a listener, which is ended after it."""

    async def run() -> None:
        woken = Woken()
        wakeups = Wakeups(build_engine(make_url(url), pool_size=1), woken, pause)
        wakeups.start()
        try:
            await woken.reaches(1)  # it listens
            await scenario(woken, wakeups)
        finally:
            wakeups.stop()
        assert listeners() == []

    asyncio.run(run())


def listeners() -> list[threading.Thread]:
    """The threads that listen."""
    return [thread for thread in threading.enumerate() if thread.name == "wakeups"]


async def notify(url: str, times: int = 1) -> None:
    """Notify, in a transaction for each time."""

    def send() -> None:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            for _ in range(times):
                connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
                connection.commit()

    await asyncio.to_thread(send)


@only_postgresql
def test_notification_wakes_on_the_loop_and_soon(store: Backend) -> None:
    async def scenario(woken: Woken, _: Wakeups) -> None:
        assert woken.thread is threading.current_thread()
        for times in (2, 3, 4):
            await asyncio.sleep(0.06)  # the one before is no longer gathered with
            assert woken.times == times - 1
            await notify(store.db_url)
            await woken.reaches(times)

    listening(store.db_url, scenario)


@only_postgresql
def test_many_notifications_are_few_wake_ups_and_the_last_one_counts(store: Backend) -> None:
    async def scenario(woken: Woken, _: Wakeups) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await notify(store.db_url, times=200)
        sent = woken.times
        await asyncio.sleep(0.2)
        # One at once, and one for each gathering of 50 ms.
        assert 1 < woken.times <= 3 + (loop.time() - begin) / 0.05
        assert woken.times <= sent + 5
        settled = woken.times
        await asyncio.sleep(0.2)
        assert woken.times == settled

    listening(store.db_url, scenario)


@only_postgresql
def test_rolled_back_and_foreign_notifications_wake_nobody(store: Backend) -> None:
    async def scenario(woken: Woken, _: Wakeups) -> None:
        await asyncio.sleep(0.06)
        engine = create_engine(store.db_url, poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
            connection.rollback()
            connection.exec_driver_sql("NOTIFY something_else")
            connection.commit()
        other = make_url(store.db_url).set(database="postgres")
        await notify(other.render_as_string(hide_password=False))
        await asyncio.sleep(0.2)
        assert woken.times == 1

    listening(store.db_url, scenario)


@only_postgresql
def test_lost_connection_is_opened_again_and_wakes(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy.before(store.db_url) as proxy:

        async def scenario(woken: Woken, _: Wakeups) -> None:
            await asyncio.to_thread(proxy.cut)
            await asyncio.sleep(0.3)  # it tries, and is refused
            assert woken.times == 1
            await asyncio.to_thread(proxy.heal)
            await woken.reaches(2)
            await asyncio.sleep(0.06)
            await notify(store.db_url)
            await woken.reaches(3)

        listening(proxy.url_for(store.db_url), scenario)
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


@only_postgresql
def test_pause_between_two_attempts_is_kept_and_ended_by_the_stop(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:
        url = proxy.url_for(store.db_url)

        async def scenario() -> None:
            woken, attempts = Woken(), []
            proxy.cut()
            engine = build_engine(make_url(url), pool_size=1)
            event.listen(engine, "do_connect", lambda *_: attempts.append(1))
            wakeups = Wakeups(engine, woken)
            wakeups.start()
            await asyncio.sleep(0.5)
            begin = asyncio.get_running_loop().time()
            wakeups.stop()
            assert asyncio.get_running_loop().time() - begin < 0.3
            assert (len(attempts), woken.times) == (1, 0)

        asyncio.run(scenario())
        assert listeners() == []


@only_postgresql
def test_connection_is_closed_by_the_stop(store: Backend) -> None:
    engine = build_engine(make_url(store.db_url), pool_size=1)

    def connections() -> int:
        [row] = store.sql(
            "SELECT count(*) AS number FROM pg_stat_activity "
            "WHERE datname = current_database() AND query = :query",
            query=f"LISTEN {CHANNEL}",
        )
        return int(row["number"])

    async def scenario() -> None:
        woken = Woken()
        wakeups = Wakeups(engine, woken)
        wakeups.start()
        await woken.reaches(1)
        assert await asyncio.to_thread(connections) == 1
        wakeups.stop()

    asyncio.run(scenario())
    wait_until(lambda: connections() == 0)


@only_postgresql
def test_stop_does_not_wait_for_a_server_that_does_not_answer(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:

        async def scenario() -> None:
            proxy.stall()
            url = proxy.url_for(store.db_url)
            wakeups = Wakeups(build_engine(make_url(url), pool_size=1), Woken())
            wakeups.start()
            await asyncio.sleep(0.1)
            begin = asyncio.get_running_loop().time()
            wakeups.stop()
            assert 0.4 < asyncio.get_running_loop().time() - begin < 2

        asyncio.run(scenario())
        # And the thread ends when it can.
        assert [thread.daemon for thread in listeners()] == [True]
        proxy.cut()
        wait_until(lambda: listeners() == [])


@only_postgresql
def test_service_sweeps_when_it_is_notified(store: Backend, registry: HandlerRegistry) -> None:
    with running(store, registry) as client:
        sweep = services_of(client).sweep
        wait_until(lambda: sweep.last_at)

        def sweeps_at_once() -> bool:
            # By itself it waits for half a second.
            before = sweep.last_at
            wait_until(lambda: sweep.last_at != before)
            latest = sweep.last_at
            asyncio.run(notify(store.db_url))
            wait_until(lambda: sweep.last_at != latest)
            assert sweep.last_at is not None
            assert latest is not None
            return (sweep.last_at - latest).total_seconds() < 0.3

        wait_until(sweeps_at_once, 20, "a sweep sooner than by itself")


def test_service_listens_on_postgresql_alone_and_until_it_stops(store: Backend) -> None:
    with running(store):
        assert len(listeners()) == (store.dialect == "postgresql")
    assert listeners() == []
