"""Many tasks at a time: removed or changed by the filters of the list."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import POSTGRESQL
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
from tests.support.services import wait_until

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


# ------------------------------------------------------------------ at the same moment


@contextmanager
def held(store: Backend, task_id: str, change: str) -> Iterator[None]:
    """Change a task, and commit that only when somebody waits for it after the block."""
    waiting = (
        "SELECT 1 FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with store.database() as database, database.writing() as connection:
        connection.execute(
            text(f"UPDATE scheduled_tasks SET {change} WHERE task_id = :id"),  # noqa: S608
            {"id": task_id},
        )
        yield
        wait_until(lambda: store.sql(waiting), 10, "a request that waits")


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
@pytest.mark.parametrize(
    ("meanwhile", "counted"),
    [
        ("payload = NULL", 2),
        ("name = 'other'", 1),
        ("status = 'running', started_at = now(), claim_token = gen_random_uuid()", 1),
    ],
)
@pytest.mark.parametrize("ask", [remove, partial(change, priority=1)])
def test_task_that_is_just_being_changed_is_waited_for(
    store: Backend, ask: Callable[[Any, str], dict[str, Any]], meanwhile: str, counted: int
) -> None:
    with running(store) as client, ThreadPoolExecutor(1) as pool:
        first, _ = sorted(store.insert_task() for _ in range(2))
        with held(store, first, meanwhile):
            answer = pool.submit(ask, client, "name=probe")
        assert answer.result()["tasks"] == counted
    assert store.count("priority = 0") == 2 - counted


def test_changes_and_removals_at_one_moment_leave_no_task_out(store: Backend) -> None:
    with running(store) as client, ThreadPoolExecutor(2) as pool:
        for priority in (1, 2, 3):
            posted(client, 800, tags=["both"])
            begin = threading.Barrier(2)

            def both(ask: Callable[[], dict[str, Any]], begin: threading.Barrier = begin) -> int:
                begin.wait()
                return int(ask()["tasks"])

            changed = pool.submit(both, partial(change, client, "tag=both", priority=priority))
            removed = pool.submit(both, partial(remove, client, "tag=both"))
            assert changed.result() in (0, 800)
            assert removed.result() == 800
            assert store.count() == 0


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


@pytest.mark.parametrize(
    "members",
    [
        {"interval_seconds": 7200},
        {"interval_seconds": 60},
        {"cron": "0 0 * * *", "timezone": "Europe/Berlin"},
        {"run_at": LATER},
        {"run_at": "2031-07-01T00:00:00", "timezone": "Asia/Tokyo"},
        {"start_at": "2031-07-01T00:00:00", "max_runs": 7, "overlap": "queue"},
        {"jitter_seconds": 30, "tags": ["x"], "retry_delay": [1, 2.5], "timeout": 5},
    ],
)
def test_each_task_is_changed_once_however_its_time_moves(
    store: Backend, members: dict[str, Any]
) -> None:
    with running(store) as client:
        ids = posted(client, 25, run_at=None, interval_seconds=1800)
        counts, versions = [], []
        cursor = ""
        while True:
            part = change(client, f"name=probe&limit=10{cursor}", **members)
            counts.append(part["tasks"])
            versions.append({task_id: shown(client, task_id)["updated_at"] for task_id in ids})
            if part["cursor"] is None:
                break
            cursor = f"&cursor={part['cursor']}"
        assert counts[:3] == [10, 10, 5]
        assert set(counts[3:]) <= {0}
        assert versions[2] == versions[-1]
        again = change(client, "name=probe&dry_run=true", **members)
        assert again == {"tasks": 0, "cursor": None, "dry_run": True}


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_change_that_one_task_cannot_take_is_refused_for_all(store: Backend, dry_run: str) -> None:
    with running(store) as client:
        [plain] = posted(client, 1)
        [bound] = posted(client, 1, start_before=FUTURE)
        url = f"/tasks?status=scheduled&dry_run={dry_run}"
        problem = assert_problem(client.patch(url, json={"run_at": LATER}), 422, "VALIDATION_422")
        assert [fault["field"] for fault in problem["errors"]] == [f"tasks.{bound}.start_before"]
        assert shown(client, plain)["run_at"] == FUTURE


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_recurrence_that_one_task_has_left_behind_is_refused_for_all(
    store: Backend, dry_run: str
) -> None:
    with running(store) as client:
        first, second = posted(client, 2, run_at=None, interval_seconds=3600)
        store.sql("UPDATE scheduled_tasks SET run_count = 3 WHERE task_id = :id", id=first)
        response = client.patch(f"/tasks?name=probe&dry_run={dry_run}", json={"max_runs": 3})
        problem = assert_problem(response, 422, "VALIDATION_422")
        assert [fault["field"] for fault in problem["errors"]] == [f"tasks.{first}.max_runs"]
        assert "max_runs" not in shown(client, second)["recurrence"]


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_two_tasks_do_not_get_one_key(store: Backend, dry_run: str) -> None:
    with running(store) as client:
        posted(client, 2)
        url = f"/tasks?status=scheduled&dry_run={dry_run}"
        response = client.patch(url, json={"unique_key": "one"})
        assert_problem(response, 409, "TASK_UNIQUE_409")
        client.patch("/tasks?status=scheduled&limit=1", json={"unique_key": "one"})
        response = client.patch(f"{url}&q=probe", json={"unique_key": "one"})
        assert_problem(response, 409, "TASK_UNIQUE_409")
    assert store.count("unique_key IS NULL") == 1


def test_dry_run_gives_no_key_away(store: Backend) -> None:
    with running(store) as client:
        [task_id] = posted(client, 1)
        before = shown(client, task_id)
        counted = change(client, "status=scheduled&dry_run=true", unique_key="one", priority=2)
        assert counted == {"tasks": 1, "cursor": None, "dry_run": True}
        assert shown(client, task_id) == before
        assert post(client, unique_key="one")["unique_key"] == "one"


def test_failure_in_the_middle_changes_nothing(store: Backend) -> None:
    with running(store) as client:
        ids = sorted(posted(client, 2))
        with refused(store, f"NEW.task_id = '{ids[1]}'"):
            response = client.patch("/tasks?status=scheduled", json={"priority": 2})
            assert_problem(response, 500, "INTERNAL_500")
    assert store.count("priority = 0") == 2


# ------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({"foo": 1}, ["foo"]),
        ({"run_at": "rubbish"}, ["run_at"]),
        ({"priority": 99, "name": ""}, ["name", "priority"]),
        ({"name": None}, ["name"]),
        ({"timezone": "Mars/X", "max_runs": 3}, ["timezone"]),
        ({"cron": "61 * * * *"}, ["cron"]),
        ({"cron": "0 * * * *", "run_at": FUTURE}, ["run_at"]),
        ({"run_at": FUTURE, "max_runs": 3}, ["max_runs"]),
        ({"max_runs": 3, "start_before": FUTURE}, ["max_runs"]),
        ({"webhook": {"url": "https://example.com/"}, "payload": {}}, ["webhook"]),
        ({"task_id": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"}, ["task_id"]),
        ({"on_conflict": "return"}, ["on_conflict"]),
    ],
)
@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_change_that_no_task_could_take_is_refused_whatever_is_found(
    store: Backend, members: dict[str, Any], fields: list[str], dry_run: str
) -> None:
    with running(store) as client:
        posted(client, 2)
        for name in ("nobody", "probe"):
            response = client.patch(f"/tasks?name={name}&dry_run={dry_run}", json=members)
            problem = assert_problem(response, 422, "VALIDATION_422")
            assert [fault["field"] for fault in problem["errors"]] == fields


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"max_runs": 3, "end_at": "2020-01-01T00:00:00Z"},
        {"start_before": "1990-01-01T00:00:00Z"},
        {"run_at": None},
        {"cron": None, "interval_seconds": None},
        {"max_running": 3},
        {"timezone": "Europe/Berlin", "start_at": "2031-07-01T00:00:00"},
        {"webhook": {"url": "https://example.com/"}},
        {"payload": {"a": 1}},
        {"name": "unknown"},
    ],
)
def test_change_that_some_task_could_take_may_find_none(
    store: Backend, members: dict[str, Any]
) -> None:
    with running(store) as client:
        assert change(client, "name=nobody", **members)["tasks"] == 0


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
