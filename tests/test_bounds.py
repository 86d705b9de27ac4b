"""What must end, ends; what other programs wrote hides nothing; what was only announced fails."""

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.core import store as statements
from job_scheduler.core.dispatcher import QUEUE_MAX, Dispatcher
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.lanes import Lane
from job_scheduler.core.places import Place
from job_scheduler.core.store import DueTask
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable
from job_scheduler.threads import DaemonThreads
from tests.conftest import POSTGRESQL, SQLITE
from tests.support.app import (
    Backend,
    finished,
    later,
    parse_time,
    post,
    running,
    service_process,
    services_of,
)
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
only_sqlite = pytest.mark.parametrize("db_url", [SQLITE], indirect=True)


@only_postgresql
def test_server_that_does_not_answer_is_given_up(store: Backend) -> None:
    async def scenario(database: Database, proxy: Proxy) -> None:
        assert await database.read(statements.due_tasks, timedelta(), 1) == []
        proxy.stall()
        with pytest.raises(DatabaseUnavailable):
            await database.read(statements.due_tasks, timedelta(), 1)
        with pytest.raises(CommitOutcomeUnknown):
            await database.write(statements.due_tasks, timedelta(), 1)
        proxy.heal()

    with Proxy.before(store.db_url) as proxy:
        behind = Backend(proxy.url_for(store.db_url))
        database = Database(build_engine(behind.settings().database), patience=0.3)
        asyncio.run(scenario(database, proxy))
        proxy.cut()
        database.close()


@only_postgresql
@pytest.mark.parametrize(
    ("lease", "said"), [("2", "the database is away"), ("20", "the database does not answer")]
)
def test_service_stops_though_the_database_does_not_answer(
    store: Backend, tmp_path: Path, lease: str, said: str
) -> None:
    with Proxy.before(store.db_url) as proxy:
        behind = Backend(proxy.url_for(store.db_url))
        environment = behind.environment() | {"LEASE_SECONDS": lease}
        with service_process(tmp_path, environment) as service:
            service.start().close()
            # The heartbeat has its connection by then: it hangs, where a new one would time out.
            beaten = "SELECT 1 FROM instances WHERE heartbeat_seq > 0"
            wait_until(lambda: store.sql(beaten), 10, "a heartbeat")
            proxy.stall()
            service.stop()
            assert f"{said}: the others will find this instance gone" in service.output()


def test_request_that_stays_open_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with service_process(tmp_path, {}) as service:
        service.start().close()
        address = urlsplit(service.url)
        with socket.create_connection((str(address.hostname), int(address.port or 0))) as client:
            client.sendall(
                b"POST /tasks HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
                b'Content-Length: 100\r\n\r\n{"na'
            )
            service.stop()
        assert "Application shutdown complete" in service.output()


async def _nothing(**_: Any) -> None:
    """Do nothing, at once."""


def _wrapped(**payload: Any) -> Coroutine[Any, Any, None]:
    return functools.partial(_nothing)(**payload)


def _generator(**_: Any) -> Iterator[int]:
    yield 1


async def _async_generator(**_: Any) -> AsyncIterator[int]:
    yield 1


async def _twice(**_: Any) -> object:
    return _nothing()


@only_sqlite
@pytest.mark.parametrize("handler", [_wrapped, _generator, _async_generator, _twice])
def test_handler_that_only_announces_its_work_has_failed(
    store: Backend, registry: HandlerRegistry, handler: Callable[..., Any]
) -> None:
    registry.task("announce")(handler)
    with running(store, registry) as client:
        ended = finished(client, post(client, name="announce", run_at=later(0))["task_id"])
    assert ended["status"] == "failed"
    assert "instead of doing its work" in ended["result"]


DEEP = '{"a":' * 600 + "1" + "}" * 600
LONG = '{"a":' + "9" * 5000 + "}"


@pytest.mark.parametrize("payload", [DEEP, LONG, r'{"a":"\ud800"}'])
def test_payload_that_another_program_stored_hides_no_other_task(
    store: Backend, payload: str
) -> None:
    with running(store) as client:
        odd = store.insert_task(name="odd", run_at=later(0), payload=payload)
        other = store.insert_task(name="other", run_at=later(0))
        assert finished(client, odd)["status"] == "done"
        assert finished(client, other)["status"] == "done"
        assert len(client.get("/tasks").json()) == 2


@only_sqlite
def test_name_that_is_not_utf_8_hides_no_other_task(store: Backend) -> None:
    store.sql(
        "INSERT INTO scheduled_tasks (name, run_at) VALUES (CAST(x'ff41' AS TEXT), :run_at)",
        run_at=later(0),
    )
    with running(store) as client:
        other = store.insert_task(name="other", run_at=later(0))
        assert finished(client, other)["status"] == "done"
        assert {task["name"] for task in client.get("/tasks").json()} == {"\ufffdA", "other"}


def test_due_queue_is_bounded() -> None:
    async def never(_task: DueTask, _place: Place) -> None:
        raise AssertionError("there is no capacity")

    async def scenario() -> int:
        full = Lane(capacity=0)
        dispatcher = Dispatcher(never, lambda _: full, 1, on_room=lambda: None)
        due = parse_time("2027-07-01T10:00:00Z")
        dispatcher.offer(DueTask(due, str(number), "x") for number in range(QUEUE_MAX + 5))
        return dispatcher.queued

    assert asyncio.run(scenario()) == QUEUE_MAX


def test_full_memory_is_no_outage(store: Backend) -> None:
    with running(store) as client:
        services = services_of(client)
        due = parse_time(client.get("/health").json()["time"])
        before = services.sweep.last_at
        full = Lane(0)
        for number in range(QUEUE_MAX):
            full.put(DueTask(due, str(number), "x"))
        services.dispatcher._lanes.append(full)
        assert client.portal is not None
        assert client.portal.call(services.sweep.sweep) == 0
        assert services.sweep.last_at != before
        assert client.get("/health").status_code == 200


def test_exception_reaches_whoever_waits_for_the_thread() -> None:
    def fail() -> None:
        raise KeyError("x")

    async def scenario() -> None:
        threads = DaemonThreads(1, "probe")
        with pytest.raises(KeyError):
            await threads.submit(fail)
        threads.close(5)

    asyncio.run(scenario())
