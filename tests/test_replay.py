"""POST /tasks/retry: many failed tasks are run again, at a bounded rate."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, assert_problem, finished, later, parse_time, running


def insert_failed(store: Backend, number: int = 1, **columns: Any) -> list[str]:
    """Insert failed tasks, one after the other."""
    given: dict[str, Any] = {"status": "failed", "result": '"ValueError"', "attempt": 1} | columns
    return [
        store.insert_task(**({"finished_at": later(place - 100)} | given))
        for place in range(number)
    ]


def retry(client: Any, **wanted: Any) -> dict[str, Any]:
    """Ask for it."""
    response = client.post("/tasks/retry", json=wanted)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_failed_tasks_are_run_again(backend: Backend, registry: HandlerRegistry) -> None:
    registry.task("probe")(lambda: "this time")
    failed = insert_failed(backend, 5)
    [unknown] = insert_failed(backend, status="unknown")
    kept = backend.insert_task(status="done", finished_at=later(-5))
    with running(backend, registry) as client:
        answer = retry(client)
        assert answer["tasks"] == 5
        assert answer["dry_run"] is False
        assert [finished(client, each)["result"] for each in failed] == ["this time"] * 5
        assert retry(client)["tasks"] == 0
        assert retry(client, status=["unknown"])["tasks"] == 1
        assert finished(client, unknown)["status"] == "done"
        assert client.get(f"/tasks/{kept}").json()["attempt"] == 0


def test_what_was_expired_is_run_all_the_same(store: Backend, registry: HandlerRegistry) -> None:
    registry.task("probe")(lambda: "after all")
    one, many = insert_failed(store, 2, start_before=later(-50), run_at=later(-60))
    with running(store, registry) as client:
        assert client.post(f"/tasks/{one}/retry").json()["start_before"] is None
        assert finished(client, one)["result"] == "after all"
        retry(client)
        assert finished(client, many)["result"] == "after all"


def test_they_come_at_the_rate_that_is_asked_for_the_oldest_first(store: Backend) -> None:
    failed = insert_failed(store, 4)
    with running(store) as client:
        until = parse_time(retry(client, rate=0.01)["until"])
        due = [parse_time(client.get(f"/tasks/{each}").json()["retry_at"]) for each in failed]
    gaps = [(after - before) / timedelta(seconds=1) for before, after in pairwise(due)]
    assert gaps == pytest.approx([100, 100, 100], abs=0.01)
    assert until == due[-1]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"name": "other"}, 1),
        ({"limit": 2}, 2),
        ({"limit": 2.0}, 2),
        ({"finished_before": -98.5}, 3),
        ({"finished_after": -98.5}, 1),
        ({"status": ["failed", "unknown"]}, 5),
        ({"status": ["unknown"]}, 1),
    ],
)
def test_only_those_that_match(store: Backend, wanted: dict[str, Any], expected: int) -> None:
    insert_failed(store, 3)
    insert_failed(store, name="other")
    insert_failed(store, status="unknown", finished_at=later(-1))
    wanted = {
        name: later(value) if isinstance(value, float) and name != "limit" else value
        for name, value in wanted.items()
    }
    with running(store) as client:
        before = store.count("status = 'scheduled'")
        counted = retry(client, **wanted, dry_run=True)
        assert store.count("status = 'scheduled'") == before
        assert counted == {"tasks": expected, "until": None, "dry_run": True}
        assert retry(client, **wanted, rate=0.01)["tasks"] == expected


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"status": []}, "status"),
        ({"status": ["done"]}, "status"),
        ({"status": "failed"}, "status"),
        ({"status": [["failed"]]}, "status"),
        ({"rate": 0}, "rate"),
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"limit": True}, "limit"),
        ({"finished_after": "yesterday"}, "finished_after"),
        ({"nmae": "probe"}, "nmae"),
    ],
)
def test_bad_filter_is_refused(store: Backend, wanted: dict[str, Any], field: str) -> None:
    with running(store) as client:
        response = client.post("/tasks/retry", json=wanted)
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert [error["field"] for error in problem["errors"]] == [field]
