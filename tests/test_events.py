"""GET /events: what changes, from all instances, in order, and after a break."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from sqlalchemy.engine import make_url

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.core import events
from job_scheduler.core.events import EventRow, Place
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.watching import STREAMS_MAX, Watching
from job_scheduler.database import Database
from job_scheduler.exceptions import Overloaded
from job_scheduler.main import create_app
from tests.conftest import POSTGRESQL, SQLITE
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    service_process,
)
from tests.support.services import wait_until

FUTURE = "2031-07-01T12:00:00Z"
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


class Stream:
    """A stream of events, read in a thread of its own."""

    def __init__(self, url: str, query: str = "", **headers: str) -> None:
        self.headers: httpx.Headers | None = None
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self.ended = threading.Event()
        self._url = f"{url}/events{query}"
        self._sent = headers
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with (
                httpx.Client(timeout=60) as client,
                client.stream("GET", self._url, headers=self._sent) as response,
            ):
                assert response.status_code == 200
                self.headers = response.headers
                event: dict[str, str] = {}
                for line in response.iter_lines():
                    name, _, value = line.partition(": ")
                    if name:
                        event[name] = value
                    elif "data" in event:
                        data = json.loads(event["data"])
                        self.got.append((event["id"], event.get("event", "message"), data))
                        event = {}
        except httpx.HTTPError:
            pass
        finally:
            self.ended.set()

    def opened(self) -> dict[str, Any]:
        """What its first event says."""
        wait_until(lambda: self.got or self.ended.is_set())
        _, event, data = self.got[0]
        assert event == "open"
        return data

    def told(self) -> list[dict[str, Any]]:
        """The changes so far."""
        return [data for _, event, data in self.got if event == "message"]

    def changes(self, task_id: str) -> list[tuple[str | None, str | None]]:
        """What has become of a task."""
        return [
            (data["former"], data["status"]) for data in self.told() if data["task_id"] == task_id
        ]


@contextmanager
def served(store: Backend, registry: HandlerRegistry | None = None) -> Iterator[httpx.Client]:
    """The service in this process, behind a real server: a stream of its test client has no end."""
    app = create_app(store.settings(), registry=registry or HandlerRegistry())
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=0)
    )
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        serving.join(30)


def address(client: httpx.Client) -> str:
    """Where a service is."""
    return str(client.base_url).rstrip("/")


def visible(database: Database, number: int) -> Sequence[EventRow]:
    """So many changes, once no older transaction of the database is under way."""

    def look() -> Sequence[EventRow]:
        with database.reading() as connection:
            rows = events.changes_after(connection, Place(0, 0), 10)
        return rows if len(rows) >= number else []

    return wait_until(look)


def stop_noting(store: Backend) -> None:
    """Let the time pass until which changes are noted."""
    store.sql("UPDATE event_watch SET until = :at", at=later(-1))


def forget(store: Backend) -> None:
    """Let the time pass for which what was noted is kept."""
    long_ago = later(-events.KEPT.total_seconds() - 1)
    store.sql("UPDATE task_events SET at = :at", at=long_ago)
    with store.database() as database, database.writing() as connection:
        events.forget_changes(connection, at_once=100_000)


# ------------------------------------------------------------------------ what is told


def test_life_of_a_task_is_told_step_by_step(backend: Backend) -> None:
    with served(backend) as client:
        stream = Stream(address(client))
        assert stream.opened() == {"complete": True}
        assert stream.headers is not None
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        task = post(client, name="send_report", run_at=later(0.5))
        task_id = task["task_id"]
        wait_until(lambda: len(stream.changes(task_id)) == 3)
        assert stream.changes(task_id) == [
            (None, "scheduled"),
            ("scheduled", "running"),
            ("running", "done"),
        ]
        places = [Place.parse(event_id) or Place(0, 0) for event_id, *_ in stream.got]
        assert places == sorted(places)
        created = stream.told()[0]
        assert created == {
            "task_id": task_id,
            "name": "send_report",
            "status": "scheduled",
            "former": None,
            "attempt": 0,
            "at": created["at"],
        }
        assert created["at"][:16] >= task["created_at"][:16]
        assert created["at"].endswith("Z")


def test_changes_by_anybody_are_told(backend: Backend) -> None:
    with served(backend) as client:
        stream = Stream(address(client))
        stream.opened()
        task_id = backend.insert_task(run_at=later(3600))
        client.post(f"/tasks/{task_id}/pause")
        client.patch(f"/tasks/{task_id}", json={"priority": 1})  # is no change of its state
        client.post(f"/tasks/{task_id}/resume")
        client.delete(f"/tasks/{task_id}")
        other = backend.insert_task(run_at=later(3600))
        client.post(f"/tasks/{other}/cancel")
        wait_until(lambda: len(stream.changes(other)) == 2)
        assert stream.changes(task_id) == [
            (None, "scheduled"),
            ("scheduled", "paused"),
            ("paused", "scheduled"),
            ("scheduled", None),
        ]
        assert stream.changes(other) == [(None, "scheduled"), ("scheduled", "cancelled")]


def test_changes_of_all_instances_are_told(backend: Backend, tmp_path: Path) -> None:
    with (
        service_process(tmp_path, backend.environment()) as service,
        service.start() as other,
        served(backend) as client,
    ):
        stream = Stream(address(client))
        stream.opened()
        ids = [post(each, run_at=later(0.5))["task_id"] for each in (client, other) for _ in "ab"]
        wait_until(lambda: all(len(stream.changes(task_id)) == 3 for task_id in ids))


def test_filters_narrow_it_down(store: Backend) -> None:
    queries = {
        "?name=other&name=odd": 3,
        "?status=done": 2,
        "?status=done&name=other": 1,
        "?tag=a": 3,
        "?tag=a&tag=b": 0,
        "?key=k": 3,
        "": 6,
    }
    with served(store) as client:
        streams = {query: Stream(address(client), query) for query in queries}
        for stream in streams.values():
            stream.opened()
        probe = post(client, run_at=later(-1), tags=["a"], concurrency_key="k")["task_id"]
        finished(client, probe)
        finished(client, post(client, name="other", run_at=later(-1))["task_id"])
        wait_until(lambda: len(streams[""].told()) == 6)
        wait_until(lambda: all(len(streams[each].told()) >= queries[each] for each in queries))
        assert {query: len(stream.told()) for query, stream in streams.items()} == queries


def test_one_task_can_be_watched(store: Backend) -> None:
    task_id = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
    with served(store) as client:
        stream = Stream(address(client), f"?task_id={task_id.upper()}")
        stream.opened()
        finished(client, post(client, run_at=later(0))["task_id"])
        post(client, run_at=later(0), task_id=task_id)
        wait_until(lambda: len(stream.changes(task_id)) == 3)
        assert len(stream.told()) == 3


def test_many_changes_come_page_by_page(store: Backend) -> None:
    with served(store) as client:
        stream = Stream(address(client))
        stream.opened()
        store.insert_tasks(1_300, run_at=later(3600))
        wait_until(lambda: len(stream.told()) == 1_300)
        assert len({each["task_id"] for each in stream.told()}) == 1_300


# ---------------------------------------------------------------------- after a break


def test_stream_goes_on_after_the_last_event(backend: Backend) -> None:
    with served(backend) as client:
        stream = Stream(address(client))
        stream.opened()
        first = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: stream.changes(first))
        last_id = stream.got[-1][0]
        second = post(client, run_at=FUTURE)["task_id"]
        again = Stream(address(client), **{"Last-Event-ID": last_id})
        assert again.opened() == {"complete": True}
        third = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: again.changes(third))
        assert [data["task_id"] for data in again.told()] == [second, third]


def test_what_may_be_missing_is_said(store: Backend) -> None:
    with served(store) as client:
        stream = Stream(address(client))
        stream.opened()
        first = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: stream.changes(first))
        last_id = stream.got[-1][0]
        xid = int(last_id.partition("-")[0])
        for unknown in ("0-0", f"{xid + 1000}-9999"):
            again = Stream(address(client), **{"Last-Event-ID": unknown})
            assert again.opened() == {"complete": False}
        stop_noting(store)
        again = Stream(address(client), **{"Last-Event-ID": last_id})
        assert again.opened() == {"complete": False}
        second = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: again.changes(second))


@pytest.mark.parametrize("is_emptied", [True, False])
def test_what_was_not_noted_is_missing_whatever_has_been_forgotten(
    store: Backend, is_emptied: bool
) -> None:
    with served(store) as client:
        stream = Stream(address(client))
        stream.opened()
        first = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: stream.changes(first))
        opened_at, last_id = stream.got[0][0], stream.got[-1][0]
        stop_noting(store)
        store.insert_task()
        if is_emptied:
            forget(store)
            assert store.sql("SELECT * FROM task_events") == []
        other = Stream(address(client))
        assert other.opened() == {"complete": True}
        second = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: other.changes(second))
        for place in (opened_at, last_id):
            again = Stream(address(client), **{"Last-Event-ID": place})
            assert again.opened() == {"complete": False}
        again = Stream(address(client), **{"Last-Event-ID": other.got[-1][0]})
        assert again.opened() == {"complete": True}


@pytest.mark.parametrize("db_url", [SQLITE], indirect=True)  # There, no transaction is older.
def test_quiet_stream_can_be_gone_on_with(store: Backend) -> None:
    with served(store) as client:
        for _ in range(2):
            stream = Stream(address(client))
            assert stream.opened() == {"complete": True}

            def is_complete(place: str = stream.got[0][0]) -> bool:
                again = Stream(address(client), **{"Last-Event-ID": place})
                return bool(again.opened()["complete"])

            assert is_complete()
            stop_noting(store)
            store.insert_task()
            assert not is_complete()


def test_changes_are_noted_only_while_somebody_watches_and_some_minutes_more(
    store: Backend,
) -> None:
    def noted() -> int:
        return int(store.sql("SELECT count(*) AS n FROM task_events")[0]["n"])

    with served(store) as client:
        post(client, run_at=FUTURE)
        assert noted() == 0
        Stream(address(client)).opened()
    with running(store) as client_of_another:
        post(client_of_another, run_at=FUTURE)
        assert noted() == 1
        stop_noting(store)
        post(client_of_another, run_at=FUTURE)
        assert noted() == 1


def test_old_changes_are_forgotten_and_it_is_known(store: Backend) -> None:
    with store.database() as database:
        with database.writing() as connection:
            events.note_changes(connection)
        for _ in range(3):
            store.insert_task()
        rows = visible(database, 3)
        first, second, third = (Place(row["xid"], row["event_id"]) for row in rows)
        store.sql(
            "UPDATE task_events SET at = :at WHERE event_id <= :id",
            at=later(-events.KEPT.total_seconds() - 1),
            id=second.event_id,
        )
        for expected in (True, True, False):
            with database.writing() as connection:
                assert events.is_any_old(connection) is expected
                events.forget_changes(connection, at_once=1)
        with database.writing() as connection:
            events.note_changes(connection)  # It leaves the floor where it is.
        with database.reading() as connection:
            for place, expected in ((first, False), (second, True), (third, True)):
                assert events.is_complete_from(connection, place) is expected
            [row] = events.changes_after(connection, Place(0, 0), 10)
            assert row["event_id"] == third.event_id


@only_postgresql
def test_change_that_becomes_visible_late_is_not_missed(store: Backend) -> None:
    with store.database() as database:
        with database.writing() as connection:
            events.note_changes(connection)
        with database.writing() as slow:
            slow.exec_driver_sql(
                "INSERT INTO scheduled_tasks (name, run_at) VALUES ('slow', now())"
            )
            store.insert_task("quick")
            with database.reading() as connection:
                assert events.last_place(connection) is None
                assert events.changes_after(connection, Place(0, 0), 10) == []
        assert [row["name"] for row in visible(database, 2)] == ["slow", "quick"]


@only_postgresql
def test_transaction_of_another_database_holds_nothing_up(store: Backend) -> None:
    url = make_url(store.db_url).set(database="postgres").render_as_string(hide_password=False)
    with (
        served(store) as client,
        Backend(url).database() as other,
        other.writing() as older,
    ):
        older.exec_driver_sql("SELECT pg_current_xact_id()")
        stream = Stream(address(client))
        stream.opened()
        task_id = store.insert_task(run_at=FUTURE)
        wait_until(lambda: stream.changes(task_id))
        again = Stream(address(client), **{"Last-Event-ID": stream.got[-1][0]})
        assert again.opened() == {"complete": True}


@only_postgresql
def test_whoever_may_only_insert_tasks_still_may(store: Backend) -> None:
    role = f"js_test_{uuid4().hex}"
    with store.database() as database:
        with database.writing() as connection:
            events.note_changes(connection)
            connection.exec_driver_sql(f"CREATE ROLE {role}")
        try:
            with database.writing() as connection:
                connection.exec_driver_sql(f"GRANT INSERT ON scheduled_tasks TO {role}")
                connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
                connection.exec_driver_sql(
                    "INSERT INTO scheduled_tasks (name, run_at) VALUES ('outbox', now())"
                )
            assert [row["name"] for row in visible(database, 1)] == ["outbox"]
        finally:
            with database.writing() as connection:
                connection.exec_driver_sql(f"DROP OWNED BY {role}")
                connection.exec_driver_sql(f"DROP ROLE {role}")


def test_what_was_noted_is_forgotten_also_when_nobody_watches(store: Backend) -> None:
    async def scenario(database: Database) -> None:
        await Watching(database, lambda: False).start(None)
        store.insert_task()
        store.sql("UPDATE task_events SET at = :at", at=later(-events.KEPT.total_seconds() - 1))
        await Watching(database, lambda: False).look()
        assert store.sql("SELECT * FROM task_events") == []

    with store.database() as database:
        asyncio.run(scenario(database))


# ----------------------------------------------------------------------- left behind


def test_stream_ends_that_was_not_told_of_all(store: Backend) -> None:
    with served(store) as client:
        stream = Stream(address(client))
        stream.opened()
        first = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: stream.changes(first))
        stop_noting(store)
        store.insert_task()
        other = Stream(address(client))
        assert stream.ended.wait(10)
        again = Stream(address(client), **{"Last-Event-ID": stream.got[-1][0]})
        assert again.opened() == {"complete": False}
        second = post(client, run_at=FUTURE)["task_id"]
        wait_until(lambda: other.changes(second) and again.changes(second))


def test_slow_reader_learns_that_changes_were_forgotten(store: Backend) -> None:
    number = 20_000
    with served(store) as client, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(30)
        reader.connect((client.base_url.host, client.base_url.port))
        reader.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        read = b""
        while b'"complete": true' not in read.replace(b":true", b": true"):
            read += reader.recv(1024)
        store.insert_tasks(number, name="x" * 250)
        wait_until(lambda: len(store.sql("SELECT event_id FROM task_events")) == number)
        forget(store)
        while not read.endswith(b"\r\n0\r\n\r\n"):
            part = reader.recv(1 << 20)
            assert part
            read += part
        last_id = re.findall(rb"id: (\S+)", read)[-1].decode()
        assert read.count(b"data: ") < number
        again = Stream(address(client), **{"Last-Event-ID": last_id})
        assert again.opened() == {"complete": False}


@only_postgresql
def test_stream_ends_after_an_outage_in_which_changes_were_not_noted(store: Backend) -> None:
    with (
        Proxy.before(store.db_url) as proxy,
        served(Backend(proxy.url_for(store.db_url))) as client,
    ):
        stream = Stream(address(client))
        stream.opened()
        proxy.cut()
        assert_problem(client.get("/events"), 503, "DATABASE_503")
        stop_noting(store)
        store.insert_task()
        proxy.heal()
        assert stream.ended.wait(30)


@only_postgresql
def test_stream_goes_on_that_began_beside_an_older_transaction(store: Backend) -> None:
    with store.database() as database, served(store) as client:
        with database.writing() as older:
            older.exec_driver_sql("SELECT pg_current_xact_id()")
            stream = Stream(address(client))
            stream.opened()
            task_id = store.insert_task()
            other = Stream(address(client))
            other.opened()
        wait_until(lambda: stream.changes(task_id) and other.changes(task_id))
        assert not stream.ended.is_set()
        assert not other.ended.is_set()


# ---------------------------------------------------------------------------- trouble


@only_postgresql
def test_outage_of_the_database_is_waited_out(store: Backend) -> None:
    with (
        Proxy.before(store.db_url) as proxy,
        served(Backend(proxy.url_for(store.db_url))) as client,
    ):
        stream = Stream(address(client))
        stream.opened()
        proxy.cut()
        task_id = store.insert_task(run_at=later(3600))
        assert_problem(client.get("/events"), 503, "DATABASE_503")
        proxy.heal()
        wait_until(lambda: stream.changes(task_id), 20)


@only_postgresql
def test_stream_that_meets_an_outage_reads_on_after_it(store: Backend) -> None:
    async def scenario(database: Database, proxy: Proxy) -> None:
        watching = Watching(database, lambda: False)
        start = await watching.start(None)
        proxy.cut()
        reading = asyncio.ensure_future(anext(watching.changes_after(start)))
        store.insert_task("missed")
        await asyncio.wait([reading], timeout=0.3)
        assert not reading.done()
        proxy.heal()
        assert [row["name"] for row in await reading] == ["missed"]

    with (
        Proxy.before(store.db_url) as proxy,
        Backend(proxy.url_for(store.db_url)).database() as database,
    ):
        asyncio.run(scenario(database, proxy))


def test_streams_end_at_once_when_the_service_stops(store: Backend, tmp_path: Path) -> None:
    with service_process(tmp_path, store.environment()) as service, service.start():
        streams = [Stream(service.url) for _ in range(3)]
        for stream in streams:
            stream.opened()
        service.process.terminate()
        for stream in streams:
            assert stream.ended.wait(5)
        service.process.wait(10)


def test_stream_that_waits_ends_when_it_is_told_to(store: Backend) -> None:
    stopping = threading.Event()

    async def scenario(database: Database) -> None:
        watching = Watching(database, stopping.is_set)
        start = await watching.start(None)
        reading = asyncio.ensure_future(anext(watching.changes_after(start), None))
        with watching.stream():
            for _ in range(2):
                await watching.look()
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        stopping.set()
        await watching.look()
        assert await reading is None

    with store.database() as database:
        asyncio.run(scenario(database))


def test_number_of_streams_is_bounded(store: Backend) -> None:
    with store.database() as database:
        watching = Watching(database, lambda: False)
        watching.streams = STREAMS_MAX - 1
        with watching.stream(), pytest.raises(Overloaded), watching.stream():
            pass
        with watching.stream():
            assert watching.streams == STREAMS_MAX


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("", {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1-"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1-2-3"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": f"1-{'9' * 19}"}, "Last-Event-ID"),
        ("?status=odd", {}, "status.0"),
        ("?task_id=7", {}, "task_id.0"),
        ("?q=x", {}, "q"),
    ],
)
def test_bad_requests_are_refused(
    store: Backend, query: str, headers: dict[str, str], field: str
) -> None:
    with running(store) as client:
        response = client.get(f"/events{query}", headers=headers)
        problem = assert_problem(response, 422, "VALIDATION_422")
        assert [each["field"] for each in problem["errors"]] == [field]
