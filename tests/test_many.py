"""Many tasks at a time: removed or changed by the filters of the list."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    refused,
    running,
    shown,
    task_body,
)

FUTURE = "2031-07-01T12:00:00Z"
LATER = "2031-08-01T12:00:00Z"


def posted(client: Any, number: int, **members: Any) -> list[str]:
    """Post some tasks alike; return their ids."""
    body = {"tasks": [task_body(**({"run_at": FUTURE} | members)) for _ in range(number)]}
    return [task["task_id"] for task in client.post("/tasks/batch", json=body).json()]


def remove(client: Any, query: str) -> dict[str, Any]:
    """Remove tasks by a filter."""
    response = client.delete(f"/tasks?{query}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def change(client: Any, query: str, **members: Any) -> dict[str, Any]:
    """Change tasks by a filter."""
    response = client.patch(f"/tasks?{query}", json=members)
    assert response.status_code == 200, response.text
    return dict(response.json())


# --------------------------------------------------------------------------- removing


def test_tasks_that_meet_all_filters_are_removed(backend: Backend) -> None:
    with running(backend) as client:
        posted(client, 3, tags=["billing"], name="send_report")
        kept = posted(client, 2, tags=["billing"])
        [paused] = posted(client, 1, tags=["billing"], name="send_report")
        client.post(f"/tasks/{paused}/pause")
        counted = remove(client, "tag=billing&name=send_report&dry_run=true")
        assert counted == {"tasks": 4, "cursor": None, "dry_run": True}
        assert backend.count() == 6
        removed = remove(client, "tag=billing&name=send_report")
        assert removed == {"tasks": 4, "cursor": None, "dry_run": False}
        assert {task["task_id"] for task in client.get("/tasks").json()} == set(kept)
        assert remove(client, "tag=billing&name=send_report")["tasks"] == 0


def test_what_has_begun_is_not_removed(store: Backend) -> None:
    with running(store) as client:
        instance_id = store.sql("SELECT instance_id FROM instances")[0]["instance_id"]
        for status in ("running", "done", "failed", "unknown", "cancelled"):
            store.insert_task(status=status, instance_id=instance_id)
        store.insert_task(status="paused")
        store.insert_task()
        assert remove(client, "name=probe")["tasks"] == 2
        assert remove(client, "name=probe")["tasks"] == 0
    assert store.count("status IN ('scheduled', 'paused')") == 0
    assert store.count() == 5


def test_removed_tasks_never_run(backend: Backend) -> None:
    with running(backend) as client:
        posted(client, 20, run_at=later(1), tags=["gone"])
        kept = post(client, run_at=later(1.2))["task_id"]
        assert remove(client, "tag=gone")["tasks"] == 20
        assert finished(client, kept)["status"] == "done"
    assert backend.sql("SELECT count(*) AS n FROM task_runs") == [{"n": 1}]


def test_many_are_removed_part_by_part(store: Backend) -> None:
    with running(store) as client:
        store.insert_tasks(25, run_at=later(3600))
        first = remove(client, "name=probe&limit=10")
        assert first["tasks"] == 10
        second = remove(client, f"name=probe&limit=10&cursor={first['cursor']}")
        assert second["tasks"] == 10
        third = remove(client, f"name=probe&limit=10&cursor={second['cursor']}")
        assert third == {"tasks": 5, "cursor": None, "dry_run": False}
    assert store.count() == 0


def test_dry_run_counts_part_by_part(store: Backend) -> None:
    with running(store) as client:
        store.insert_tasks(25, run_at=later(3600))
        counts = []
        cursor = ""
        while True:
            part = remove(client, f"name=probe&limit=10&dry_run=true{cursor}")
            counts.append(part["tasks"])
            if part["cursor"] is None:
                break
            cursor = f"&cursor={part['cursor']}"
        assert counts == [10, 10, 5]
        problem = assert_problem(
            client.delete(f"/tasks?name=other&limit=10{cursor}"), 422, "VALIDATION_422"
        )
        assert problem["errors"][0]["field"] == "cursor"
    assert store.count() == 25


@pytest.mark.parametrize("db_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: remove(client, "name=probe"),
        lambda client: change(client, "name=probe", priority=1),
    ],
)
def test_task_that_is_just_starting_is_left(
    store: Backend, ask: Callable[[Any], dict[str, Any]]
) -> None:
    with running(store) as client, store.database() as database:
        starting, other = (store.insert_task() for _ in range(2))
        with database.writing() as connection:
            connection.execute(
                text("SELECT 1 FROM scheduled_tasks WHERE task_id = :id FOR NO KEY UPDATE"),
                {"id": starting},
            )
            assert ask(client)["tasks"] == 1
        assert shown(client, starting)["priority"] == 0
        assert other


# --------------------------------------------------------------------------- changing


def test_tasks_that_meet_all_filters_are_changed(backend: Backend) -> None:
    with running(backend) as client:
        ids = posted(client, 3, tags=["billing"], payload={"a": 1}, priority=1)
        [other] = posted(client, 1)
        client.post(f"/tasks/{ids[0]}/pause")
        counted = change(client, "tag=billing&dry_run=true", run_at=LATER, payload=None)
        assert counted == {"tasks": 3, "cursor": None, "dry_run": True}
        assert shown(client, ids[0])["run_at"] == FUTURE
        done = change(client, "tag=billing", run_at=LATER, payload=None)
        assert done == {"tasks": 3, "cursor": None, "dry_run": False}
        for task_id in ids:
            task = shown(client, task_id)
            assert (task["run_at"], task["payload"], task["priority"]) == (LATER, None, 1)
            assert task["updated_at"] > task["created_at"]
        assert shown(client, ids[0])["status"] == "paused"
        assert shown(client, other)["run_at"] == FUTURE


def test_tasks_that_are_brought_forward_run_at_once(backend: Backend) -> None:
    with running(backend) as client:
        ids = [*posted(client, 2, run_at=later(4)), *posted(client, 2)]
        change(client, "status=scheduled", run_at="2020-01-01T00:00:00Z")
        for task_id in ids:
            assert finished(client, task_id, 3)["status"] == "done"


def test_what_has_begun_is_not_changed(store: Backend) -> None:
    with running(store) as client:
        store.insert_task(status="done")
        task_id = store.insert_task()
        assert change(client, "name=probe", name="other")["tasks"] == 1
        assert shown(client, task_id)["name"] == "other"
    assert store.count("name = 'probe'") == 1


def test_many_are_changed_part_by_part(store: Backend) -> None:
    with running(store) as client:
        store.insert_tasks(25, run_at=later(3600))
        first = change(client, "name=probe&limit=20", priority=1)
        assert first["tasks"] == 20
        second = change(client, f"name=probe&limit=20&cursor={first['cursor']}", priority=1)
        assert second == {"tasks": 5, "cursor": None, "dry_run": False}
    assert store.count("priority = 1") == 25


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_change_that_one_task_cannot_take_is_refused_for_all(store: Backend, dry_run: str) -> None:
    with running(store) as client:
        [plain] = posted(client, 1)
        [bound] = posted(client, 1, start_before=FUTURE)
        url = f"/tasks?status=scheduled&dry_run={dry_run}"
        problem = assert_problem(client.patch(url, json={"run_at": LATER}), 422, "VALIDATION_422")
        assert [fault["field"] for fault in problem["errors"]] == [f"tasks.{bound}.start_before"]
        assert shown(client, plain)["run_at"] == FUTURE
        problem = assert_problem(client.patch(url, json={"task_id": plain}), 422, "VALIDATION_422")
        assert len(problem["errors"]) == 2


def test_two_tasks_do_not_get_one_key(store: Backend) -> None:
    with running(store) as client:
        posted(client, 2)
        response = client.patch("/tasks?status=scheduled", json={"unique_key": "one"})
        assert_problem(response, 409, "TASK_UNIQUE_409")
    assert store.count("unique_key IS NULL") == 2


def test_failure_in_the_middle_changes_nothing(store: Backend) -> None:
    with running(store) as client:
        ids = sorted(posted(client, 2))
        with refused(store, f"NEW.task_id = '{ids[1]}'"):
            response = client.patch("/tasks?status=scheduled", json={"priority": 2})
            assert_problem(response, 500, "INTERNAL_500")
    assert store.count("priority = 0") == 2


# ------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("", "status", "Name at least one filter"),
        ("limit=5", "status", "Name at least one filter"),
        ("status=done", "status", "Only tasks that are scheduled or paused"),
        ("status=scheduled&status=failed", "status", "Only tasks that are scheduled or paused"),
        ("name=x&limit=1001", "limit", "1000"),
        ("name=x&limit=0", "limit", "1"),
        ("name=x&limit=1.0", "limit", "digits"),
        ("name=x&dry_run=perhaps", "dry_run", "boolean"),
        ("name=x&dry_run=true&dry_run=false", "dry_run", "given 2 times"),
        ("nme=x", "nme", "There is no such field"),
        ("name=x&cursor=zzz", "cursor", "Not a cursor of ours"),
        ("name=x&sort=run_at", "sort", "There is no such field"),
    ],
)
def test_bad_filters_are_refused(store: Backend, query: str, field: str, said: str) -> None:
    with running(store) as client:
        posted(client, 1)
        for response in (
            client.delete(f"/tasks?{query}"),
            client.patch(f"/tasks?{query}", json={"priority": 1}),
        ):
            problem = assert_problem(response, 422, "VALIDATION_422")
            assert [each["field"] for each in problem["errors"]] == [field]
            assert said in problem["errors"][0]["detail"]
    assert store.count("priority = 0") == 1
