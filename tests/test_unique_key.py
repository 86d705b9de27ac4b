"""A unique_key: of the tasks with one key only one at a time has not ended."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from job_scheduler.clock import SystemClock
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.exceptions import Refusal
from job_scheduler.identifiers import new_task_id
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    refused,
    running,
    shown,
    task_body,
)
from tests.support.services import wait_until

KEY = "invoice-4711"
FUTURE = "2031-07-01T12:00:00Z"
LATER = "2031-08-01T12:00:00Z"


def again(client: Any, on_conflict: str, status: int = 200, **members: Any) -> dict[str, Any]:
    """Post another task with the key."""
    body = {"name": "probe", "run_at": FUTURE, "unique_key": KEY, "on_conflict": on_conflict}
    response = client.post("/tasks", json=body | members)
    assert response.status_code == status, response.text
    return dict(response.json())


# ------------------------------------------------------------------- reject and return


@pytest.mark.parametrize("status", ["scheduled", "paused", "running"])
def test_second_task_with_a_key_is_refused_while_the_first_has_not_ended(
    store: Backend, status: str
) -> None:
    with running(store) as client:
        instance_id = store.sql("SELECT instance_id FROM instances")[0]["instance_id"]
        first = store.insert_task(status=status, unique_key=KEY, instance_id=instance_id)
        response = client.post("/tasks", json=task_body(unique_key=KEY))
        problem = assert_problem(response, 409, "TASK_UNIQUE_409")
        assert f"{first} has the unique_key '{KEY}', and is {status}" in problem["detail"]
        assert problem["errors"][0]["field"] == "unique_key"
        assert again(client, "reject", 409)["detail"] == problem["detail"]
        assert again(client, "return")["task_id"] == first
        post(client, unique_key="another")
        post(client, on_conflict="reject")  # The default may be named.
    assert store.count() == 3


@pytest.mark.parametrize("status", ["done", "failed", "unknown", "cancelled"])
def test_key_is_free_when_the_task_has_ended(store: Backend, status: str) -> None:
    with running(store) as client:
        first = store.insert_task(status=status, unique_key=KEY)
        task = post(client, unique_key=KEY)
        assert task["task_id"] != first
        assert task["unique_key"] == KEY


def test_present_task_is_the_answer(backend: Backend) -> None:
    with running(backend) as client:
        first = post(client, run_at=FUTURE, unique_key=KEY, payload={"a": 1})
        body = {"name": "other", "run_at": LATER, "unique_key": KEY, "on_conflict": "return"}
        for _ in range(2):
            response = client.post("/tasks", json=body)
            assert (response.status_code, response.json()) == (200, first)
            assert response.headers["Location"] == f"/tasks/{first['task_id']}"
        client.delete(f"/tasks/{first['task_id']}")
        assert again(client, "return", 201)["task_id"] != first["task_id"]
    assert backend.count() == 1


@pytest.mark.parametrize("on_conflict", ["return", "replace", "reschedule"])
def test_of_many_requests_at_once_one_makes_the_task(backend: Backend, on_conflict: str) -> None:
    with running(backend) as client, ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(
                lambda number: client.post(
                    "/tasks",
                    json={
                        "name": f"probe-{number}",
                        "run_at": FUTURE,
                        "unique_key": KEY,
                        "on_conflict": on_conflict,
                    },
                ),
                range(24),
            )
        )
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 23 + [201]
        assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert backend.count() == 1


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_key_that_gets_free_meanwhile_is_taken(store: Backend) -> None:
    store.insert_task(unique_key=KEY)
    wanted = TaskCreate(name="probe", run_at=FUTURE, unique_key=KEY)
    new = NewTask(new_task_id(SystemClock().now()), wanted, parse_time(FUTURE))
    with store.database() as database:

        def end(*arguments: Any) -> None:
            if arguments[2].startswith("INSERT"):
                store.sql(
                    "UPDATE scheduled_tasks SET status = 'done' WHERE task_id <> :id",
                    id=new.task_id,
                )

        event.listen(database.engine, "after_cursor_execute", end)
        with database.writing() as connection:
            [task] = create_tasks(connection, [new])
    assert not isinstance(task, Refusal)
    assert task["task_id"] == new.task_id
    assert store.count("status = 'scheduled'") == 1


def test_repeated_request_is_recognised_though_its_task_has_ended(store: Backend) -> None:
    with running(store) as client:
        body = task_body(unique_key=KEY)
        first, second = (
            client.post("/tasks", json=body, headers={"Idempotency-Key": "one"}) for _ in range(2)
        )
        assert second.status_code == 201
        assert second.json() == first.json()
        client.post(f"/tasks/{first.json()['task_id']}/cancel")
        third = client.post("/tasks", json=body, headers={"Idempotency-Key": "one"}).json()
        assert (third["task_id"], third["status"]) == (first.json()["task_id"], "cancelled")
        response = client.post(
            "/tasks", json=body | {"name": "x"}, headers={"Idempotency-Key": "one"}
        )
        assert_problem(response, 422, "IDEMPOTENCY_422")
        post(client, unique_key=KEY)
        response = client.post("/tasks", json=body, headers={"Idempotency-Key": "two"})
        assert_problem(response, 409, "TASK_UNIQUE_409")


# ------------------------------------------------------------------------- replace


def test_task_becomes_what_is_asked_for_under_its_id(backend: Backend) -> None:
    with running(backend) as client:
        first = post(
            client, run_at=FUTURE, unique_key=KEY, payload={"a": 1}, priority=2, tags=["x"]
        )
        task = again(client, "replace", run_at=LATER, name="other", max_attempts=3)
        expected = first | {
            "name": "other",
            "run_at": LATER,
            "max_attempts": 3,
            "payload": None,
            "priority": 0,
            "tags": None,
            "updated_at": task["updated_at"],
        }
        assert task == expected == shown(client, first["task_id"])
    assert backend.count() == 1


def test_another_time_begins_anew_and_the_same_one_does_not(store: Backend) -> None:
    with running(store) as client:
        run_at = f"{FUTURE[:-1].replace('T', ' ')}.000000"
        begun: dict[str, Any] = {
            "attempt": 2,
            "max_attempts": 5,
            "retry_at": later(3600),
            "run_count": None,
        }
        task_id = store.insert_task(
            unique_key=KEY, run_at=run_at, missed_at=later(-30), result='"waits"', **begun
        )
        same = again(client, "replace", max_attempts=6)
        assert (same["attempt"], same["max_attempts"]) == (2, 6)
        assert None not in (same["retry_at"], same["missed_at"], same["result"])
        moved = again(client, "replace", run_at=LATER)
        assert (moved["attempt"], moved["run_at"], moved["task_id"]) == (0, LATER, task_id)
        assert {moved[name] for name in ("retry_at", "missed_at", "result")} == {None}


def test_paused_task_stays_paused(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=FUTURE, unique_key=KEY)["task_id"]
        client.post(f"/tasks/{task_id}/pause")
        for on_conflict in ("replace", "reschedule"):
            assert again(client, on_conflict, run_at=LATER)["status"] == "paused"


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_it_is_too_late_for_what_is_running(store: Backend, on_conflict: str) -> None:
    with running(store) as client:
        instance_id = store.sql("SELECT instance_id FROM instances")[0]["instance_id"]
        store.insert_task(status="running", unique_key=KEY, instance_id=instance_id)
        problem = again(client, on_conflict, 409)
        assert problem["error_code"] == "TASK_UNIQUE_409"
        assert f"is running: too late to {on_conflict} it." in problem["detail"]


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_task_that_is_brought_forward_runs_at_once(backend: Backend, on_conflict: str) -> None:
    with running(backend) as client:
        for seconds in (3, 3600):  # held by the timer already, and not
            task_id = post(client, run_at=later(seconds), unique_key=KEY)["task_id"]
            assert again(client, on_conflict, run_at=later(-1))["task_id"] == task_id
            task = finished(client, task_id)
            assert task["status"] == "done"
            assert task["started_at"] < later(1).replace(" ", "T")


def test_schedule_that_is_declared_again_keeps_its_rhythm(store: Backend) -> None:
    with running(store) as client:
        schedule: dict[str, Any] = {"run_at": None, "interval_seconds": 3600, "max_runs": 5}
        first = again(client, "replace", 201, **schedule)
        store.sql(
            "UPDATE scheduled_tasks SET run_count = 3, run_at = :at, retry_at = :at",
            at=f"{FUTURE[:-1].replace('T', ' ')}.000000",
        )
        same = again(client, "replace", payload={"a": 1}, **schedule)
        assert same["task_id"] == first["task_id"]
        assert (same["run_at"], same["run_count"], same["payload"]) == (FUTURE, 3, {"a": 1})
        assert same["retry_at"] == FUTURE
        other = again(client, "replace", **(schedule | {"interval_seconds": 7200}))
        assert (other["run_count"], other["retry_at"]) == (0, None)
        assert other["run_at"] < FUTURE
        assert other["recurrence"]["interval_seconds"] == 7200
        once = again(client, "replace")
        assert (once["recurrence"], once["run_count"], once["run_at"]) == (None, None, FUTURE)


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_schedule_does_not_get_fewer_runs_than_it_has_had(store: Backend, on_conflict: str) -> None:
    with running(store) as client:
        schedule: dict[str, Any] = {"run_at": None, "interval_seconds": 3600}
        first = again(client, "reject", 201, **schedule)
        store.sql("UPDATE scheduled_tasks SET run_count = 3")
        present = shown(client, first["task_id"])
        asked = {"name": "probe", "unique_key": KEY, "on_conflict": on_conflict} | schedule
        fewer = asked | {"max_runs": 3}
        change = client.patch(f"/tasks/{first['task_id']}", json={"max_runs": 3})
        expected = assert_problem(change, 422, "VALIDATION_422")
        for headers in ({}, {"Idempotency-Key": "one"}):
            response = client.post("/tasks", json=fewer, headers=headers)
            assert assert_problem(response, 422, "VALIDATION_422") == expected
        batch: dict[str, Any] = {"tasks": [task_body(), fewer]}
        for headers in ({}, {"Idempotency-Key": "two"}):
            response = client.post("/tasks/batch", json=batch, headers=headers)
            problem = assert_problem(response, 422, "VALIDATION_422")
            assert [each["field"] for each in problem["errors"]] == ["tasks.1.max_runs"]
        response = client.post("/tasks/batch?partial=true", json=batch)
        assert [each["status"] for each in response.json()] == [201, 422]
        assert response.json()[1]["problem"] == expected
        response = client.post(
            "/tasks/import",
            content=json.dumps(fewer),
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert [each["problem"] for each in response.json()["problems"]] == [expected]
        assert shown(client, first["task_id"]) == present
        assert again(client, on_conflict, max_runs=4, **schedule)["run_count"] == 3
        anew = again(client, on_conflict, max_runs=1, run_at=None, interval_seconds=7200)
        assert (anew["run_count"], anew["recurrence"]["max_runs"]) == (0, 1)
    assert store.count() == 2


# ---------------------------------------------------------------------- reschedule


def test_task_takes_over_the_time_alone(backend: Backend) -> None:
    with running(backend) as client:
        first = post(client, run_at=FUTURE, unique_key=KEY, payload={"a": 1}, start_before=LATER)
        task = again(client, "reschedule", run_at=LATER, name="other", payload={"b": 2})
        expected = {"run_at": LATER, "start_before": None, "updated_at": task["updated_at"]}
        assert task == first | expected
        task = again(client, "reschedule", run_at=None, cron="0 9 * * MON")
        assert (task["name"], task["payload"], task["run_count"]) == ("probe", {"a": 1}, 0)
        assert task["recurrence"]["cron"] == "0 9 * * MON"
        same = again(client, "reschedule", run_at=None, cron="0 9 * * MON")
        assert same["run_at"] == task["run_at"]
        task = again(client, "reschedule")
        assert (task["recurrence"], task["run_count"], task["run_at"]) == (None, None, FUTURE)


# --------------------------------------------------------------------------- batches


def test_batch_is_refused_for_a_key_that_is_taken(store: Backend) -> None:
    with running(store) as client:
        post(client, run_at=FUTURE, unique_key=KEY)
        tasks = [task_body(), task_body(unique_key=KEY)]
        for headers in ({}, {"Idempotency-Key": "batch"}):
            response = client.post("/tasks/batch", json={"tasks": tasks}, headers=headers)
            problem = assert_problem(response, 409, "TASK_UNIQUE_409")
            assert [each["field"] for each in problem["errors"]] == ["tasks.1.unique_key"]
        assert store.count() == 1
        for tasks in ([task_body()], [task_body(), task_body(unique_key="free")]):
            response = client.post("/tasks/batch", json={"tasks": tasks}, headers=headers)
            assert response.status_code == (201 if len(tasks) == 1 else 422)
    assert store.count() == 2


def test_batch_may_hold_the_present_task(store: Backend) -> None:
    with running(store) as client:
        present = post(client, run_at=FUTURE, unique_key=KEY)
        tasks = [task_body(), task_body(unique_key=KEY, on_conflict="return")]
        key = {"Idempotency-Key": "batch"}
        first, second = (
            client.post("/tasks/batch", json={"tasks": tasks}, headers=key) for _ in range(2)
        )
        assert first.status_code == second.status_code == 201
        assert first.json()[1] == second.json()[1] == present
        assert first.json()[0] == second.json()[0]
    assert store.count() == 2


def test_batch_names_a_key_once(store: Backend) -> None:
    with running(store) as client:
        tasks = [task_body(unique_key=KEY), task_body(), task_body(unique_key=KEY)]
        response = client.post("/tasks/batch", json={"tasks": tasks})
        problem = assert_problem(response, 422, "VALIDATION_422")
        assert problem["errors"] == [
            {
                "location": "body",
                "field": "tasks.2.unique_key",
                "detail": "The same unique_key as that of tasks.0.",
            }
        ]


# --------------------------------------------------------------- keys that come later


def test_task_gets_a_key_that_is_free_and_none_that_is_taken(backend: Backend) -> None:
    with running(backend) as client:
        holder = post(client, run_at=FUTURE, unique_key=KEY)["task_id"]
        task_id = post(client, run_at=FUTURE)["task_id"]
        response = client.patch(f"/tasks/{task_id}", json={"unique_key": KEY, "priority": 3})
        problem = assert_problem(response, 409, "TASK_UNIQUE_409")
        assert f"has the unique_key of task {task_id}, and has not ended" in problem["detail"]
        assert shown(client, task_id)["priority"] == 0
        response = client.patch(f"/tasks/{holder}", json={"unique_key": None})
        assert response.json()["unique_key"] is None
        response = client.patch(f"/tasks/{task_id}", json={"unique_key": KEY})
        assert response.json()["unique_key"] == KEY
        response = client.patch(f"/tasks/{task_id}", json={"on_conflict": "return"})
        assert_problem(response, 422, "VALIDATION_422")


def test_other_violations_are_no_matter_of_keys(store: Backend) -> None:
    with running(store) as client:
        task_id = store.insert_task(status="failed", unique_key=KEY)
        with refused(store, "NEW.status = 'scheduled'"):
            assert_problem(client.post(f"/tasks/{task_id}/retry"), 500, "INTERNAL_500")


def test_task_that_failed_is_not_run_again_beside_another_of_its_key(backend: Backend) -> None:
    with running(backend) as client:
        failed = [
            backend.insert_task(status="failed", unique_key=KEY, finished_at=later(-seconds))
            for seconds in (10, 30, 20)
        ]
        free = backend.insert_task(status="failed", finished_at=later(-5))
        holder = post(client, run_at=FUTURE, unique_key=KEY)["task_id"]
        response = client.post(f"/tasks/{failed[1]}/retry")
        assert_problem(response, 409, "TASK_UNIQUE_409")
        assert shown(client, failed[1])["status"] == "failed"
        for dry_run in (True, False):
            answer = client.post("/tasks/retry", json={"dry_run": dry_run}).json()
            assert answer["tasks"] == 1
        finished(client, free)
        client.delete(f"/tasks/{holder}")
        for dry_run in (True, False):
            answer = client.post("/tasks/retry", json={"dry_run": dry_run}).json()
            assert answer["tasks"] == 1
        finished(client, failed[0])
        assert [shown(client, task_id)["attempt"] for task_id in failed] == [1, 0, 0]
        assert client.post(f"/tasks/{failed[2]}/retry").status_code == 200


def test_occurrences_that_are_tasks_of_their_own_have_no_key(
    backend: Backend, registry: HandlerRegistry
) -> None:
    with running(backend, registry=registry) as client:
        again(client, "reject", 201, run_at=None, interval_seconds=1, overlap="allow")
        wait_until(lambda: backend.count("status = 'done'") >= 2)
    assert backend.count("unique_key IS NOT NULL") == 1


# -------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"on_conflict": "return"}, "on_conflict"),
        ({"unique_key": KEY, "on_conflict": "ignore"}, "on_conflict"),
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": "x" * 256}, "unique_key"),
        ({"unique_key": 7}, "unique_key"),
    ],
)
def test_bad_keys_are_refused(store: Backend, members: dict[str, Any], field: str) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(**members))
        problem = assert_problem(response, 422, "VALIDATION_422")
        assert [each["field"] for each in problem["errors"]] == [field]
    assert store.count() == 0
