"""POST /tasks/batch: all tasks are created, or none is, and each has its answer."""

from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from job_scheduler.constants import (
    BATCH_MAX_TASKS,
)
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.conftest import POSTGRESQL, SQLITE
from tests.support.app import (
    Backend,
    assert_problem,
    later,
    post,
    running,
    task_body,
)
from tests.support.services import wait_until

NOON = "2031-07-01T12:00:00Z"
only_sqlite = pytest.mark.parametrize("db_url", [SQLITE], indirect=True)
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def some(number: int, **members: Any) -> list[dict[str, Any]]:
    """Bodies of tasks that can be told apart."""
    return [task_body(**{"run_at": NOON, "payload": {"n": n}} | members) for n in range(number)]


def send(client: TestClient, tasks: Any, key: str | None = None) -> Any:
    """POST a batch."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/tasks/batch", json={"tasks": tasks}, headers=headers)


def created(client: TestClient, tasks: Any, key: str | None = None) -> list[dict[str, Any]]:
    """POST a batch and return its tasks."""
    response = send(client, tasks, key)
    assert response.status_code == 201, response.text
    return list(response.json())


def refused(response: Any, status: int = 422, error_code: str = "VALIDATION_422") -> dict[str, str]:
    """Check a refusal, and return what it says of each field of the body."""
    problem = assert_problem(response, status, error_code)
    assert {error["location"] for error in problem["errors"]} == {"body"}
    return {error["field"]: error["detail"] for error in problem["errors"]}


# ------------------------------------------------------------------------- created


def test_answer_has_each_task_as_it_is_shown_in_the_order_of_the_request(store: Backend) -> None:
    wanted = some(30, name="a") + some(30, name="é😀", max_attempts=3, on_crash="hold")
    wanted += [task_body(run_at="2031-07-01 14:00+02:00"), task_body(payload={"a": 1.0, "b": [{}]})]
    with running(store) as client:
        response = send(client, wanted)
        assert response.status_code == 201
        assert response.headers["content-type"] == "application/json"
        answered = response.json()
        for task, asked in zip(answered, wanted, strict=True):
            assert client.get(f"/tasks/{task['task_id']}").json() == task
            # As text: for Python 1 and 1.0 are equal.
            assert repr(task["payload"]) == repr(asked.get("payload"))
            assert (task["name"], task["status"]) == (asked["name"], "scheduled")
        assert answered[60]["run_at"] == NOON
        assert (answered[59]["max_attempts"], answered[59]["on_crash"]) == (3, "hold")
        # A batch of one is answered as a single task is.
        [one] = created(client, some(1))
        assert one.keys() == post(client).keys()
    assert {UUID(task["task_id"]).version for task in answered} == {7}
    assert store.count() == 64


def test_as_many_as_are_allowed_are_created(store: Backend) -> None:
    with running(store) as client:
        answered = created(client, some(BATCH_MAX_TASKS))
        assert [task["payload"]["n"] for task in answered] == list(range(BATCH_MAX_TASKS))
    assert store.count() == len({task["task_id"] for task in answered}) == BATCH_MAX_TASKS


def test_tasks_run_at_their_times_each_once(store: Backend, registry: HandlerRegistry) -> None:
    runs: list[int] = []
    registry.task("note")(lambda n: runs.append(n))
    moments = [later(-1), later(0), later(0.3), later(0.6), later(0.6), later(4)] * 100
    wanted = [
        task_body(name="note", run_at=moment, payload={"n": n}) for n, moment in enumerate(moments)
    ]
    with running(store, registry) as client:
        answered = created(client, wanted)
        wait_until(lambda: store.count("status = 'done'") == len(moments), 30, "the runs")
        started = [
            client.get(f"/tasks/{task['task_id']}").json()["started_at"] for task in answered[:6]
        ]
    assert sorted(runs) == list(range(len(moments)))
    assert all(began >= task["run_at"] for began, task in zip(started, answered, strict=False))
