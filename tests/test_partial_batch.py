"""POST /tasks/batch?partial=true: what can be stored is, and each task is told of."""

from typing import Any
from uuid import uuid4

import pytest

from job_scheduler.constants import UnknownTasks
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    shown,
    task_body,
)

EARLIER = "2031-06-01T12:00:00Z"
NOON = "2031-07-01T12:00:00Z"
LATER = "2031-08-01T12:00:00Z"


def part(client: Any, tasks: list[Any], **headers: str) -> list[dict[str, Any]]:
    """Post a batch of which is stored what can be; return what became of each."""
    response = client.post("/tasks/batch?partial=true", json={"tasks": tasks}, headers=headers)
    assert response.status_code == 200, response.text
    return list(response.json())


def test_what_can_be_stored_is_and_each_is_told_of(backend: Backend) -> None:
    task_id = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
    with running(backend, unknown_tasks=UnknownTasks.Reject) as client:
        taken = post(client, name="send_report", run_at=NOON, task_id=task_id)
        held = post(client, name="send_report", run_at=NOON, unique_key="held")
        good = {"name": "send_report", "run_at": NOON}
        outcomes = part(
            client,
            [
                good,
                good | {"run_at": "tomorrow", "priority": 9},
                None,
                good | {"name": "unknown"},
                good | {"task_id": task_id},
                good | {"task_id": task_id, "priority": 2},
                good | {"unique_key": "held"},
                good | {"unique_key": "held2"},
                good | {"unique_key": "held2"},
                good | {"payload": {"hours": "many"}},
            ],
        )
        assert [each["status"] for each in outcomes] == [
            *(201, 422, 422, 422, 201),
            *(422, 409, 201, 409, 422),
        ]
        assert outcomes[0]["task"] == shown(client, outcomes[0]["task"]["task_id"])
        assert set(outcomes[0]) == {"status", "task"}
        problem = outcomes[1]["problem"]
        assert set(outcomes[1]) == {"status", "problem"}
        assert (problem["error_code"], problem["status"]) == ("VALIDATION_422", 422)
        assert [each["field"] for each in problem["errors"]] == ["run_at", "priority"]
        assert outcomes[2]["problem"]["errors"][0]["field"] == ""
        assert outcomes[3]["problem"]["error_code"] == "TASK_NAME_422"
        assert outcomes[4]["task"] == taken
        assert "same task_id as that of tasks.4" in outcomes[5]["problem"]["detail"]
        assert outcomes[6]["problem"]["error_code"] == "TASK_UNIQUE_409"
        assert held["task_id"] in outcomes[6]["problem"]["detail"]
        assert outcomes[8]["problem"]["error_code"] == "TASK_UNIQUE_409"
        assert outcomes[7]["task"]["task_id"] in outcomes[8]["problem"]["detail"]
        assert outcomes[9]["problem"]["error_code"] == "PAYLOAD_422"
    assert backend.count() == 4


def test_task_of_another_request_is_told_of_and_kept(store: Backend) -> None:
    with running(store) as client:
        known = post(client, run_at=NOON)
        other = part(client, [task_body(task_id=known["task_id"], name="other")])
        assert (other[0]["status"], other[0]["problem"]["error_code"]) == (409, "TASK_CREATE_409")
        assert shown(client, known["task_id"]) == known
        held = post(client, run_at=NOON, unique_key="held")
        found = part(client, [task_body(unique_key="held", on_conflict="return")])
        assert found == [{"status": 200, "task": held}]


@pytest.mark.parametrize(
    ("on_conflict", "status", "left"),
    [
        ("reject", 409, (NOON, 0)),
        ("return", 200, (NOON, 0)),
        ("replace", 200, (LATER, 3)),
        ("reschedule", 200, (LATER, 0)),
    ],
)
def test_tasks_of_one_key_are_settled_as_if_posted_one_after_the_other(
    backend: Backend, on_conflict: str, status: int, left: tuple[str, int]
) -> None:
    keys = 20
    with running(backend) as client:
        tasks = [task_body(run_at=NOON, unique_key=f"key {number}") for number in range(keys)]
        for run_at, priority in ((EARLIER, 2), (LATER, 3)):
            again = {"run_at": run_at, "priority": priority, "on_conflict": on_conflict}
            tasks += [task | again for task in tasks[:keys]]
        outcomes = part(client, tasks)
        assert [each["status"] for each in outcomes] == [201] * keys + [status] * 2 * keys
        for first, last in zip(outcomes[:keys], outcomes[2 * keys :], strict=True):
            task_id = first["task"]["task_id"]
            if status == 409:
                assert last["problem"]["error_code"] == "TASK_UNIQUE_409"
                assert task_id in last["problem"]["detail"]
            else:
                assert last["task"] == shown(client, task_id)
            task = shown(client, task_id)
            assert (task["run_at"], task["priority"]) == left
    assert backend.count() == keys


@pytest.mark.parametrize("on_conflict", ["reject", "return", "replace"])
def test_part_with_one_key_twice_may_be_repeated(store: Backend, on_conflict: str) -> None:
    key = {"Idempotency-Key": "twice"}
    body = task_body(run_at=NOON, unique_key="one", on_conflict=on_conflict)
    with running(store) as client:
        first, second = (part(client, [body, body], **key) for _ in range(2))
        assert [each["status"] for each in first] == [each["status"] for each in second]
        assert first[0]["task"]["task_id"] == second[0]["task"]["task_id"]
    assert store.count() == 1


def test_part_of_a_batch_may_be_repeated_under_its_key(store: Backend) -> None:
    key = {"Idempotency-Key": "part"}
    with running(store) as client:
        tasks: list[Any] = [task_body(), {"name": ""}, task_body(name="other")]
        first, second = (part(client, tasks, **key) for _ in range(2))
        assert first == second
        assert [each["status"] for each in first] == [201, 422, 201]
        tasks[1] = task_body(name="mended")
        tasks[2] = task_body(name="another")
        third = part(client, tasks, **key)
        assert third[0] == first[0]
        assert third[1]["task"]["name"] == "mended"
        assert third[2]["problem"]["error_code"] == "IDEMPOTENCY_422"
        body = {"tasks": [task_body(task_id=str(uuid4()))]}
        response = client.post("/tasks/batch?partial=true", json=body, headers=key)
        assert_problem(response, 422, "VALIDATION_422")
    assert store.count() == 3


def test_tasks_of_a_part_run_at_their_times_each_once(backend: Backend) -> None:
    with running(backend) as client:
        later_one = post(client, run_at=NOON, unique_key="held")["task_id"]
        body: dict[str, Any] = {
            "run_at": later(1),
            "unique_key": "held",
            "on_conflict": "reschedule",
        }
        outcomes = part(client, [task_body(run_at=later(1)), task_body(**body), {}])
        ids = [outcomes[0]["task"]["task_id"], later_one]
        assert outcomes[1]["task"]["task_id"] == later_one
        for task_id in ids:
            assert finished(client, task_id)["attempt"] == 1


def test_body_without_a_batch_is_refused_also_in_part(store: Backend) -> None:
    with running(store) as client:
        bodies: list[Any] = [{}, {"tasks": []}, []]
        for body in bodies:
            response = client.post("/tasks/batch?partial=true", json=body)
            assert_problem(response, 422, "VALIDATION_422")
        assert [each["status"] for each in part(client, [{}, {}])] == [422, 422]
    assert store.count() == 0
