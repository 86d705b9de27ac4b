"""The Python client on many tasks: made, changed, removed and imported."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from job_scheduler.client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    ImportReport,
    Invalid,
    Outcome,
    ServiceUnavailable,
    TaskChange,
    Unreachable,
)
from tests.support.app import Backend, ServiceProcess, later
from tests.support.clients import Make, Wire, answering, problem, refused
from tests.support.remote import served
from tests.support.services import wait_until

NOON = datetime(2099, 7, 1, 12, tzinfo=UTC)
LATER = "2099-08-01T12:00:00Z"


@pytest.fixture
def service(store: Backend, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on each database."""
    with served(tmp_path, **store.environment()) as service:
        yield service


@pytest.fixture
def client(make: Make, remote: ServiceProcess) -> Any:
    """A client of the real service, of each kind."""
    return make(remote.url)


# ------------------------------------------------------------------ made one by one


def test_each_of_a_batch_is_told_of(make: Make, service: ServiceProcess) -> None:
    client = make(service.url)
    held = client.create("greet", run_at=NOON, unique_key="held")
    good = {"name": "greet", "run_at": NOON}
    outcomes = client.create_each(
        [
            good,
            good | {"run_at": "soon", "priority": 9},
            good | {"unique_key": "held"},
            good | {"unique_key": "free", "on_conflict": "return"},
            good | {"name": "probe"},
        ]
    )
    [found] = client.create_each([good | {"unique_key": "held", "on_conflict": "return"}])
    assert all(isinstance(each, Outcome) for each in outcomes)
    assert [each.status for each in outcomes] == [201, 422, 409, 201, 201]
    assert [each.made for each in outcomes] == [True, False, False, True, True]
    made, invalid, conflict, _, last = outcomes
    assert made.task == client.get(made.task.task_id)
    assert (made.problem, last.task.name) == (None, "probe")
    assert (type(invalid.problem), invalid.task) == (Invalid, None)
    assert [fault.field for fault in invalid.problem.errors] == ["run_at", "priority"]
    assert type(conflict.problem) is Conflict
    assert conflict.problem.error_code == "TASK_UNIQUE_409"
    assert (found.status, found.made, found.task) == (200, False, held)
    assert made.raw["status"] == 201
    assert len(list(client.list())) == 4


@pytest.mark.parametrize(
    ("ids", "sent"), [((None, None), 2), ((uuid4, uuid4), 2), ((None, uuid4), 1)]
)
def test_batch_in_part_is_repeated_where_that_makes_each_task_once(
    make: Make, service: ServiceProcess, store: Backend, ids: tuple[Any, ...], sent: int
) -> None:
    wire = Wire(losses=1)
    client = make(service.url, transport=wire, pause=lambda _: None)
    wanted = [
        {"name": "greet", "run_at": NOON} | ({"task_id": each()} if each else {}) for each in ids
    ]
    if sent == 1:
        with pytest.raises(Unreachable):
            client.create_each(wanted)
    else:
        assert [each.made for each in client.create_each(wanted)] == [True, True]
    assert (len(wire.requests), store.count()) == (sent, 2)


def test_key_of_ones_own_names_a_batch_in_part(make: Make, service: ServiceProcess) -> None:
    client = make(service.url)
    wanted: list[Any] = [{"name": "greet", "run_at": NOON}, {"name": ""}]
    first, second = (client.create_each(wanted, idempotency_key="part") for _ in range(2))
    assert first[0] == second[0]
    assert first[0].made


# ---------------------------------------------------------------- changed and removed


def test_many_are_counted_changed_and_removed(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(2_100, run_at=later(3600))
    kept = store.insert_task("other")
    wire = Wire()
    client = make(service.url, transport=wire)
    changes: dict[str, Any] = {"run_at": LATER, "priority": 2}
    assert client.change_many(changes, name="probe", dry_run=True) == 2_100
    assert client.delete_many(name="probe", dry_run=True) == 2_100
    assert store.count("priority = 0") == 2_101
    wire.requests.clear()
    assert client.change_many(changes, name="probe", due_before=NOON) == 2_100
    assert len(wire.requests) == 3
    assert store.count("priority = 2") == 2_100
    wire.requests.clear()
    assert client.delete_many(name=["probe", "none"], status=["scheduled", "paused"]) == 2_100
    assert len(wire.requests) == 3
    assert client.delete_many(name="probe") == 0
    assert [task.task_id for task in client.list()] == [kept]


def test_not_all_are_meant_by_mistake(make: Make, service: ServiceProcess, store: Backend) -> None:
    store.insert_task()
    client = make(service.url)
    for ask in (client.delete_many, lambda **filters: client.change_many({}, **filters)):
        with pytest.raises(Invalid) as refused_:
            ask(tag=None, name=[])
        assert refused_.value.errors[0].detail.startswith("Name at least one filter")
    assert store.count() == 1


def test_removal_without_an_answer_is_not_repeated(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(1_500, run_at=later(3600))
    wire = Wire(losses=1)
    client = make(service.url, transport=wire, pause=lambda _: None)
    with pytest.raises(Unreachable, match="0 tasks were removed for certain: do it again for wh"):
        client.delete_many(name="probe")
    assert (len(wire.requests), store.count()) == (1, 500)
    wire.losses = 2  # what is only looked at is asked for again
    assert client.delete_many(name="probe", dry_run=True) == 500
    assert client.delete_many(name="probe") == 500


def test_change_without_an_answer_is_not_repeated_but_can_be(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(1_500, run_at=later(3600))
    wire = Wire(losses=1)
    client = make(service.url, transport=wire, pause=lambda _: None)
    change: TaskChange = {"run_at": LATER, "tags": ["moved"]}
    with pytest.raises(Unreachable, match="0 tasks were changed for certain: do it again for wh"):
        client.change_many(change, name="probe")
    assert len(wire.requests) == 1
    wire.losses = 2  # what is only looked at is asked for again
    assert client.change_many(change, dry_run=True, name="probe") == 500
    assert client.change_many(change, name="probe") == 500
    assert len(list(client.list(tag="moved", due_after=LATER))) == 1_500


def test_refusal_in_the_middle_tells_what_is_done(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    store.insert_tasks(1_000, run_at=later(3600))
    client = make(service.url)
    client.create("probe", run_at=NOON, start_before=NOON)
    with pytest.raises(Invalid, match=r"Before that, 1000 tasks were changed\.$") as refused_:
        client.change_many({"run_at": LATER}, name="probe")
    assert refused_.value.errors[0].field.endswith(".start_before")
    assert store.count("run_at > '2099-07-20'") == 1_000


def test_outage_in_the_middle_tells_what_is_done(make: Make) -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if "cursor" in request.url.params:
            return refused(request)
        return httpx.Response(200, json={"tasks": 1_000, "cursor": "abc", "dry_run": False})

    client, pauses = answering(make, respond)
    with pytest.raises(Unreachable, match=r"runs\. 1000 tasks were removed for certain: do it ag"):
        client.delete_many(tag="a")
    # Nobody was reached: nothing can have been done.
    assert pauses == [0.2, 0.4, 0.8]
    assert asked[0] == "http://127.0.0.1:8000/tasks?tag=a"
    assert set(asked[1:]) == {"http://127.0.0.1:8000/tasks?tag=a&cursor=abc"}


# --------------------------------------------------------------------------- imported

TASKS = [{"name": "greet", "run_at": "2099-07-01T12:00:00Z", "tags": [str(n)]} for n in range(3)]
LINES = [json.dumps(task) for task in TASKS]
BLOCK = "\n".join(LINES)


async def awaited(tasks: list[Any]) -> AsyncIterator[Any]:
    """Some tasks, each of which is waited for."""
    for task in tasks:
        await asyncio.sleep(0)
        yield task


SOURCES: dict[str, Callable[[Path], Any]] = {
    "dicts": lambda _: TASKS,
    "an iterator": lambda _: iter(TASKS),
    "lines of text": lambda _: LINES,
    "lines of bytes": lambda _: [f"{line}\n".encode() for line in LINES],
    "a file of bytes": lambda path: path.open("rb"),
    "a file of text": lambda path: path.open(),
    "a file in memory": lambda _: io.BytesIO(BLOCK.encode()),
}


@pytest.mark.parametrize("source", SOURCES)
def test_tasks_are_imported_from(client: Any, source: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text(BLOCK)
    client.delete_many(name="greet")
    tasks = SOURCES[source](file)
    with tasks if hasattr(tasks, "close") else nullcontext():
        report = client.import_tasks(tasks)
    assert isinstance(report, ImportReport)
    counts = (report.lines, report.created, report.present, report.skipped, report.refused)
    assert counts == (3, 3, 0, 0, 0)
    assert (report.problems, report.dry_run, report.raw["lines"]) == ([], False, 3)
    assert {task.tags[0] for task in client.list(name="greet")} == {"0", "1", "2"}


def test_tasks_that_are_awaited_are_imported_by_the_client_that_awaits(
    remote: ServiceProcess,
) -> None:
    async def scenario() -> None:
        async with AsyncClient(remote.url) as client:
            report = await client.import_tasks(awaited(TASKS), dry_run=True)
            assert (report.lines, report.dry_run) == (3, True)
            moved = await client.import_tasks(client.export(name="none"))
            assert moved.lines == 0

    asyncio.run(scenario())
    with Client(remote.url) as client, pytest.raises(TypeError, match="not iterable"):
        client.import_tasks(awaited(TASKS))


def test_what_was_exported_is_imported(make: Make, service: ServiceProcess, store: Backend) -> None:
    client = make(service.url)
    tasks = [client.create("greet", run_at=NOON, payload={"name": "é\u2028"}) for _ in range(2)]
    done = client.wait(client.create("greet").task_id)
    client.pause(tasks[0].task_id)
    exported = list(client.export())
    assert len(exported) == 3
    store.sql("DELETE FROM scheduled_tasks")
    report = client.import_tasks(exported)
    assert (report.created, report.skipped) == (2, 1)
    assert [client.get(task.task_id).status for task in tasks] == ["paused", "scheduled"]
    assert client.import_tasks(iter(exported)).present == 2
    assert done.task_id not in {task.task_id for task in client.list()}


def test_refused_lines_are_told_of(make: Make, service: ServiceProcess, store: Backend) -> None:
    client = make(service.url)
    lines = [TASKS[0], "{", "", TASKS[1] | {"priority": 9}, TASKS[2]]
    looked = client.import_tasks(lines, dry_run=True)
    assert (looked.lines, looked.created, looked.refused, looked.dry_run) == (4, 0, 2, True)
    assert store.count() == 0
    report = client.import_tasks(lines)
    assert (report.lines, report.created, report.refused) == (4, 2, 2)
    first, second = report.problems
    assert (first.line, type(first.problem), first.problem.error_code) == (2, Invalid, "BODY_400")
    assert (second.line, second.problem.errors[0].field) == (4, "priority")
    assert second.raw["line"] == 4


def test_tasks_are_sent_while_they_are_made(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    def coming() -> Iterator[dict[str, Any]]:
        for _ in range(2_000):
            yield TASKS[0]
        # These are with the service before the next one is made.
        wait_until(lambda: store.count() >= 500)
        yield TASKS[1]

    report = make(service.url).import_tasks(coming())
    assert report.created == 2_001


@pytest.mark.parametrize("source", ["dicts", "a file of bytes", "a file of text"])
def test_import_without_an_answer_is_repeated_from_its_beginning(
    make: Make, service: ServiceProcess, store: Backend, source: str, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text(f"this is no task\n{BLOCK}")
    wire = Wire(losses=1)
    client = make(service.url, transport=wire, pause=lambda _: None)
    with ExitStack() as opened:
        tasks = SOURCES[source](file)
        if hasattr(tasks, "readline"):
            opened.enter_context(tasks)
            tasks.readline()  # It begins where the file is.
        report = client.import_tasks(tasks)
    assert (report.created, report.present, report.refused) == (0, 3, 0)
    assert (len(wire.requests), store.count()) == (2, 3)
    assert len({request.headers["Idempotency-Key"] for request in wire.requests}) == 1


def test_import_that_cannot_be_repeated_tells_the_key_for_it(
    make: Make, service: ServiceProcess, store: Backend
) -> None:
    wire = Wire(losses=1, refusals=1)
    pauses: list[float] = []
    client = make(service.url, transport=wire, pause=pauses.append)
    with pytest.raises(Unreachable, match="Repeated with idempotency_key='") as failed:
        client.import_tasks(iter(TASKS))
    # When nobody was there, nothing had been taken from the iterator.
    assert (len(wire.requests), pauses, store.count()) == (1, [0.2], 3)
    key = wire.requests[0].headers["Idempotency-Key"]
    assert repr(key) in str(failed.value)
    report = client.import_tasks(iter(TASKS), idempotency_key=key)
    assert (report.created, report.present, store.count()) == (0, 3, 3)


def test_iterator_is_not_sent_from_its_middle(make: Make) -> None:
    sent: list[bytes] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return problem(503, "OVERLOADED_503", **{"Retry-After": "1"})

    client, pauses = answering(make, respond)
    with pytest.raises(ServiceUnavailable, match=r"^in words Repeated with"):
        client.import_tasks(iter(TASKS))
    assert (len(sent), pauses) == (1, [])
    with pytest.raises(ServiceUnavailable):
        client.import_tasks(LINES)
    assert (
        sent
        == [f"{BLOCK}\n".encode().replace(b'": ', b'":').replace(b", ", b",")]
        + [f"{BLOCK}\n".encode()] * 4
    )


def test_what_has_no_json_form_ends_the_import(client: Any) -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        client.import_tasks([{"name": "greet", "payload": {"a": {1}}}])


@pytest.mark.parametrize("answer", [{"tasks": 1}, {"cursor": None}, [], {"problems": [{}]}])
def test_report_that_is_none_is_an_error(make: Make, answer: Any) -> None:
    client, _ = answering(make, lambda _: httpx.Response(200, json=answer))
    asked: list[Callable[[], Any]] = [
        lambda: client.delete_many(tag="a"),
        lambda: client.import_tasks([]),
        lambda: client.create_each([{"name": "greet"}]) and pytest.fail("taken"),
    ]
    for ask in asked[: None if answer else 2]:
        with pytest.raises(ApiError) as failed:
            ask()
        assert failed.value.error_code == "ANSWER_UNREADABLE"
