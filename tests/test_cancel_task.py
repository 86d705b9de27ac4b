"""POST /tasks/{task_id}/cancel: what is scheduled never runs, what runs is ended, wherever."""

import asyncio
import threading
from typing import Any

import httpx
import pytest

from job_scheduler import RunContext
from job_scheduler.core.claims import Claim, ClaimRequest, claim
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.outcomes import CutOff, Failed, NotStarted, Outcome, RetryIn, Succeeded
from job_scheduler.core.records import Record, record
from job_scheduler.core.store import request_cancellation
from job_scheduler.identifiers import new_token
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    post,
    running,
    services_of,
)
from tests.support.services import wait_until


def cancel(client: Any, task_id: str) -> httpx.Response:
    """Ask for it."""
    response: httpx.Response = client.post(f"/tasks/{task_id}/cancel")
    return response


def begun(client: Any, task_id: str) -> None:
    """Wait until a task runs."""
    wait_until(lambda: client.get(f"/tasks/{task_id}").json()["status"] == "running")


@pytest.mark.parametrize("seconds", [0.4, 3600])
def test_scheduled_task_is_cancelled_and_never_runs(
    backend: Backend, registry: HandlerRegistry, seconds: float
) -> None:
    ran: list[int] = []
    registry.task("probe")(lambda: ran.append(1))
    with running(backend, registry) as client:
        task = post(client, run_at=later(seconds))
        response = cancel(client, task["task_id"])
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert response.json()["finished_at"] is not None
        after = post(client, run_at=later(max(seconds if seconds < 60 else 0, 0) + 0.1))
        finished(client, after["task_id"])
        shown = client.get(f"/tasks/{task['task_id']}").json()
        assert client.get(f"/tasks/{task['task_id']}/runs").json() == []
    assert shown == response.json()
    assert len(ran) == 1


def test_cancelling_again_changes_nothing(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client)["task_id"]
        first = cancel(client, task_id)
        second = cancel(client, task_id)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()


@pytest.mark.parametrize("status", ["done", "failed", "unknown"])
def test_finished_task_cannot_be_cancelled(store: Backend, status: str) -> None:
    task_id = store.insert_task(status=status, finished_at=later(-1))
    before = store.row(task_id)
    with running(store) as client:
        problem = assert_problem(cancel(client, task_id), 409, "TASK_CANCEL_409")
    assert status in problem["detail"]
    assert store.row(task_id) == before


def test_unknown_task_cannot_be_cancelled(store: Backend) -> None:
    with running(store) as client:
        assert_problem(cancel(client, new_token()), 404, "TASK_404")
        assert_problem(cancel(client, "no-id"), 404, "TASK_404")


def test_running_async_handler_is_cancelled(backend: Backend, registry: HandlerRegistry) -> None:
    ended = threading.Event()

    @registry.task("probe", max_attempts=5)
    async def probe() -> None:
        try:
            await asyncio.Event().wait()  # for ever
        finally:
            ended.set()

    with running(backend, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        begun(client, task_id)
        response = cancel(client, task_id)
        assert response.status_code == 202
        assert response.json()["status"] == "running"
        assert response.json()["cancel_requested_at"] is not None
        task = finished(client, task_id)
        [run] = client.get(f"/tasks/{task_id}/runs").json()
        assert ended.is_set()
        again = cancel(client, task_id)
    assert (task["status"], task["result"]) == ("cancelled", "cancelled while it ran")
    assert (run["outcome"], run["result"]) == ("cancelled", "cancelled while it ran")
    assert (again.status_code, again.json()) == (200, task)


def test_run_beside_the_one_that_is_cancelled_goes_on(
    store: Backend, registry: HandlerRegistry
) -> None:
    go_on = threading.Event()

    @registry.task("probe")
    async def probe() -> str:
        await asyncio.to_thread(go_on.wait, 15)
        return "all of it"

    with running(store, registry) as client:
        cancelled, other = (post(client, run_at=later(0))["task_id"] for _ in range(2))
        begun(client, cancelled)
        begun(client, other)
        cancel(client, cancelled)
        assert finished(client, cancelled)["status"] == "cancelled"
        go_on.set()
        ended = finished(client, other)
    assert (ended["status"], ended["result"]) == ("done", "all of it")


def test_plain_handler_is_asked_to_stop(backend: Backend, registry: HandlerRegistry) -> None:
    @registry.task("probe")
    def probe(context: RunContext) -> str:
        while not context.should_stop:
            threading.Event().wait(0.01)
        return "stopped half-way"

    with running(backend, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        begun(client, task_id)
        assert cancel(client, task_id).status_code == 202
        task = finished(client, task_id)
        [run] = client.get(f"/tasks/{task_id}/runs").json()
    assert (task["status"], task["result"]) == ("cancelled", "stopped half-way")
    assert (run["outcome"], run["result"]) == ("cancelled", "stopped half-way")


def test_plain_handler_that_is_asked_to_stop_and_raises_is_cancelled(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe", max_attempts=3)
    def probe(context: RunContext) -> None:
        while not context.should_stop:
            threading.Event().wait(0.01)
        raise ValueError("half-way")

    with running(store, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        begun(client, task_id)
        cancel(client, task_id)
        task = finished(client, task_id)
        [run] = client.get(f"/tasks/{task_id}/runs").json()
    assert (task["status"], task["result"]) == ("cancelled", "ValueError: half-way")
    assert (run["outcome"], run["result"]) == ("cancelled", "ValueError: half-way")


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_plain_handler_that_does_not_look_ends_by_itself(
    store: Backend, registry: HandlerRegistry, ends: str
) -> None:
    go_on = threading.Event()

    @registry.task("probe", max_attempts=3)
    def probe() -> str:
        go_on.wait(15)
        if ends == "raises":
            raise ValueError(ends)
        return "all of it"

    with running(store, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        begun(client, task_id)
        cancel(client, task_id)
        [call] = services_of(client).dispatcher._runs
        assert not call.done()
        go_on.set()
        task = finished(client, task_id)
    # Its work was done before anybody could stop it; or it was not, and is not to be repeated.
    assert (task["status"], task["result"]) == {
        "returns": ("done", "all of it"),
        "raises": ("cancelled", "ValueError: raises"),
    }[ends]


def test_run_on_another_instance_is_cancelled(store: Backend, registry: HandlerRegistry) -> None:
    @registry.task("probe")
    async def probe() -> None:
        await asyncio.Event().wait()  # for ever

    with running(store, registry) as runs_it:
        task_id = post(runs_it, run_at=later(0))["task_id"]
        begun(runs_it, task_id)
        with running(store, HandlerRegistry(), threads=1) as other:
            assert cancel(other, task_id).status_code == 202
            assert finished(other, task_id)["status"] == "cancelled"


# ------------------------------------------------- what the record makes of a request


@pytest.mark.parametrize(
    ("outcome", "on_crash", "status"),
    [
        (Succeeded("result"), None, "done"),
        (Failed("error"), None, "cancelled"),
        (RetryIn("error", 1.0), None, "cancelled"),
        (NotStarted(), None, "cancelled"),
        (CutOff("reason"), None, "cancelled"),
        (CutOff("reason"), "hold", "cancelled"),
    ],
)
def test_cancelled_task_is_neither_repeated_nor_failed(
    store: Backend,
    registry: HandlerRegistry,
    outcome: Outcome,
    on_crash: str | None,
    status: str,
) -> None:
    """Also where its instance never got to know of the request, because it died."""

    async def scenario() -> None:
        task_id = store.insert_task(run_at=later(-1), max_attempts=3, on_crash=on_crash)
        async with bench(store, registry) as one:
            request = ClaimRequest(task_id, new_token())
            [claimed] = await one.database.write(claim, one.instance_id, [request])
            assert isinstance(claimed, Claim)
            await one.database.write(request_cancellation, task_id)
            [stands] = await one.database.write(record, [Record.of(claimed, outcome)])
        assert stands
        row = store.row(task_id)
        assert row["status"] == status
        assert row["finished_at"] is not None

    asyncio.run(scenario())


def test_retry_forgets_the_request(store: Backend) -> None:
    task_id = store.insert_task(
        status="failed", finished_at=later(-1), cancel_requested_at=later(-2), max_attempts=2
    )
    with running(store) as client:
        assert client.post(f"/tasks/{task_id}/retry").json()["cancel_requested_at"] is None
        assert finished(client, task_id)["status"] == "done"
