"""GET /tasks/{task_id}/runs: every attempt once, the oldest first, also that which is under way."""

import asyncio
import threading
from typing import Any
from uuid import uuid4

import pytest

from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.main import create_app
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    running,
    services_of,
    statements,
)
from tests.support.services import wait_until

TOKEN = "5b0c0f3e-9f0e-4a53-8f0c-0d0e8c5a7b11"
INSTANCE = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"


def at(seconds: float) -> str:
    """An instant on a day of 2031, as the database takes it."""
    return f"2031-07-01 12:00:{seconds:09.6f}+00:00"


def insert_run(store: Backend, task_id: str, **columns: Any) -> None:
    """Insert an attempt by plain SQL."""
    values = {
        "task_id": task_id,
        "claim_token": str(uuid4()),
        "attempt": 1,
        "scheduled_for": at(0),
        "started_at": at(1),
        "finished_at": at(2),
        "outcome": "done",
    } | columns
    store.sql(
        f"INSERT INTO task_runs ({', '.join(values)}) "  # noqa: S608 (the test's own)
        f"VALUES ({', '.join(f':{column}' for column in values)})",
        **values,
    )


def test_task_that_was_never_started_has_no_runs(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client)["task_id"]
        for address in (task_id, task_id.upper()):
            response = client.get(f"/tasks/{address}/runs")
            assert (response.status_code, response.json()) == (200, [])


@pytest.mark.parametrize("task_id", [INSTANCE, "nonsense"])
def test_unknown_task_has_no_list_of_runs(store: Backend, task_id: str) -> None:
    with running(store) as client:
        insert_run(store, store.insert_task())
        problem = assert_problem(client.get(f"/tasks/{task_id}/runs"), 404, "TASK_404")
    assert task_id in problem["detail"]


def test_ended_attempt_is_shown_whole(store: Backend) -> None:
    with running(store) as client:
        task_id = store.insert_task(status="done")
        insert_run(
            store,
            task_id,
            claim_token=TOKEN,
            attempt=3,
            started_at=at(0.003),
            finished_at=at(1.503),
            result='{"sum": [1, 2.0, null]}',
            instance_id=INSTANCE,
        )
        response = client.get(f"/tasks/{task_id}/runs")
        other = client.get(f"/tasks/{store.insert_task()}/runs").json()
    assert response.json() == [
        {
            "attempt": 3,
            "scheduled_for": "2031-07-01T12:00:00Z",
            "started_at": "2031-07-01T12:00:00.003000Z",
            "finished_at": "2031-07-01T12:00:01.503000Z",
            "late": 0.003,
            "duration": 1.5,
            "outcome": "done",
            "result": {"sum": [1, 2.0, None]},
            "traceback": None,
            "instance_id": INSTANCE,
        }
    ]
    assert TOKEN not in response.text
    assert other == []


def test_attempts_come_in_the_order_of_their_start(store: Backend) -> None:
    attempts = [(5, 0, "crashed"), (9, 1, "done"), (1, 2, "lost"), (2, 2, "failed")]
    with running(store) as client:
        task_id = store.insert_task(status="done")
        for attempt, start, outcome in reversed([*attempts, (3, 2, "interrupted")]):
            insert_run(store, task_id, attempt=attempt, started_at=at(start), outcome=outcome)
        runs = client.get(f"/tasks/{task_id}/runs").json()
    assert [(run["attempt"], run["outcome"]) for run in runs] == [
        *((attempt, outcome) for attempt, _, outcome in attempts),
        (3, "interrupted"),
    ]


@pytest.mark.parametrize(
    ("attempt", "retry_at", "scheduled_for", "late"),
    [
        (1, None, "2031-07-01T12:00:00Z", 4.0),
        (1, at(3), "2031-07-01T12:00:00Z", 4.0),  # released late, and late it was
        (2, at(3), "2031-07-01T12:00:03Z", 1.0),
    ],
)
def test_attempt_under_way_is_shown_as_running(
    store: Backend, attempt: int, retry_at: str | None, scheduled_for: str, late: float
) -> None:
    with running(store) as client:
        task_id = store.insert_task(
            status="running",
            run_at=at(0),
            retry_at=retry_at,
            attempt=attempt,
            started_at=at(4),
            claim_token=TOKEN,
            instance_id=services_of(client).heartbeat.instance_id,
        )
        response = client.get(f"/tasks/{task_id}/runs")
        [run] = response.json()
    assert TOKEN not in response.text
    assert run == {
        "attempt": attempt,
        "scheduled_for": scheduled_for,
        "started_at": "2031-07-01T12:00:04Z",
        "finished_at": None,
        "late": late,
        "duration": None,
        "outcome": "running",
        "result": None,
        "traceback": None,
        "instance_id": run["instance_id"],
    }


def test_list_is_read_at_one_instant(store: Backend) -> None:
    with running(store, retention_days="0") as client:  # the removal of old attempts reads them too
        task_id = post(client)["task_id"]
        with statements(services_of(client).database.engine) as executed:
            client.get(f"/tasks/{task_id}/runs")
    # Were there two statements, an attempt that ends in between would be shown twice, or never.
    [statement] = [one for one in executed if "task_runs" in one]
    assert "scheduled_tasks" in statement


def test_attempts_go_with_a_task_that_is_deleted(store: Backend) -> None:
    with running(store) as client:
        kept = store.insert_task()
        deleted = store.insert_task(attempt=1, max_attempts=2)
        for task_id in (kept, deleted):
            insert_run(store, task_id, outcome="interrupted")
        assert client.delete(f"/tasks/{deleted}").status_code == 200
        assert_problem(client.get(f"/tasks/{deleted}/runs"), 404, "TASK_404")
    left = store.sql("SELECT CAST(task_id AS text) AS task_id FROM task_runs")
    assert [row["task_id"] for row in left] == [kept]


# ------------------------------------------------------------------------- real runs


def test_runs_of_a_task_tell_its_whole_life(store: Backend, registry: HandlerRegistry) -> None:
    begun = threading.Event()

    @registry.task("work")
    async def work() -> str:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()  # for ever
        return "finished"

    with running(store, registry, shutdown_grace=0) as client:
        task = post(client, name="work", run_at=later(0), max_attempts=2)
        address = f"/tasks/{task['task_id']}/runs"
        assert begun.wait(15)
        [under_way] = client.get(address).json()
        first_instance = services_of(client).heartbeat.instance_id
        # It is stopped now, and what runs is cut off.
    assert (under_way["attempt"], under_way["outcome"]) == (1, "running")
    assert under_way["scheduled_for"] == task["run_at"]
    assert under_way["instance_id"] == first_instance

    with running(store, registry) as client:
        ended = finished(client, task["task_id"])
        first, second = client.get(address).json()
        second_instance = services_of(client).heartbeat.instance_id
    assert (first["attempt"], first["outcome"]) == (1, "interrupted")
    assert (second["attempt"], second["outcome"]) == (2, "done")
    assert first["result"].startswith("interrupted: ")
    assert second["result"] == ended["result"] == "finished"
    assert first["started_at"] == under_way["started_at"]
    assert (first["instance_id"], second["instance_id"]) == (first_instance, second_instance)
    assert second["started_at"] == ended["started_at"]
    for run in (first, second):
        moments = [parse_time(run[name]) for name in ("scheduled_for", "started_at", "finished_at")]
        assert moments == sorted(moments)
        assert run["late"] == (moments[1] - moments[0]).total_seconds()
        assert run["duration"] == (moments[2] - moments[1]).total_seconds()


def test_failed_run_tells_its_error(store: Backend, registry: HandlerRegistry) -> None:
    registry.task("broken")(lambda: [][0])
    with running(store, registry) as client:
        task_id = post(client, name="broken", run_at=later(0))["task_id"]
        finished(client, task_id)
        [run] = client.get(f"/tasks/{task_id}/runs").json()
    assert (run["outcome"], run["result"]) == ("failed", "IndexError: list index out of range")


def test_runs_of_a_task_that_runs_many_times_at_once_are_each_there_once(
    store: Backend, registry: HandlerRegistry
) -> None:
    """Whenever one looks, the attempt is there, under one outcome or the other."""
    registry.task("brief")(lambda: None)
    with running(store, registry) as client:
        for _ in range(10):
            task_id = post(client, name="brief", run_at=later(0))["task_id"]
            seen: list[list[str]] = []

            def look(task_id: str = task_id, seen: list[list[str]] = seen) -> bool:
                runs = client.get(f"/tasks/{task_id}/runs").json()
                seen.append([run["outcome"] for run in runs])
                return seen[-1] == ["done"]

            wait_until(look)
            assert [one for one in seen if one not in ([], ["running"], ["done"])] == []


def test_documentation_leads_from_a_new_task_to_its_runs() -> None:
    links = create_app().openapi()["paths"]["/tasks"]["post"]["responses"]["201"]["links"]
    assert {name: link["operationId"] for name, link in links.items()} == {
        "show": "showTask",
        "runs": "listRuns",
        "cancel": "cancelTask",
        "delete": "deleteTask",
        "next": "listTimes",
        "explain": "explainTask",
        "change": "changeTask",
        "pause": "pauseTask",
        "resume": "resumeTask",
        "run": "runTask",
    }
    assert {link["parameters"]["task_id"] for link in links.values()} == {"$response.body#/task_id"}


def test_last_attempts_are_listed_up_to_a_limit(store: Backend, registry: HandlerRegistry) -> None:
    @registry.task("probe", max_attempts=5, retry_delay=[0])
    async def probe() -> None:
        raise ValueError

    with running(store, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        finished(client, task_id)
        address = f"/tasks/{task_id}/runs"
        for limit, attempts in ((2, [4, 5]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])):
            runs = client.get(address, params={"limit": limit}).json()
            assert [run["attempt"] for run in runs] == attempts
        for refused in ("0", "10001", "x"):
            response = client.get(address, params={"limit": refused})
            assert_problem(response, 422, "VALIDATION_422")
