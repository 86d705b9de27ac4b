"""The Python client's streams: an export that is whole or an error, and events without a gap."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.client import (
    ApiError,
    AsyncClient,
    Client,
    CutOff,
    Event,
    EventsMissed,
    Invalid,
    ServiceUnavailable,
    Task,
    Unreachable,
)
from tests.support.app import Backend, ServiceProcess, later, service_process
from tests.support.clients import Make, answering, problem
from tests.support.remote import served
from tests.support.services import find_free_port, wait_until

NOON = datetime(2099, 7, 1, 12, tzinfo=UTC)
TASK = {"task_id": "a", "name": "greet", "run_at": "2099-07-01T12:00:00Z", "status": "scheduled"}
CHANGE = {
    "task_id": "a",
    "name": "greet",
    "status": "running",
    "former": "scheduled",
    "attempt": 1,
    "at": "2099-07-01T12:00:00.003Z",
}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that comes in these pieces, and may end with an error."""

    def __init__(self, *pieces: bytes, error: str | None = None) -> None:
        self._pieces = pieces
        self._error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise httpx.RemoteProtocolError(self._error)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        """Note it."""
        self.closed += 1

    async def aclose(self) -> None:
        """Note it."""
        self.close()


def lines(*pieces: bytes, error: str | None = None, **headers: str) -> httpx.Response:
    """An export as it might come."""
    told = {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"} | headers
    return httpx.Response(200, headers=told, stream=Body(*pieces, error=error))


def messages(*pieces: bytes, error: str | None = None) -> httpx.Response:
    """A stream of events as it might come."""
    told = {"Content-Type": "text/event-stream; charset=utf-8"}
    return httpx.Response(200, headers=told, stream=Body(*pieces, error=error))


def message(place: str, document: Any, kind: str = "") -> bytes:
    """An event as the service writes it."""
    event = f"event: {kind}\n" if kind else ""
    return f"{event}data: {json.dumps(document)}\nid: {place}\n\n".encode()


OPEN = message("1-0", {"complete": True}, "open")


@pytest.fixture
def service(store: Backend, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on each database."""
    with served(tmp_path, **store.environment()) as service:
        yield service


# ----------------------------------------------------------------------------- export


def test_export_is_all_that_meets_the_filters(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    client = make(service.url)
    assert list(client.export()) == []
    tasks = [
        client.create("greet", run_at=NOON, payload={"name": "a\n\u2028é"}, tags=[tag])
        for tag in "abb"
    ]
    exported = list(client.export())
    assert exported == tasks
    assert all(isinstance(task, Task) for task in exported)
    assert list(client.export(tag="b", due_after=NOON, name=None)) == tasks[1:]
    with pytest.raises(Invalid):
        list(client.export(status="odd"))
    store.insert_tasks(1_234, run_at=later(3600))
    assert len({task.task_id for task in client.export(name="probe")}) == 1_234


def test_export_is_read_no_faster_than_it_is_used(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(20_000, run_at=later(3600))
    tasks = make(service.url).export()
    first = next(tasks)
    store.sql("DELETE FROM scheduled_tasks WHERE task_id <> :id", id=first.task_id)
    # What was on its way is there, and no more.
    assert sum(1 for _ in tasks) < 15_000


def test_export_that_is_cut_off_is_an_error(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(60_000, run_at=later(3600))
    tasks = make(service.url).export()
    next(tasks)
    service.process.terminate()
    number = 1
    with pytest.raises(CutOff) as failed:  # noqa: PT012 (how many came before is what counts)
        for _ in tasks:
            number += 1
    service.process.wait(20)
    assert number < 60_000
    assert (failed.value.status, failed.value.error_code) == (200, "ANSWER_CUT_OFF")
    assert str(failed.value).startswith(
        f"{service.url}/tasks/export was cut off after {number} tasks ("
    )
    assert str(failed.value).endswith("). They are not all: begin anew.")
    assert isinstance(failed.value, ServiceUnavailable)


def test_end_in_the_middle_of_a_line_is_none(make: Make) -> None:
    line = json.dumps(TASK).encode()
    client, _ = answering(make, lambda _: lines(line[:9], line[9:] + b"\n" + line[:9], line[9:]))
    tasks = client.export()
    assert next(tasks).name == "greet"
    with pytest.raises(CutOff, match=r"after 1 tasks \(in the middle of a line\)"):
        next(tasks)


def test_end_that_cannot_be_told_from_a_cut_is_refused(make: Make) -> None:
    told = {"Content-Type": "application/x-ndjson"}
    whole = json.dumps(TASK).encode() + b"\n"

    def respond(request: httpx.Request) -> httpx.Response:
        version = b"HTTP/2" if request.url.params["tag"] == "2" else b"HTTP/1.1"
        return httpx.Response(
            200, headers=told, stream=Body(whole), extensions={"http_version": version}
        )

    client, _ = answering(make, respond)
    with pytest.raises(CutOff, match=r"cannot be seen whether all has come. Have .* HTTP/1\.1\."):
        list(client.export(tag="1"))
    assert len(list(client.export(tag="2"))) == 1
    client, _ = answering(make, lambda _: httpx.Response(200, headers=told, content=whole))
    assert len(list(client.export())) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(200, json=[TASK]),
        lambda: lines(b"<html>\n"),
        lambda: lines(b"{}\n"),
        lambda: lines(b"[]\n"),
    ],
)
def test_what_is_no_export_is_an_error(make: Make, answer: Callable[[], httpx.Response]) -> None:
    client, _ = answering(make, lambda _: answer())
    with pytest.raises(ApiError) as failed:
        list(client.export())
    assert failed.value.error_code == "ANSWER_UNREADABLE"


def test_export_is_asked_for_again_before_it_has_begun(make: Make) -> None:
    answers = [
        lines(json.dumps(TASK).encode() + b"\n"),
        problem(503, "DATABASE_503", **{"Retry-After": "3"}),
    ]
    client, pauses = answering(make, lambda _: answers.pop())
    assert len(list(client.export())) == 1
    assert pauses == [3.0]


@pytest.mark.parametrize("what", ["export", "events"])
def test_stream_that_is_left_is_closed(make: Make, what: str) -> None:
    line = json.dumps(TASK).encode() + b"\n"
    answer = lines(line * 3) if what == "export" else messages(OPEN, message("1-1", CHANGE) * 3)
    body: Any = answer.stream
    client, _ = answering(make, lambda _: answer)
    found = getattr(client, what)()
    next(found)
    assert not body.closed
    found.close()
    assert body.closed
    assert next(found, None) is None


# ----------------------------------------------------------------------------- events


class Followed:
    """What a client is told of, read in a thread of its own until it is closed."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.opened: list[bool] = []
        self.got: list[Event] = []
        self.error: Exception | None = None
        events = client.events(on_open=self.opened.append, **options)
        self._client = client
        self._thread = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._thread.start()

    def _read(self, events: Iterator[Event]) -> None:
        try:
            for event in events:
                if event.name == "stop":
                    break
                self.got.append(event)
        except ApiError as error:
            self.error = error

    def changes(self, task_id: str) -> list[tuple[str | None, str | None]]:
        """What has become of a task."""
        return [(each.former, each.status) for each in self.got if each.task_id == task_id]

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def followed(client: Any, store: Backend, **options: Any) -> Iterator[Followed]:
    """Follow what changes; in the end, a task that is named so ends it."""
    follower = Followed(client, **options)
    wait_until(lambda: follower.opened)
    yield follower
    store.insert_task("stop")
    follower.join()
    assert follower.error is None


def test_changes_are_told_as_they_come(make: Make, service: ServiceProcess, store: Backend) -> None:
    with Client(service.url) as other, followed(make(service.url), store) as follower:
        task_id = other.create("greet").task_id
        wait_until(lambda: len(follower.changes(task_id)) == 3)
    assert follower.opened == [True]
    first, *_ = follower.got
    assert isinstance(first, Event)
    assert (first.task_id, first.name, first.former, first.attempt) == (task_id, "greet", None, 0)
    assert first.at.tzinfo is not None
    assert first.raw.keys() | {"id", "raw"} == set(Event.__dataclass_fields__)
    assert follower.changes(task_id) == [
        (None, "scheduled"),
        ("scheduled", "running"),
        ("running", "done"),
    ]


def test_filters_narrow_the_changes_down(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    options = {"status": ["done", "scheduled"], "name": ["greet", "stop"]}
    with Client(service.url) as other, followed(make(service.url), store, **options) as follower:
        other.create("stumble")
        task_id = other.create("greet").task_id
        wait_until(lambda: len(follower.changes(task_id)) == 2)
    assert [each.status for each in follower.got] == ["scheduled", "done"]
    with pytest.raises(Invalid):
        next(make(service.url).events(status="odd"))


def all_told(follower: Followed, ids: list[str]) -> bool:
    """Whether all these tasks have been told of."""
    return {each.task_id for each in follower.got} >= set(ids)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restart_of_the_service_costs_no_event_and_brings_none_twice(
    make: Make, store: Backend, tmp_path: Path, end: str
) -> None:
    command = ("-m", "job_scheduler", "serve", "--port", str(find_free_port()))
    with service_process(tmp_path, store.environment(), *command) as service:
        service.start().close()
        ids: list[str] = []
        with followed(make(service.url, retries=50), store) as follower:
            ids += [store.insert_task() for _ in range(3)]
            wait_until(lambda: len(follower.got) == 3)
            for _ in range(2):
                ids += [store.insert_task() for _ in range(50)]
                service.stop() if end == "stop" else service.kill()
                ids += [store.insert_task() for _ in range(3)]
                service.start().close()
                ids.append(store.insert_task())
                wait_until(partial(all_told, follower, ids), 60)
    assert len(follower.opened) >= 3
    assert all(follower.opened)
    assert sorted(each.task_id for each in follower.got) == sorted(ids)
    assert len({each.id for each in follower.got}) == len(ids)


def test_lost_connection_costs_no_event(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    with Proxy("127.0.0.1", int(service.url.rpartition(":")[2])) as proxy:
        client = make(f"http://127.0.0.1:{proxy.port}", retries=50)
        with followed(client, store) as follower:
            ids = [store.insert_task()]
            wait_until(lambda: len(follower.got) == 1)
            proxy.cut()
            ids += [store.insert_task() for _ in range(3)]
            proxy.heal()
            wait_until(lambda: len(follower.got) == 4)
    assert [each.task_id for each in follower.got] == ids
    assert len(follower.opened) >= 2
    assert all(follower.opened)


def test_another_process_goes_on_after_an_event(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    with followed(make(service.url), store) as follower:
        ids = [store.insert_task() for _ in range(3)]
        wait_until(lambda: len(follower.got) == 3)
    first, *_ = follower.got
    again = make(service.url).events(last_event_id=first.id)
    assert [next(again).task_id for _ in range(2)] == ids[1:]
    again.close()


def test_gap_is_told_or_an_error(make: Make, service: ServiceProcess, store: Backend) -> None:
    with followed(make(service.url), store) as follower:
        store.insert_task()
        wait_until(lambda: follower.got)
    store.sql("UPDATE event_watch SET until = :at", at=later(-1))
    last = follower.got[0].id
    with pytest.raises(EventsMissed, match="Begin anew, then read the list") as missed:
        next(make(service.url).events(last_event_id=last))
    assert missed.value.error_code == "EVENTS_MISSED"
    store.sql("UPDATE event_watch SET until = :at", at=later(-1))
    with followed(make(service.url), store, last_event_id=last) as follower:
        task_id = store.insert_task()
        wait_until(lambda: follower.changes(task_id))
    assert follower.opened[0] is False


def test_stream_goes_on_where_it_was(make: Make) -> None:
    asked: list[tuple[str | None, float]] = []
    whole = message("1-2", CHANGE)
    answers = [
        messages(OPEN, whole[:30], whole[30:], message("1-3", CHANGE)[:-1], error="cut"),
        messages(b": ping\n\n", b"event: other\ndata: 1\n\n", b"id: 9\n\n", error="cut"),
        problem(503, "UNAVAILABLE_503", **{"Retry-After": "1"}),
        messages(
            b'event: open\r\ndata: {"complete":\r\ndata: true}\r\nid: 1-2\r\n\r\n',
            b"retry: 1\nunknown\n: comment\n" + message("1-3", CHANGE | {"status": None}),
        ),
    ]

    def respond(request: httpx.Request) -> httpx.Response:
        place = request.headers.get("Last-Event-ID")
        asked.append((place, request.extensions["timeout"]["read"]))
        return answers.pop(0)

    client, pauses = answering(make, respond, timeout=5)
    events = client.events()
    assert [(each.id, each.status) for each in (next(events), next(events))] == [
        ("1-2", "running"),
        ("1-3", None),
    ]
    events.close()
    # Signs of life come every 15 seconds, and may be late by what else the client waits for.
    assert asked == [(None, 20), ("1-2", 20), ("1-2", 20), ("1-2", 20)]
    assert pauses == [0.2, 0.4, 1.0]


@pytest.mark.parametrize("error", ["cut", None])
def test_stream_that_never_says_anything_is_given_up(make: Make, error: str | None) -> None:
    client, pauses = answering(make, lambda _: messages(b": ping\n\n", error=error))
    reason = error or "its stream of events ends at once"
    with pytest.raises(Unreachable, match=rf"cannot be reached \({reason}\)"):
        next(client.events())
    assert pauses == [0.4, 0.8, 1.6]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(200, json=[]),
        lambda: messages(message("1-0", [], "open")),
        lambda: messages(message("1-0", {"complete": True}, "open")[:-20] + b"\n\n"),
        lambda: messages(OPEN, message("1-1", {"task_id": "a"})),
        lambda: messages(OPEN, b"data: {\n\n"),
        lambda: messages(b"data: \xff\n\n"),
    ],
)
def test_what_are_no_events_is_an_error(make: Make, answer: Callable[[], httpx.Response]) -> None:
    client, _ = answering(make, lambda _: answer())
    with pytest.raises(ApiError) as failed:
        next(client.events())
    assert failed.value.error_code == "ANSWER_UNREADABLE"


def test_service_that_stays_away_ends_the_events(make: Make, service: ServiceProcess) -> None:
    pauses: list[float] = []
    client = make(service.url, pause=pauses.append)
    events = client.events(on_open=lambda _: service.kill())
    with pytest.raises(Unreachable):
        next(events)
    assert pauses == [0.2, 0.2, 0.4, 0.8]


def test_events_end_when_their_client_is_closed(remote: ServiceProcess) -> None:
    async def scenario() -> None:
        async with AsyncClient(remote.url) as client:
            opened = asyncio.Event()

            async def note(_: bool) -> None:
                opened.set()

            async def follow() -> list[Event]:
                return [event async for event in client.events(on_open=note)]

            following = asyncio.ensure_future(follow())
            await opened.wait()
            await client.close()
            assert await asyncio.wait_for(following, 10) == []

    asyncio.run(scenario())
    with Client(remote.url) as closed:
        assert list(closed.events(on_open=lambda _: closed.close())) == []
