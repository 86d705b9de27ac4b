"""DELETE /tasks/{task_id}: a task that has not started is gone, or stays as it was."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import (
    Backend,
    StubbornScheduler,
    assert_problem,
    finished,
    later,
    post,
    running,
    services_of,
)
from tests.support.services import wait_until


@contextmanager
def deletion_refused(store: Backend, task_id: str) -> Iterator[None]:
    """Let a row of another table hold on to the task."""
    kind = {"sqlite": "varchar(36)", "postgresql": "uuid"}[store.dialect]
    store.sql(f"CREATE TABLE holder (task_id {kind} REFERENCES scheduled_tasks (task_id))")
    try:
        store.sql("INSERT INTO holder VALUES (:task_id)", task_id=task_id)
        yield
    finally:
        store.sql("DROP TABLE holder")


@pytest.mark.parametrize("ahead", [3, 3600])
def test_cancelled_task_is_gone_from_database_and_scheduler(store: Backend, ahead: float) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        task_id = post(client, run_at=later(ahead))["task_id"]
        assert len(scheduler.get_jobs()) == (1 if ahead < 5 else 0)
        response = client.delete(f"/tasks/{task_id.upper()}")
        assert response.status_code == 200
        assert response.json() == {"message": f"Task {task_id} is cancelled."}
        assert (store.count(), scheduler.get_jobs()) == (0, [])
        assert task_id not in services_of(client).timer
        assert_problem(client.get(f"/tasks/{task_id}"), 404, "TASK_404")
        assert_problem(client.delete(f"/tasks/{task_id}"), 404, "TASK_404")
        assert client.get("/tasks").json() == []


def test_cancelled_task_never_runs_and_its_neighbour_does(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[str] = []
    registry.task("note")(lambda who: runs.append(who))
    scheduler = AsyncIOScheduler()
    with running(store, registry, scheduler=lambda: scheduler) as client:
        members = {"name": "note", "run_at": later(1.5)}
        cancelled = post(client, **members, payload={"who": "cancelled"})
        neighbour = post(client, **members, payload={"who": "neighbour"})
        assert len(scheduler.get_jobs()) == 1, "tasks of one instant share a job"
        assert client.delete(f"/tasks/{cancelled['task_id']}").status_code == 200
        assert len(scheduler.get_jobs()) == 1, "and it stays for those that are left"
        finished(client, neighbour["task_id"])
    assert runs == ["neighbour"]


def test_unknown_and_malformed_ids_name_no_task(store: Backend, subtests: pytest.Subtests) -> None:
    malformed = [
        "1",
        "nonsense",
        "null",
        "00000000000040008000000000000000",
        "{00000000-0000-4000-8000-000000000000}",
        "00000000-0000-4000-8000-00000000000g",
        "%00",
        "%FF%FE",
        "%F0%9F%98%80",
        "';--",
        "x" * 2000,
    ]
    with running(store) as client:
        kept = post(client)
        for task_id in [str(uuid4()), *malformed]:
            for method in ("GET", "DELETE"):
                with subtests.test(f"{method} {task_id[:40]}"):
                    response = client.request(method, f"/tasks/{task_id}")
                    problem = assert_problem(response, 404, "TASK_404")
                    assert "GET /tasks lists those that exist" in problem["detail"]
        assert client.get("/tasks").json() == [kept]


def test_running_task_cannot_be_cancelled(store: Backend, registry: HandlerRegistry) -> None:
    started, may_end = threading.Event(), threading.Event()

    @registry.task("wait")
    def wait() -> str:
        started.set()
        may_end.wait(20)
        return "undisturbed"

    with running(store, registry) as client:
        task_id = post(client, name="wait", run_at=later(0))["task_id"]
        try:
            assert started.wait(10)
            problem = assert_problem(client.delete(f"/tasks/{task_id}"), 409, "TASK_DELETE_409")
            assert "is running" in problem["detail"]
            assert f"POST /tasks/{task_id}/cancel" in problem["detail"]
        finally:
            may_end.set()
        assert finished(client, task_id)["result"] == "undisturbed"


@pytest.mark.parametrize("status", ["done", "failed"])
def test_finished_task_cannot_be_cancelled(
    store: Backend, registry: HandlerRegistry, status: str
) -> None:
    registry.task("done")(lambda: "fine")
    registry.task("failed")(lambda: [][0])
    with running(store, registry) as client:
        ended = finished(client, post(client, name=status, run_at=later(0))["task_id"])
        assert ended["status"] == status
        response = client.delete(f"/tasks/{ended['task_id']}")
        problem = assert_problem(response, 409, "TASK_DELETE_409")
        assert f"is {status}" in problem["detail"]
        assert client.get(f"/tasks/{ended['task_id']}").json() == ended


def test_what_has_ended_is_not_to_be_cancelled_first(store: Backend) -> None:
    with running(store) as client:
        for status in ("done", "failed", "unknown", "cancelled"):
            task_id = store.insert_task(status=status)
            problem = assert_problem(client.delete(f"/tasks/{task_id}"), 409, "TASK_DELETE_409")
            assert problem["detail"] == (
                f"Task {task_id} is {status}: only a task that is scheduled or paused can be "
                "removed."
            )


def test_scheduler_that_fails_leaves_the_task_scheduled(store: Backend) -> None:
    scheduler = StubbornScheduler()
    scheduler.willing = True
    with running(store, scheduler=lambda: scheduler) as client:
        created = post(client, run_at=later(2))
        path = f"/tasks/{created['task_id']}"
        scheduler.willing = False
        response = client.delete(path)
        problem = assert_problem(response, 500, "TASK_DELETE_500")
        assert "still scheduled" in problem["detail"]
        assert "own words" not in response.text
        assert client.get(path).json() == created
        scheduler.willing = True
        ended = finished(client, created["task_id"])
    assert (ended["status"], ended["attempt"]) == ("done", 1)
    assert ended["started_at"] >= ended["run_at"]


def test_database_that_fails_leaves_the_task_scheduled(store: Backend) -> None:
    with running(store) as client:
        created = post(client, run_at=later(2.5))
        path = f"/tasks/{created['task_id']}"
        with deletion_refused(store, created["task_id"]):
            assert_problem(client.delete(path), 500, "TASK_DELETE_500")
            assert client.get(path).json() == created
            assert created["task_id"] in services_of(client).timer
        ended = finished(client, created["task_id"])
    assert (ended["status"], ended["attempt"]) == ("done", 1)


def test_job_that_has_gone_from_the_scheduler_is_no_failure(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        task_id = post(client, run_at=later(4))["task_id"]
        scheduler.remove_all_jobs()
        assert client.delete(f"/tasks/{task_id}").status_code == 200
    assert store.count() == 0


def test_of_concurrent_cancellations_one_succeeds(store: Backend) -> None:
    with running(store) as client, ThreadPoolExecutor(8) as threads:
        task_id = post(client, run_at=later(4))["task_id"]
        answers = [threads.submit(client.delete, f"/tasks/{task_id}") for _ in range(8)]
        assert Counter(one.result().status_code for one in answers) == {200: 1, 404: 7}


def test_race_with_the_start_ends_with_deleted_or_run(
    backend: Backend, registry: HandlerRegistry
) -> None:
    runs: Counter[str] = Counter()
    registry.task("note")(lambda task_id: runs.update([task_id]))
    answers: dict[str, int] = {}

    with running(backend, registry) as client, ThreadPoolExecutor(8) as threads:

        def create_and_cancel(place: int) -> None:
            # From due already to due when the cancellation is long done, however slow this
            # machine is; in between, most of them close by.
            nearness = place % 16
            task_id, run_at = str(uuid4()), later(nearness**3 * 0.0015 - 0.01)
            post(client, task_id=task_id, name="note", payload={"task_id": task_id}, run_at=run_at)
            if nearness == 0:
                finished(client, task_id)
            answers[task_id] = client.delete(f"/tasks/{task_id}").status_code

        list(threads.map(create_and_cancel, range(100)))
        wait_until(lambda: backend.count("status IN ('scheduled', 'running')") == 0)
        left = {task["task_id"]: task["status"] for task in client.get("/tasks").json()}
    assert set(answers.values()) == {200, 409}, "there was no race"
    for task_id, answer in answers.items():
        outcome = (answer, runs[task_id], left.get(task_id))
        assert outcome in ((200, 0, None), (409, 1, "done")), outcome
