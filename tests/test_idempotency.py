"""Idempotency-Key: a request that is repeated makes one task, whoever is asked, and whenever."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.main import create_app
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)

NOON = "2031-07-01T12:00:00Z"
ACCEPTED = ["a", "~!#", "x" * 255, "a,b", 'a"b', 'a"', "a\\b", '"a"', '"!~"', r'"\\\""']
ACCEPTED += ['"' + "x" * 255 + '"', '"' + r"\"" * 255 + '"']
REFUSED = {
    "empty": "",
    "blanks": "  ",
    "empty between quotes": '""',
    "too long": "x" * 256,
    "too long between quotes": '"' + "x" * 256 + '"',
    "a blank": "a b",
    "a blank between quotes": '"a b"',
    "a tab": "a\tb",
    "NUL": "a\0",
    "DEL": "a\x7f",
    "an umlaut": "\xe4",
    "UTF-8": "ключ".encode().decode("latin-1"),
    "one quote": '"',
    "no closing quote": '"a',
    "a closing quote that is escaped": r'"a\"',
    "an escape of something else": r'"a\b"',
    "a quote inside": '"a"b"',
    "parameters": '"a";b=1',
    "two keys": '"a", "b"',
}


def send(client: TestClient, key: str, **members: Any) -> Any:
    """POST a task under a key."""
    raw = [(b"idempotency-key", key.encode("latin-1"))]
    return client.post("/tasks", json=task_body(**members), headers=raw)


def created(client: TestClient, key: str, **members: Any) -> dict[str, Any]:
    """POST a task under a key, and return it."""
    response = send(client, key, **members)
    assert response.status_code == 201, response.text
    return dict(response.json())


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time, each in a thread, and return their results in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def test_repeated_request_yields_the_same_task(store: Backend) -> None:
    body = {"run_at": NOON, "payload": {"a": 1.0, "b": [{"c": 1, "d": True}]}, "max_attempts": 1}
    same: list[dict[str, Any]] = [
        body,
        body | {"run_at": "2031-07-01T14:00:00+02:00"},
        body | {"run_at": "2031-07-01 12:00"},
        body | {"payload": {"b": [{"d": True, "c": 1}], "a": 1.0}},
        body | {"task_id": None, "on_crash": None},
        body | {"max_attempts": 1.0},
    ]
    with running(store) as client:
        task = created(client, "order-7", **body)
        for repetition in same:
            response = send(client, "order-7", **repetition)
            assert (response.status_code, response.json()) == (201, task)
            assert response.headers["Location"] == f"/tasks/{task['task_id']}"
    assert store.count() == 1


def test_key_has_the_same_task_for_ever(store: Backend) -> None:
    # A release that reckoned otherwise would make a second task for a key of the one before.
    with running(store) as client:
        task = created(client, "8e03978e-40d5-43dd-bc93-6894a57f9324")
    assert task["task_id"] == "a519bdee-03f3-5365-8dde-9ec4e542fc1c"


def test_every_key_has_a_task_of_its_own(store: Backend) -> None:
    with running(store) as client:
        ids = {
            created(client, key, run_at=NOON)["task_id"] for key in ("a", "A", "a-", "b", "x" * 255)
        }
        post(client, run_at=NOON)
    assert (len(ids), store.count()) == (5, 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", '"a"'), ('a"b\\c', r'"a\"b\\c"'), ("x" * 255, '"' + "x" * 255 + '"'), (" a\t", "a")],
)
def test_quoted_form_names_the_same_key(store: Backend, one: str, other: str) -> None:
    with running(store) as client:
        task = created(client, one, run_at=NOON)
        assert created(client, other, run_at=NOON) == task
        assert_problem(send(client, other), 422, "IDEMPOTENCY_422")
    assert store.count() == 1


def test_repetition_shows_the_task_as_it_is_now(store: Backend, registry: HandlerRegistry) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(name="count", run_at=later(0))
    with running(store, registry) as client:
        task = created(client, "once", **body)
        ended = finished(client, task["task_id"])
        assert created(client, "once", **body) == ended
        # One that is created later runs later: the repetition has had its chance.
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert (ended["status"], len(runs)) == ("done", 1)


@pytest.mark.parametrize(
    "members",
    [
        {"name": "Probe"},
        {"run_at": "2031-07-01T12:00:00.000001Z"},
        {"payload": {"a": 1.0}},
        {"payload": None},
        {"max_attempts": 2},
        {"on_crash": "fail"},
    ],
    ids=str,
)
def test_another_body_under_the_same_key_is_refused(
    store: Backend, members: dict[str, Any]
) -> None:
    body = {"run_at": NOON, "payload": {"a": 1}}
    with running(store) as client:
        task = created(client, "order-7", **body)
        problem = assert_problem(
            send(client, "order-7", **(body | members)), 422, "IDEMPOTENCY_422"
        )
        assert "'order-7' was used for a task with another body" in problem["detail"]
        assert "choose a new key" in problem["detail"]
        assert [(error["location"], error["field"]) for error in problem["errors"]] == [
            ("header", "Idempotency-Key")
        ]
        assert client.get(f"/tasks/{task['task_id']}").json() == task
        # By its id, the caller's own, it is the conflict that it is for any other task.
        own = task_body(**(body | members), task_id=task["task_id"])
        assert_problem(client.post("/tasks", json=own), 409, "TASK_CREATE_409")
    assert store.count() == 1


def test_refused_request_does_not_use_the_key_up(store: Backend) -> None:
    with running(store) as client:
        assert_problem(send(client, "order-7", name=""), 422, "VALIDATION_422")
        assert created(client, "order-7")["name"] == "probe"


def test_key_of_a_deleted_task_can_be_used_again(store: Backend) -> None:
    with running(store) as client:
        task = created(client, "order-7")
        assert client.delete(f"/tasks/{task['task_id']}").status_code == 200
        again = created(client, "order-7", name="another")
    assert (again["task_id"], again["name"]) == (task["task_id"], "another")


# ------------------------------------------------------------------ at the same time


def test_one_key_makes_one_task_over_all_instances_and_restarts(
    backend: Backend, registry: HandlerRegistry
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    key, body = uuid4().hex, task_body(name="count", run_at=later(0.5))
    with running(backend, registry) as one, running(backend, registry) as other:
        answers = together(
            [lambda client=client: created(client, key, **body) for client in [one, other] * 8]  # type: ignore[misc]
        )
        assert len({(task["task_id"], task["created_at"]) for task in answers}) == 1
        ended = finished(one, answers[0]["task_id"])
    with running(backend, registry) as client:
        assert created(client, key, **body) == ended
        finished(client, post(client, run_at=later(0))["task_id"])
    assert (backend.count("name = 'count'"), len(runs)) == (1, 1)


def test_of_concurrent_different_bodies_one_wins(store: Backend) -> None:
    names = [f"body {number % 4}" for number in range(16)]
    with running(store) as client:
        answers = together(
            [lambda name=name: send(client, "order-7", name=name, run_at=NOON) for name in names]  # type: ignore[misc]
        )
        [winner] = client.get("/tasks").json()
        for name, answer in zip(names, answers, strict=True):
            if name == winner["name"]:
                assert (answer.status_code, answer.json()) == (201, winner)
            else:
                assert_problem(answer, 422, "IDEMPOTENCY_422")


@pytest.mark.parametrize("made", [True, False])
def test_repetition_after_a_lost_commit_makes_one_task_that_runs_once(
    store: Backend, registry: HandlerRegistry, made: bool
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(name="count", run_at=later(0.5))
    with running(store, registry) as client:
        engine = services_of(client).database.engine

        def lose_the_connection(connection: Connection) -> None:
            if connection.get_execution_options().get("immediate"):
                event.remove(engine, "commit", lose_the_connection)
                if made:
                    connection.connection.commit()
                else:
                    connection.connection.rollback()
                raise OperationalError("COMMIT", {}, ConnectionError("the driver's own words"))

        event.listen(engine, "commit", lose_the_connection)
        problem = assert_problem(send(client, "once", **body), 503, "DATABASE_503_UNKNOWN")
        assert "Idempotency-Key or task_id" in problem["detail"]
        assert "If you sent neither, look at GET /tasks first" in problem["detail"]
        task = created(client, "once", **body)
        finished(client, task["task_id"])
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert (store.count("name = 'count'"), len(runs)) == (1, 1)


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_task_that_is_deleted_at_this_very_moment_is_made_again(store: Backend) -> None:
    with running(store) as client:
        engine = services_of(client).database.engine
        former = created(client, "order-7")

        inserts: list[str] = []

        def delete_it(*arguments: Any) -> None:
            if arguments[2].startswith("INSERT INTO scheduled_tasks"):
                inserts.append(arguments[2])
                if len(inserts) == 1:
                    store.sql("DELETE FROM scheduled_tasks")

        event.listen(engine, "after_cursor_execute", delete_it)
        task = created(client, "order-7", name="another")
    assert (task["task_id"], task["name"]) == (former["task_id"], "another")
    assert (store.count(), len(inserts)) == (1, 2)


# ------------------------------------------------------------------ unusable keys


def test_usable_keys_are_taken(store: Backend, subtests: pytest.Subtests) -> None:
    with running(store) as client:
        for key in ACCEPTED:
            with subtests.test(key[:20]):
                created(client, key, run_at=NOON)


def test_unusable_keys_are_refused_by_name(store: Backend, subtests: pytest.Subtests) -> None:
    with running(store) as client:
        for kind, key in REFUSED.items():
            with subtests.test(kind):
                problem = assert_problem(send(client, key), 422, "VALIDATION_422")
                assert "Idempotency-Key must be 1 to 255 visible ASCII" in problem["detail"]
                [error] = problem["errors"]
                assert (error["location"], error["field"]) == ("header", "Idempotency-Key")
    assert store.count() == 0


@pytest.mark.parametrize("second", ["a", "b", ""])
def test_key_that_is_given_twice_is_refused(store: Backend, second: str) -> None:
    with running(store) as client:
        headers = [("Idempotency-Key", "a"), ("idempotency-key", second)]
        response = client.post("/tasks", json=task_body(), headers=headers)
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert problem["detail"] == "Idempotency-Key is given 2 times. Keep one of them."
    assert problem["errors"][0]["field"] == "Idempotency-Key"
    assert store.count() == 0


def test_key_and_task_id_exclude_each_other(store: Backend) -> None:
    with running(store) as client:
        response = send(client, "order-7", task_id=str(uuid4()))
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert "Leave out task_id, or the header" in problem["detail"]
    assert problem["errors"][0]["field"] == "Idempotency-Key"
    assert store.count() == 0


def test_documentation_describes_the_header_as_it_is_taken() -> None:
    operation = create_app().openapi()["paths"]["/tasks"]["post"]
    [parameter] = operation["parameters"]
    assert (parameter["name"], parameter["in"]) == ("Idempotency-Key", "header")
    assert not parameter["required"]
    assert "another body it is refused with 422" in parameter["description"]
    pattern = re.compile(parameter["schema"]["pattern"])
    assert all(pattern.search(key) for key in [*ACCEPTED, *parameter["schema"]["examples"]])
    assert not any(pattern.search(key) for key in REFUSED.values())


def test_repeated_recurring_task_does_not_make_other_times_the_same(store: Backend) -> None:
    ids = [str(uuid4()), str(uuid4())]
    recurring = {"name": "probe", "interval_seconds": 3600, "max_attempts": 2, "task_id": ids[0]}
    once = {"name": "probe", "run_at": "2031-07-01T12:00:00Z", "task_id": ids[1]}
    with running(store) as client:
        for body in (recurring, recurring, once):
            assert client.post("/tasks", json=body).status_code == 201
        response = client.post("/tasks", json=once | {"run_at": "2031-07-02T12:00:00Z"})
        assert_problem(response, 409, "TASK_CREATE_409")
