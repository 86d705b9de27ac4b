"""POST /tasks: a task is created, or nothing of it is left behind."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from job_scheduler.constants import UnknownTasks
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import (
    Backend,
    StubbornScheduler,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until

REFUSE_INSERTS = {
    "sqlite": (
        "CREATE TRIGGER refuse BEFORE INSERT ON scheduled_tasks WHEN NEW.name = 'refused' "
        "BEGIN SELECT RAISE(ABORT, 'the own words of the database'); END",
        "DROP TRIGGER refuse",
    ),
    "postgresql": (
        "ALTER TABLE scheduled_tasks ADD CONSTRAINT refuse CHECK (name <> 'refused')",
        "ALTER TABLE scheduled_tasks DROP CONSTRAINT refuse",
    ),
}


@contextmanager
def inserts_refused(store: Backend) -> Iterator[None]:
    """Let the database refuse tasks that are named `refused`."""
    begin, end = REFUSE_INSERTS[store.dialect]
    store.sql(begin)
    try:
        yield
    finally:
        store.sql(end)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time, each in a thread, and return their results in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def test_created_task_is_stored_scheduled_and_runs(
    backend: Backend, registry: HandlerRegistry
) -> None:
    registry.task("greet")(lambda name: f"Hello {name}")
    with running(backend, registry) as client:
        task = post(client, name="greet", run_at=later(0.3), payload={"name": "Ada"})
        assert task["status"] == "scheduled"
        assert client.get(f"/tasks/{task['task_id']}").json()["name"] == "greet"
        ended = finished(client, task["task_id"])
    assert (ended["status"], ended["result"]) == ("done", "Hello Ada")
    assert ended["started_at"] >= ended["run_at"]


def test_answer_is_the_whole_task_and_its_address(store: Backend) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(name="probe", payload={"a": 1}))
        assert response.status_code == 201
        task = response.json()
        assert response.headers["Location"] == f"/tasks/{task['task_id']}"
        assert client.get(response.headers["Location"]).json() == task
    assert UUID(task["task_id"]).version == 7
    age = parse_time(task["updated_at"]) - parse_time(task.pop("created_at"))
    assert timedelta(0) <= age < timedelta(seconds=1)
    assert parse_time(task.pop("updated_at")) < parse_time(task.pop("run_at"))
    assert UUID(task.pop("task_id"))
    assert task == {
        "name": "probe",
        "status": "scheduled",
        "result": None,
        "payload": {"a": 1},
        "attempt": 0,
        "retry_at": None,
        "instance_id": None,
        "started_at": None,
        "finished_at": None,
        "missed_at": None,
        "max_attempts": 1,
        "on_crash": None,
        "retry_delay": None,
        "retry_max_delay": None,
        "start_before": None,
        "timeout": None,
        "priority": 0,
        **dict.fromkeys(("concurrency_key", "max_running", "blocked_by", "webhook", "command")),
        **dict.fromkeys(("on_done", "on_failed", "caused_by", "progress", "cancel_requested_at")),
        **dict.fromkeys(("recurrence", "run_count", "last_status")),
        "tags": None,
        "unique_key": None,
    }


def test_every_notation_of_a_time_comes_back_in_utc_with_z(
    store: Backend, subtests: pytest.Subtests
) -> None:
    notations = {
        "2031-07-01T10:00:00Z": "2031-07-01T10:00:00Z",
        "2031-07-01T10:00:00": "2031-07-01T10:00:00Z",
        "2031-07-01T10:00": "2031-07-01T10:00:00Z",
        "2031-07-01 10:00:00": "2031-07-01T10:00:00Z",
        "2031-07-01t10:00:00z": "2031-07-01T10:00:00Z",
        "2031-07-01T10:00:00+00:00": "2031-07-01T10:00:00Z",
        "2031-07-01T10:00:00-00:00": "2031-07-01T10:00:00Z",
        "2031-07-01T12:00:00+02:00": "2031-07-01T10:00:00Z",
        "2031-06-30T20:30:00.25-13:30": "2031-07-01T10:00:00.250000Z",
        "2031-07-01T10:00:00.123456Z": "2031-07-01T10:00:00.123456Z",
        # What is finer than a microsecond is cut off.
        "2031-07-01T10:00:00.123456999Z": "2031-07-01T10:00:00.123456Z",
        "2031-07-01T10:00:59.999999Z": "2031-07-01T10:00:59.999999Z",
        "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999999Z",
    }
    with running(store) as client:
        for given, expected in notations.items():
            with subtests.test(given):
                task = post(client, run_at=given)
                shown = client.get(f"/tasks/{task['task_id']}").json()
                assert (task["run_at"], shown["run_at"]) == (expected, expected)


@pytest.mark.parametrize(
    ("run_at", "shown"),
    [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("1969-12-31T23:59:59", "1969-12-31T23:59:59Z"),
        ("2001-01-01T00:00:00+01:00", "2000-12-31T23:00:00Z"),
    ],
)
def test_task_of_the_past_runs_at_once(store: Backend, run_at: str, shown: str) -> None:
    with running(store) as client:
        created = post(client, run_at=run_at)
        task = finished(client, created["task_id"])
    assert (task["status"], task["run_at"]) == ("done", shown)
    delay = parse_time(task["started_at"]) - parse_time(task["created_at"])
    assert delay < timedelta(seconds=5)


def test_all_times_of_a_finished_task_are_utc_with_z(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("quick")(lambda: None)
    with running(store, registry) as client:
        task_id = post(client, name="quick", run_at=later(0))["task_id"]
        task = finished(client, task_id)
        [listed] = client.get("/tasks").json()
    assert listed == task
    moments = [
        parse_time(task[moment])
        for moment in ("run_at", "created_at", "started_at", "finished_at", "updated_at")
    ]
    assert moments == sorted(moments)
    assert moments[-1] - moments[0] < timedelta(seconds=10)


def test_names_and_payloads_come_back_as_they_were_sent(
    store: Backend, subtests: pytest.Subtests
) -> None:
    deep: Any = "bottom"
    for _ in range(98):
        deep = [deep]
    names = ["x" * 255, "é😀" * 100, " a b ", "'; DROP TABLE scheduled_tasks; --", "a\tb\n"]
    payloads: list[dict[str, Any] | None] = [
        None,
        {},
        {"": None, "ключ": ["é", "\u2028", "😀", "\x01\x7f"]},
        {"integers": [2**63 - 1, -(2**63), 0], "floats": [1.0, 0.1, 1e308, -5e-324]},
        {"types": [True, False, None, "1", 1, 1.0, [], {}]},
        {"deep": deep},
        {"long": "x" * 1_000_000},
    ]
    with running(store) as client:
        for name in names:
            with subtests.test(name[:20]):
                created = post(client, name=name)
                assert client.get(f"/tasks/{created['task_id']}").json()["name"] == name
        for payload in payloads:
            with subtests.test(str(payload)[:40]):
                created = post(client, payload=payload)
                shown = client.get(f"/tasks/{created['task_id']}").json()["payload"]
                # As text: for Python 1, 1.0 and True are equal.
                assert repr(shown) == repr(payload)


@pytest.mark.parametrize(("given", "shown"), [(1, 1), (1000, 1000), (3.0, 3)])
def test_number_of_attempts_is_a_whole_number(store: Backend, given: float, shown: int) -> None:
    with running(store) as client:
        assert repr(post(client, max_attempts=given)["max_attempts"]) == repr(shown)


@pytest.mark.parametrize("given", [0, -1, 1001, 1.5, 1e300, True, "3"])
def test_other_numbers_of_attempts_are_refused(store: Backend, given: Any) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(max_attempts=given))
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert problem["errors"][0]["field"] == "max_attempts"
    assert store.count() == 0


# ---------------------------------------------------------------- when it fails


@pytest.mark.parametrize("ahead", [2, 4.5])
def test_scheduler_that_refuses_leaves_nothing_behind(store: Backend, ahead: float) -> None:
    scheduler = StubbornScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        services = services_of(client)
        response = client.post("/tasks", json=task_body(run_at=later(ahead)))
        problem = assert_problem(response, 500, "TASK_CREATE_500")
        assert "could not be scheduled" in problem["detail"]
        assert "own words" not in response.text
        assert (store.count(), len(services.timer), scheduler.get_jobs()) == (0, 0, [])
        scheduler.willing = True
        task_id = post(client, run_at=later(0.3))["task_id"]
        assert finished(client, task_id)["status"] == "done"
    assert store.count() == 1


def test_scheduler_that_stands_still_accepts_no_task(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        scheduler.pause()
        for run_at in (later(-1), later(1), later(3600)):
            response = client.post("/tasks", json=task_body(run_at=run_at))
            assert_problem(response, 500, "TASK_CREATE_500")
        assert store.count() == 0
        scheduler.resume()
        assert post(client)["status"] == "scheduled"


def test_task_beyond_the_lookahead_needs_no_scheduler_yet(store: Backend) -> None:
    with running(store, scheduler=StubbornScheduler) as client:
        task_id = post(client, run_at=later(60))["task_id"]
        assert task_id not in services_of(client).timer
    assert store.row(task_id)["status"] == "scheduled"


def test_database_that_refuses_leaves_nothing_behind(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with inserts_refused(store), running(store, scheduler=lambda: scheduler) as client:
        for run_at in (later(-1), later(2), later(3600)):
            response = client.post("/tasks", json=task_body(name="refused", run_at=run_at))
            assert_problem(response, 500, "TASK_CREATE_500")
            assert "own words" not in response.text
        assert (store.count(), len(services_of(client).timer), scheduler.get_jobs()) == (0, 0, [])


def test_tasks_that_the_database_refuses_fail_alone(store: Backend) -> None:
    names = ["refused", "probe"] * 6
    with inserts_refused(store), running(store) as client:

        def create(name: str) -> int:
            return client.post("/tasks", json=task_body(name=name)).status_code

        answers = together([lambda name=name: create(name) for name in names])  # type: ignore[misc]
        assert Counter(zip(names, answers, strict=True)) == {("refused", 500): 6, ("probe", 201): 6}
        assert store.count() == 6


def test_unknown_name_is_rejected_where_the_configuration_asks_for_it(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("greet")(lambda: None)
    with running(store, registry, unknown_tasks=UnknownTasks.Reject) as client:
        response = client.post("/tasks", json=task_body(name="gret\u00a0"))
        problem = assert_problem(response, 422, "TASK_NAME_422")
        assert "greet, send_report" in problem["detail"]
        [field] = problem["errors"]
        assert (field["location"], field["field"]) == ("body", "name")
        assert store.count() == 0
        assert post(client, name="greet")["name"] == "greet"
        assert post(client, name="send_report")["name"] == "send_report"


# ------------------------------------------------------------ the caller's own id


def test_repeated_request_yields_the_same_task(store: Backend) -> None:
    task_id = str(uuid4())
    body = {
        "task_id": task_id,
        "name": "probe",
        "run_at": "2031-07-01T10:00:00Z",
        "payload": {"a": 1.0, "b": [{"c": 1, "d": True}]},
    }
    same = [
        body,
        body | {"task_id": task_id.upper()},
        body | {"run_at": "2031-07-01T12:00:00+02:00"},
        body | {"run_at": "2031-07-01T10:00"},
        body | {"payload": {"b": [{"d": True, "c": 1}], "a": 1.0}},
    ]
    with running(store) as client:
        created = post(client, **body)
        assert created["task_id"] == task_id
        for repetition in same:
            response = client.post("/tasks", json=repetition)
            assert (response.status_code, response.json()) == (201, created)
            assert response.headers["Location"] == f"/tasks/{task_id}"
    assert store.count() == 1


def test_repeated_request_shows_the_task_as_it_is_now(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(task_id=str(uuid4()), name="count", run_at=later(0))
    with running(store, registry) as client:
        post(client, **body)
        ended = finished(client, body["task_id"])
        assert post(client, **body) == ended
        assert post(client, **body)["status"] == "done"
        # One that is created later runs later: the repetitions have had their chance.
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert len(runs) == 1


def test_another_body_under_the_same_id_is_refused(
    store: Backend, subtests: pytest.Subtests
) -> None:
    body = task_body(task_id=str(uuid4()), run_at="2031-07-01T10:00:00Z", payload={"a": 1})
    others: dict[str, dict[str, Any]] = {
        "name": {"name": "Probe"},
        "run_at": {"run_at": "2031-07-01T10:00:00.000001Z"},
        "run_at, due now": {"run_at": later(0)},
        "payload, a float": {"payload": {"a": 1.0}},
        "payload, a boolean": {"payload": {"a": True}},
        "payload, text": {"payload": {"a": "1"}},
        "payload, more": {"payload": {"a": 1, "b": None}},
        "payload, empty": {"payload": {}},
        "payload, none": {"payload": None},
    }
    with running(store) as client:
        created = post(client, **body)
        for difference, members in others.items():
            with subtests.test(difference):
                response = client.post("/tasks", json=body | members)
                problem = assert_problem(response, 409, "TASK_CREATE_409")
                assert body["task_id"] in problem["detail"]
                assert "choose a new task_id" in problem["detail"]
        assert client.get(f"/tasks/{body['task_id']}").json() == created
        assert len(services_of(client).timer) == 0
    assert store.count() == 1


def test_concurrent_repetitions_make_one_task_that_runs_once(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(task_id=str(uuid4()), name="count", run_at=later(0.5))
    with running(store, registry) as client:
        answers = together([lambda: client.post("/tasks", json=body)] * 16)
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["created_at"] for answer in answers}) == 1
        finished(client, body["task_id"])
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert (store.count("name = 'count'"), len(runs)) == (1, 1)


@pytest.mark.parametrize("made", [True, False])
def test_repetition_after_a_lost_commit_makes_one_task_that_runs_once(
    store: Backend, registry: HandlerRegistry, made: bool
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(task_id=str(uuid4()), name="count", run_at=later(0.5))
    with running(store, registry) as client:
        engine = services_of(client).database.engine

        def lose_the_connection(connection: Connection) -> None:
            event.remove(engine, "commit", lose_the_connection)
            if made:
                connection.connection.commit()
            else:
                connection.connection.rollback()
            raise OperationalError("COMMIT", {}, ConnectionError("in the own words of the driver"))

        event.listen(engine, "commit", lose_the_connection)
        response = client.post("/tasks", json=body)
        problem = assert_problem(response, 503, "DATABASE_503_UNKNOWN")
        assert "with the same Idempotency-Key or task_id: it is done once" in problem["detail"]
        assert int(response.headers["Retry-After"]) > 0
        assert "own words" not in response.text
        assert store.count() == (1 if made else 0)
        assert post(client, **body)["task_id"] == body["task_id"]
        finished(client, body["task_id"])
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert (store.count("name = 'count'"), len(runs)) == (1, 1)


def test_null_is_as_good_as_left_out(store: Backend) -> None:
    hook = {"url": "https://example.com/"}
    body = {"name": "probe", "run_at": "2031-07-01T10:00:00Z", "on_done": hook}
    with running(store) as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        hooked = dict.fromkeys(schemas["Hook"]["properties"]) | hook
        null = dict.fromkeys(schemas["TaskCreate"]["properties"]) | body | {"on_done": hooked}
        assert sum(value is None for value in null.values()) > 25
        plain, given = post(client, **body), post(client, **null)
        webhook = dict.fromkeys(schemas["Webhook"]["properties"]) | hook
        by_webhook = post(client, webhook=webhook)["webhook"]
        kept = {"task_id", "created_at", "updated_at"}
        assert {name: given[name] for name in given.keys() - kept} == {
            name: plain[name] for name in plain.keys() - kept
        }
        assert (given["priority"], by_webhook) == (0, hook)
        replay = dict.fromkeys(schemas["Replay"]["properties"])
        assert client.post("/tasks/retry", json=replay).json()["tasks"] == 0
        for schema in ("TaskCreate", "Hook", "Webhook", "Replay"):
            required = schemas[schema].get("required", [])
            for name, member in schemas[schema]["properties"].items():
                takes_null = {"type": "null"} in member.get("anyOf", []) or name == "body"
                assert takes_null is (name not in required), (schema, name)


def test_of_concurrent_different_bodies_one_wins(store: Backend) -> None:
    task_id = str(uuid4())
    bodies = [task_body(task_id=task_id, name=f"body {number % 4}") for number in range(16)]
    bodies = [body | {"run_at": "2031-07-01T10:00:00Z"} for body in bodies]
    with running(store) as client:
        answers = together(
            [lambda body=body: client.post("/tasks", json=body) for body in bodies]  # type: ignore[misc]
        )
        winner = client.get(f"/tasks/{task_id}").json()
        for body, answer in zip(bodies, answers, strict=True):
            if body["name"] == winner["name"]:
                assert (answer.status_code, answer.json()) == (201, winner)
            else:
                assert_problem(answer, 409, "TASK_CREATE_409")
    assert store.count() == 1


def test_id_of_a_deleted_task_can_be_used_again(store: Backend) -> None:
    body = task_body(task_id=str(uuid4()), run_at=later(3))
    with running(store) as client:
        post(client, **body)
        assert client.delete(f"/tasks/{body['task_id']}").status_code == 200
        again = post(client, **body | {"name": "another", "run_at": later(0.2)})
        assert finished(client, again["task_id"])["name"] == "another"
    wait_until(lambda: store.count() == 1)
