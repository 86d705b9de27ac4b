"""Export and import: many tasks as lines of JSON, one after the other."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    refused,
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


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_task_that_is_brought_forward_does_not_wait_for_its_old_time(
    store: Backend, on_conflict: str
) -> None:
    with running(store) as client:
        held = post(client, run_at=later(4), unique_key="k")  # So soon, the timer knows it.
        line = task_body(run_at=later(-1), unique_key="k", on_conflict=on_conflict)
        assert counts(imported(client, [line])) == (1, 0, 1, 0, 0)
        assert finished(client, held["task_id"])["started_at"] < held["run_at"]


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


def moved(store: Backend, client: Any, task_id: str, **other: Any) -> dict[str, Any]:
    """Export a task, take it away and import it; return it as it is then."""
    [line] = [line for line in exported(client) if line["task_id"] == task_id]
    store.sql("DELETE FROM scheduled_tasks WHERE task_id = :task_id", task_id=task_id)
    assert counts(imported(client, [line | other])) == (1, 1, 0, 0, 0)
    assert counts(imported(client, [line | other])) == (1, 0, 1, 0, 0)
    return shown(client, task_id)


def instant(seconds: float) -> str:
    """The time in `seconds`, as it is shown."""
    return later(seconds).replace(" ", "T").replace("+00:00", "Z")


@pytest.mark.parametrize(
    "members",
    [
        {"interval_seconds": 3600},
        {"interval_seconds": 3600, "jitter_seconds": 60, "overlap": "allow"},
        {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "max_runs": 9},
    ],
)
def test_recurring_task_keeps_its_next_time_and_its_count(
    backend: Backend, members: dict[str, Any]
) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=None, **members)["task_id"]
        backend.sql("UPDATE scheduled_tasks SET run_count = 4")
        before = shown(client, task_id)
        assert moved(backend, client, task_id) | UNSTORED == before | UNSTORED
        client.post(f"/tasks/{task_id}/pause")
        assert moved(backend, client, task_id)["status"] == "paused"
        client.post(f"/tasks/{task_id}/resume")
        after = shown(client, task_id)
        assert (after["run_at"], after["run_count"]) == (before["run_at"], 4)


def test_recurring_task_runs_no_more_often_for_being_moved(backend: Backend) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=None, interval_seconds=1, max_runs=4)["task_id"]
        client.post(f"/tasks/{task_id}/pause")
        backend.sql("UPDATE scheduled_tasks SET run_count = 2")
        moved(backend, client, task_id, status="scheduled")
        assert finished(client, task_id)["run_count"] == 4
        assert len(client.get(f"/tasks/{task_id}/runs").json()) == 2


@pytest.mark.parametrize(
    ("policy", "catch_up", "made_up"),
    [
        ("run", "latest", [-300]),
        ("run", "all", [-1500, -900, -300]),
        ("run", "none", []),
        ("skip", "all", []),
        ("fail", "latest", []),
    ],
)
def test_times_that_passed_meanwhile_are_those_of_a_downtime(
    backend: Backend, policy: str, catch_up: str, made_up: list[int]
) -> None:
    passed = {seconds: instant(seconds) for seconds in (-1500, -900, -300, 300)}
    with running(backend, recover_past_tasks=policy) as client:
        body = {"run_at": None, "interval_seconds": 600, "catch_up": catch_up}
        line = post(client, **body) | {"run_at": passed[-1500], "run_count": 1}
        task_id = line["task_id"]
        client.delete(f"/tasks/{task_id}")
        assert counts(imported(client, [line])) == (1, 1, 0, 0, 0)

        def has_moved_on() -> bool:
            return bool(shown(client, task_id)["run_at"][:19] == passed[300][:19])

        wait_until(has_moved_on, 10, "the next time")
        runs = client.get(f"/tasks/{task_id}/runs").json()
        times = sorted(run["scheduled_for"][:19] for run in runs)
        assert times == [passed[seconds][:19] for seconds in made_up]
        assert shown(client, task_id)["run_count"] == 1 + len(made_up)


def test_start_that_is_put_off_has_not_passed(store: Backend) -> None:
    with running(store, recover_past_tasks="skip") as client:
        task = post(client, run_at=None, interval_seconds=90_000, jitter_seconds=80_000)
        client.delete(f"/tasks/{task['task_id']}")
        line = task | {"run_at": instant(-1)}
        assert counts(imported(client, [line])) == (1, 1, 0, 0, 0)
        assert shown(client, task["task_id"])["run_at"] == line["run_at"]


def test_recurring_task_without_a_next_time_begins_as_a_new_one(store: Backend) -> None:
    with running(store) as client:
        task = post(client, run_at=None, interval_seconds=3600)
        client.delete(f"/tasks/{task['task_id']}")
        line = task | {"run_at": None, "run_count": None}
        assert counts(imported(client, [line])) == (1, 1, 0, 0, 0)
        made = shown(client, task["task_id"])
        assert (made["run_count"], made["run_at"] > task["run_at"]) == (0, True)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"run_count": -1}, "run_count"),
        ({"run_count": "3"}, "run_count"),
        ({"run_count": 1.5}, "run_count"),
        ({"run_count": True}, "run_count"),
        ({"run_count": 2**40}, "run_count"),
        ({"run_count": 9}, "run_count"),
        ({"run_at": "soon"}, "run_at"),
        ({"run_at": "9999-12-31T23:59:59Z"}, "run_at"),
        ({"run_at": "2041-01-01T00:00:00Z"}, "end_at"),
        ({"recurrence": {"interval_seconds": 600, "end_at": "2020-01-01T00:00:00Z"}}, "end_at"),
    ],
)
def test_recurring_task_that_is_written_wrong_is_refused(
    store: Backend, members: dict[str, Any], field: str
) -> None:
    with running(store, recover_past_tasks="skip") as client:
        body = {"interval_seconds": 600, "max_runs": 9, "end_at": "2040-01-01T00:00:00Z"}
        task = post(client, run_at=None, **body)
        client.delete(f"/tasks/{task['task_id']}")
        result = imported(client, [task | members])
        assert counts(result) == (1, 0, 0, 0, 1)
        [refusal] = result["problems"]
        assert [each["field"] for each in refusal["problem"]["errors"]] == [field]
    assert store.count() == 0


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
        problem = assert_problem(answers[0], 503, "UNAVAILABLE_503")
        assert "500 tasks were stored, of the lines before line 501; nothing" in problem["detail"]
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


def streamed(client: Any, content: bytes, then: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Begin an import, of which comes `content` and `then` what follows; return the answer."""
    sent: list[Any] = []
    coming = [{"type": "http.request", "body": content, "more_body": True}]

    async def receive() -> Any:
        return coming.pop() if coming else await then()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/tasks/import",
        "query_string": b"",
        "headers": [(b"content-type", b"application/x-ndjson")],
        "state": dict(client.app_state),
    }
    client.portal.call(client.app, scope, receive, send)
    start, body = sent
    return [start["status"], json.loads(body["body"])]


async def nothing() -> None:
    """Wait for what does not come."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(("lines", "stored"), [(1_200, 1_000), (3, 0)])
def test_import_that_stalls_says_how_far_it_has_come(
    store: Backend, lines: int, stored: int
) -> None:
    content = (json.dumps(task_body()).encode() + b"\n") * lines
    with running(store) as client:
        services_of(client).batches.upload_seconds = 0.2
        status, problem = streamed(client, content, nothing)
        assert (status, problem["error_code"]) == (408, "BODY_408")
        assert problem["detail"] == (
            f"Nothing came for 0.2 s. {stored} tasks were stored, of the lines before line "
            f"{stored + 1}; nothing of that one and the next ones was. Repeat the import: what "
            "has a task_id, or comes with the same Idempotency-Key, is stored once. Else send only "
            f"the lines from {stored + 1} on."
        )
        with services_of(client).batches.room(64 * 1024 * 1024):
            pass
    assert store.count() == stored


def test_import_whose_client_goes_keeps_what_is_stored(store: Backend) -> None:
    content = (json.dumps(task_body()).encode() + b"\n") * 700

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    with running(store) as client:
        status, problem = streamed(client, content, gone)
        assert (status, problem["detail"]) == (400, "The body ended early.")
        with services_of(client).batches.room(64 * 1024 * 1024):
            pass
    assert store.count() == 500


def test_import_that_waits_ends_with_the_service(store: Backend, tmp_path: Path) -> None:
    stopped = threading.Event()

    def lines() -> Iterator[bytes]:
        yield (json.dumps(task_body()).encode() + b"\n") * 700
        assert stopped.wait(20)

    with service_process(tmp_path, store.environment()) as service, service.start() as client:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, "/tasks/import", content=lines(), headers=NDJSON)
            wait_until(lambda: store.count() == 500)
            service.stop()
            stopped.set()
        assert "timeout graceful shutdown exceeded" not in service.output()
        problem = assert_problem(answer.result(), 503, "UNAVAILABLE_503")
        assert "500 tasks were stored, of the lines before line 501;" in problem["detail"]
    assert store.count() == 500


def test_failure_in_the_middle_says_how_far_it_has_come(store: Backend) -> None:
    with running(store) as client:
        paused = post(client, run_at=FUTURE) | {"status": "paused"}
        client.delete(f"/tasks/{paused['task_id']}")
        lines = [*[task_body()] * 600, paused, *[task_body()] * 10]
        content = "\n".join(map(json.dumps, lines))
        with refused(store, "NEW.status = 'paused'"):
            response = client.post("/tasks/import", content=content, headers=NDJSON)
        problem = assert_problem(response, 500, "INTERNAL_500")
        assert "500 tasks were stored, of the lines before line 501; nothing" in problem["detail"]
    assert store.count() == 500


def test_line_that_is_no_text_is_refused_by_itself(store: Backend) -> None:
    good = json.dumps(task_body()).encode()
    content = b"\n".join([good, b'{"name": "\xff"}', b"\xff\xfe", b"x" * 2_000_000, good])
    with running(store) as client:
        result = client.post("/tasks/import", content=content, headers=NDJSON).json()
        assert counts(result) == (5, 2, 0, 0, 3)
        told = {each["line"]: each["problem"]["detail"] for each in result["problems"]}
        assert told[4] == "The line is longer than 1048576 bytes."
    assert store.count() == 2


# --------------------------------------------------------------------------- lines


def read(*chunks: bytes) -> list[tuple[int, bytes | None]]:
    """The lines of a body that comes in these chunks."""

    async def scenario() -> list[tuple[int, bytes | None]]:
        async def coming() -> Any:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines_of(coming(), 5, asyncio.Event())]

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

        lines = lines_of(coming(), 0.05, asyncio.Event())
        assert await anext(lines) == (1, b"one")
        with pytest.raises(BodyTooSlow):
            await anext(lines)

    asyncio.run(scenario())
