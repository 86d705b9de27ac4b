"""Export and import: many tasks as lines of JSON, one after the other."""

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import BODY_MAX_BYTES, IMPORT_PROBLEMS_NAMED
from job_scheduler.core.lines import TOO_LONG, lines_of
from job_scheduler.exceptions import BodyTooSlow
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    service_process,
    services_of,
    shown,
    task_body,
)
from tests.support.services import wait_until

NDJSON = {"Content-Type": "application/x-ndjson"}
FUTURE = "2031-07-01T12:00:00Z"
UNSTORED = dict.fromkeys(("created_at", "updated_at"))
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def exported(client: Any, query: str = "") -> list[dict[str, Any]]:
    """Export tasks."""
    response = client.get(f"/tasks/export{query}")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.content.split(b"\n") if line]


def imported(client: Any, lines: Iterable[Any], query: str = "", **headers: str) -> dict[str, Any]:
    """Import tasks."""
    content = "".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
    )
    response = client.post(f"/tasks/import{query}", content=content, headers=NDJSON | headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def counts(result: dict[str, Any]) -> tuple[int, ...]:
    """The figures of an import."""
    return tuple(result[name] for name in ("lines", "created", "present", "skipped", "refused"))


# -------------------------------------------------------------------------- export


def test_export_has_each_task_as_it_is_shown(backend: Backend) -> None:
    with running(backend) as client:
        assert exported(client) == []
        tasks = [post(client, run_at=FUTURE, payload={"n": "\n\u2028"}) for _ in range(3)]
        other = post(client, run_at=FUTURE, tags=["x"])
        assert exported(client) == [*tasks, other]
        assert exported(client, "?tag=x") == [other]
        for query in ("?sort=run_at", "?limit=1", "?status=odd", "?q=a&q=b"):
            assert_problem(client.get(f"/tasks/export{query}"), 422, "VALIDATION_422")


def test_export_of_many_is_complete_in_the_order_of_creation(store: Backend) -> None:
    with running(store) as client:
        for _ in range(3):
            store.insert_tasks(777, run_at=later(3600))
        tasks = exported(client)
    assert len({task["task_id"] for task in tasks}) == len(tasks) == 3 * 777
    order = [(task["created_at"], task["task_id"]) for task in tasks]
    assert order == sorted(order)


def test_export_waits_for_its_reader(store: Backend, tmp_path: Path) -> None:
    with service_process(tmp_path, store.environment()) as service, service.start() as client:
        store.insert_tasks(20_000, run_at=later(3600))
        with client.stream("GET", "/tasks/export") as response:
            lines = response.iter_lines()
            first = json.loads(next(lines))
            store.sql("DELETE FROM scheduled_tasks WHERE task_id <> :id", id=first["task_id"])
            # What was read ahead is there, and no more.
            assert sum(1 for _ in lines) < 15_000


@only_postgresql
def test_without_database_they_are_refused(store: Backend) -> None:
    with (
        Proxy.before(store.db_url) as proxy,
        running(Backend(proxy.url_for(store.db_url))) as client,
    ):
        post(client, run_at=FUTURE)
        proxy.cut()
        assert_problem(client.get("/tasks/export"), 503, "DATABASE_503")
        response = client.post("/tasks/import", json=task_body(), headers=NDJSON)
        problem = assert_problem(response, 503, "DATABASE_503")
        assert "0 tasks were stored, of the lines before line 1;" in problem["detail"]
        proxy.heal()
        wait_until(lambda: client.get("/tasks/export").status_code == 200, 20, "the database")


def test_export_is_cut_off_when_the_service_stops(store: Backend, tmp_path: Path) -> None:
    with service_process(tmp_path, store.environment()) as service, service.start() as client:
        store.insert_tasks(60_000, run_at=later(3600))
        with client.stream("GET", "/tasks/export") as response:
            lines = response.iter_lines()
            next(lines)
            service.process.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        service.process.wait(20)


def test_neither_begins_when_the_service_stops(store: Backend) -> None:
    with running(store) as client:
        assert client.portal is not None
        client.portal.call(services_of(client).shutdown.begin)
        assert_problem(client.get("/tasks/export"), 503, "UNAVAILABLE_503")
        response = client.post("/tasks/import", content="{}", headers=NDJSON)
        assert_problem(response, 503, "UNAVAILABLE_503")


# -------------------------------------------------------------------------- import


def test_lines_make_tasks(backend: Backend) -> None:
    with running(backend) as client:
        lines = [task_body(run_at=FUTURE, payload={"n": number}) for number in range(1_200)]
        result = imported(client, ["", lines[0], "  ", *lines[1:]])
        assert counts(result) == (1_200, 1_200, 0, 0, 0)
        assert (result["problems"], result["dry_run"]) == ([], False)
    assert backend.count("status = 'scheduled'") == 1_200


def test_many_bytes_are_stored_before_there_are_many_lines(store: Backend) -> None:
    with running(store) as client:
        big = task_body(payload={"text": "x" * (BODY_MAX_BYTES - 1_000)})
        assert counts(imported(client, [big] * 9)) == (9, 9, 0, 0, 0)


def test_what_is_due_runs(backend: Backend) -> None:
    with running(backend) as client:
        imported(client, [task_body(run_at=later(-1), tags=["imported"])])
        [task] = client.get("/tasks?tag=imported").json()
        assert finished(client, task["task_id"])["status"] == "done"


def test_refused_lines_are_told_of_and_the_others_are_stored(store: Backend) -> None:
    with running(store) as client:
        held = post(client, run_at=FUTURE, unique_key="held")
        lines: list[Any] = [
            task_body(),
            "{",
            task_body(run_at="tomorrow"),
            [],
            task_body(unique_key="held"),
            task_body(unique_key="held", on_conflict="return"),
            task_body(task_id=held["task_id"]),
            task_body(payload={"text": "x" * BODY_MAX_BYTES}),
            '{"name": "a", "name": "b"}',
            task_body(name="last"),
        ]
        result = imported(client, lines)
        assert counts(result) == (10, 2, 1, 0, 7)
        problems = {each["line"]: each["problem"] for each in result["problems"]}
        assert {line: problem["error_code"] for line, problem in problems.items()} == {
            2: "BODY_400",
            3: "VALIDATION_422",
            4: "VALIDATION_422",
            5: "TASK_UNIQUE_409",
            7: "TASK_CREATE_409",
            8: "BODY_413",
            9: "BODY_422",
        }
        assert problems[3]["errors"][0]["field"] == "run_at"
    assert store.count() == 3


def test_refusals_are_counted_all_and_told_of_up_to_a_number(store: Backend) -> None:
    with running(store) as client:
        result = imported(client, ["{}"] * 700)
    assert counts(result) == (700, 0, 0, 0, 700)
    assert [each["line"] for each in result["problems"]] == [*range(1, IMPORT_PROBLEMS_NAMED + 1)]


def test_dry_run_stores_nothing(store: Backend) -> None:
    with running(store) as client:
        result = imported(client, [task_body(), "{}"], "?dry_run=true")
        assert counts(result) == (2, 0, 0, 0, 1)
        assert result["dry_run"] is True
    assert store.count() == 0


def test_key_makes_a_repetition_harmless(store: Backend) -> None:
    key = {"Idempotency-Key": "monday"}
    own = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
    with running(store) as client:
        one, other = (task_body(run_at=FUTURE, name=name) for name in ("probe", "other"))
        mine = task_body(run_at=FUTURE, task_id=own)
        lines = [one, other, mine]
        assert counts(imported(client, lines, **key)) == (3, 3, 0, 0, 0)
        assert counts(imported(client, lines, **key)) == (3, 0, 3, 0, 0)
        lines = [one | {"name": "x"}, other, mine | {"name": "x"}, one]
        result = imported(client, lines, **key)
        assert counts(result) == (4, 1, 1, 0, 2)
        assert [each["problem"]["error_code"] for each in result["problems"]] == [
            "IDEMPOTENCY_422",
            "TASK_CREATE_409",
        ]
        post(client, run_at=FUTURE, unique_key="held")
        result = imported(client, [*lines, task_body(unique_key="held")], **key)
        assert result["problems"][-1]["problem"]["error_code"] == "TASK_UNIQUE_409"
    assert store.count() == 5


def test_export_can_be_imported(backend: Backend) -> None:
    wanted: list[dict[str, Any]] = [
        {"run_at": FUTURE, "payload": {"a": [1, None]}, "tags": ["x"], "priority": 2},
        {
            "run_at": FUTURE,
            "webhook": {"url": "https://example.com/", "headers": {"A": "b"}},
            "max_attempts": 5,
            "retry_delay": [1, 2.5],
            "start_before": "2031-07-02T12:00:00Z",
            "unique_key": "one",
        },
        {
            "run_at": None,
            "cron": "30 9 * * MON-FRI",
            "timezone": "Europe/Berlin",
            "start_at": "2031-07-01T00:00:00",
            "overlap": "queue",
            "dst_gap": "skip",
            "concurrency_key": "k",
        },
        {"run_at": None, "interval_seconds": 600, "start_at": FUTURE, "max_runs": 7},
        {"run_at": FUTURE, "on_failed": {"url": "https://example.com/failed"}},
    ]
    with running(backend) as client:
        tasks = [post(client, **members) for members in wanted]
        paused = post(client, run_at=FUTURE)["task_id"]
        client.post(f"/tasks/{paused}/pause")
        finished(client, post(client, run_at=later(-1))["task_id"])
        lines = exported(client)
        assert len(lines) == 7
        backend.sql("DELETE FROM scheduled_tasks")
        assert counts(imported(client, lines)) == (7, 6, 0, 1, 0)
        for task in tasks:
            assert shown(client, task["task_id"]) | UNSTORED == task | UNSTORED
        assert shown(client, paused)["status"] == "paused"
        client.post(f"/tasks/{paused}/resume")
        assert counts(imported(client, lines)) == (7, 0, 6, 1, 0)
        # It has a life of its own by now.
        assert shown(client, paused)["status"] == "scheduled"


@pytest.mark.parametrize("status", ["running", "done", "failed", "unknown", "cancelled"])
def test_exported_tasks_that_have_begun_are_skipped(store: Backend, status: str) -> None:
    with running(store) as client:
        task = post(client, run_at=FUTURE) | {"status": status}
        client.delete(f"/tasks/{task['task_id']}")
        assert counts(imported(client, [task])) == (1, 0, 0, 1, 0)
        odd = imported(client, [task | {"status": [7], "name": 7}, task | {"status": "odd"}])
        assert counts(odd) == (2, 1, 0, 0, 1)
    assert store.count() == 1


@pytest.mark.parametrize("content_type", ["application/json", "", "text/csv; charset=utf-8"])
def test_other_bodies_are_refused(store: Backend, content_type: str) -> None:
    with running(store) as client:
        response = client.post(
            "/tasks/import", content="{}", headers={"Content-Type": content_type}
        )
        problem = assert_problem(response, 415, "BODY_415")
        assert "'Content-Type: application/x-ndjson'" in problem["detail"]
        for kind in ("application/jsonl", "Application/X-NDJSON; charset=utf-8"):
            response = client.post("/tasks/import", content="", headers={"Content-Type": kind})
            assert response.json()["lines"] == 0


def test_import_is_refused_while_there_is_no_room(store: Backend) -> None:
    with running(store) as client, services_of(client).batches.room(60 * 1024 * 1024):
        response = client.post("/tasks/import", content="", headers=NDJSON)
        assert_problem(response, 503, "OVERLOADED_503")


def test_import_stops_with_the_service(store: Backend, tmp_path: Path) -> None:
    stopping = threading.Event()
    line = json.dumps(task_body()).encode() + b"\n"

    def lines() -> Iterator[bytes]:
        yield line * 500
        assert stopping.wait(10)
        yield line * 500

    with service_process(tmp_path, store.environment()) as service, service.start() as client:
        answers: list[httpx.Response] = []

        def send() -> None:
            answers.append(client.post("/tasks/import", content=lines(), headers=NDJSON))

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: store.count() == 500)
        service.process.terminate()
        wait_until(lambda: "Shutting down" in service.output())
        stopping.set()
        sending.join(20)
        assert_problem(answers[0], 503, "UNAVAILABLE_503")
    assert store.count() == 500


@only_postgresql
def test_outage_in_the_middle_says_how_far_it_has_come(store: Backend, tmp_path: Path) -> None:
    line = json.dumps(task_body()).encode() + b"\n"
    with Proxy.before(store.db_url) as proxy:
        environment = Backend(proxy.url_for(store.db_url)).environment()

        def lines() -> Iterator[bytes]:
            yield line * 500
            wait_until(lambda: store.count() == 500)
            proxy.cut()
            yield line * 500

        with service_process(tmp_path, environment) as service, service.start() as client:
            response = client.post("/tasks/import", content=lines(), headers=NDJSON)
            problem = assert_problem(response, 503, "DATABASE_503")
            assert "500 tasks were stored, of the lines before line 501" in problem["detail"]
            proxy.heal()
    assert store.count() == 500


# --------------------------------------------------------------------------- lines


def read(*chunks: bytes) -> list[tuple[int, bytes | None]]:
    """The lines of a body that comes in these chunks."""

    async def scenario() -> list[tuple[int, bytes | None]]:
        async def coming() -> Any:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines_of(coming(), 5)]

    return asyncio.run(scenario())


def test_lines_are_read_however_they_are_cut() -> None:
    content = b"one\n\ntwo\r\n   \nthree"
    expected = [(1, b"one"), (3, b"two\r"), (5, b"three")]
    for size in range(1, len(content) + 1):
        chunks = [content[place : place + size] for place in range(0, len(content), size)]
        assert read(*chunks) == expected
    assert read() == []
    assert read(b"one\n") == [(1, b"one")]


def test_line_that_is_too_long_is_told_of_and_forgotten() -> None:
    long = b"x" * BODY_MAX_BYTES
    assert read(long + b"\nb") == [(1, long), (2, b"b")]
    for chunks in ((long + b"y\nb\n",), (long, b"y\nb"), (long, b"y", long, b"\nb")):
        assert read(*chunks) == [(1, TOO_LONG), (2, b"b")]
    assert read(b"a\n", long, b"yy") == [(1, b"a"), (2, TOO_LONG)]
    assert read(long, b"y", b"z" * 10 + b"\n" + long + b"\n") == [(1, TOO_LONG), (2, long)]


def test_line_that_does_not_come_is_waited_for_a_while_only() -> None:
    async def scenario() -> None:
        async def coming() -> Any:
            yield b"one\n"
            await asyncio.Event().wait()

        lines = lines_of(coming(), 0.05)
        assert await anext(lines) == (1, b"one")
        with pytest.raises(BodyTooSlow):
            await anext(lines)

    asyncio.run(scenario())
