"""on_done and on_failed: the end of a task sends a webhook, which is a task of its own."""

from datetime import UTC, datetime
from typing import Any

import pytest

from job_scheduler.constants import OnCrash
from job_scheduler.core.claims import Run
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.hooks import hook_of
from job_scheduler.core.outcomes import CutOff, Outcome, TooLate, decide
from tests.support.app import Backend, assert_problem, finished, later, post, running, task_body
from tests.support.receiver import Receiver
from tests.support.services import wait_until

LOOPBACK = "127.0.0.1/32"


def hooks_of(client: Any, task_id: str) -> list[dict[str, Any]]:
    """The tasks that a task's end has made."""
    return [task for task in client.get("/tasks").json() if task["caused_by"] == task_id]


@pytest.mark.parametrize("end", ["done", "failed"])
def test_end_of_a_task_is_told(backend: Backend, registry: HandlerRegistry, end: str) -> None:
    @registry.task("probe")
    def probe() -> dict[str, int]:
        if end == "failed":
            raise ValueError(end)
        return {"rows": 3}

    with Receiver() as receiver, running(backend, registry, webhook_allow=LOOPBACK) as client:
        hook = {"url": f"{receiver.url}/told", "headers": {"X-Team": "billing"}}
        task = post(client, run_at=later(0), on_done=hook, on_failed=hook)
        ended = finished(client, task["task_id"])
        [told] = wait_until(lambda: hooks_of(client, task["task_id"]))
        sent = finished(client, told["task_id"])
    assert (ended["status"], sent["status"], sent["name"]) == (end, "done", f"on_{end}")
    [request] = receiver.requests
    assert (request.path, request.headers["x-team"]) == ("/told", "billing")
    assert request.json() == {
        "type": f"task.{end}",
        "data": {
            "task_id": task["task_id"],
            "name": "probe",
            "status": end,
            "attempt": 1,
            "result": ended["result"],
        },
    }


def test_hook_is_sent_once_for_all_attempts(store: Backend, registry: HandlerRegistry) -> None:
    @registry.task("probe", max_attempts=3, retry_delay=0)
    def probe() -> None:
        raise ValueError

    with Receiver() as receiver, running(store, registry, webhook_allow=LOOPBACK) as client:
        hook = {"url": receiver.url}
        task = post(client, run_at=later(0), on_done=hook, on_failed=hook)
        finished(client, task["task_id"])
        [told] = wait_until(lambda: hooks_of(client, task["task_id"]))
        assert told["name"] == "on_failed"
        finished(client, told["task_id"])
    assert [request.json()["data"]["attempt"] for request in receiver.requests] == [3]


def test_cancelled_task_calls_for_no_hook(store: Backend) -> None:
    with running(store) as client:
        hook = {"url": "https://example.com/"}
        task_id = post(client, on_done=hook, on_failed=hook)["task_id"]
        client.post(f"/tasks/{task_id}/cancel")
        assert hooks_of(client, task_id) == []


def test_task_that_is_missed_and_failed_calls_for_its_hook(store: Backend) -> None:
    with running(store) as client:
        hook = {"url": "https://example.com/", "method": "PUT"}
        told = post(client, run_at=later(0.5), on_failed=hook, name="told")["task_id"]
        quiet = post(client, run_at=later(0.5), name="quiet")["task_id"]
    store.sql("UPDATE scheduled_tasks SET run_at = :past", past=later(-60))
    with running(store, recover_past_tasks="fail", max_running=1) as client:
        failed = client.get(f"/tasks/{told}").json()
        [hooked] = hooks_of(client, told)
        assert hooks_of(client, quiet) == []
    assert failed["status"] == "failed"
    assert hooked["name"] == "on_failed"
    assert hooked["webhook"] == hook | {
        "body": {
            "type": "task.failed",
            "data": {
                "task_id": told,
                "name": "told",
                "status": "failed",
                "attempt": 0,
                "result": failed["result"],
            },
        }
    }


@pytest.mark.parametrize(
    ("outcome", "on_crash", "kind"),
    [
        (CutOff("gone"), None, "task.failed"),
        (CutOff("gone"), "hold", "task.unknown"),
        (CutOff("gone"), "retry", None),
    ],
)
def test_crash_calls_for_the_hook_of_what_it_makes_of_the_task(
    outcome: Outcome, on_crash: Any, kind: str | None
) -> None:
    now = datetime(2027, 7, 1, tzinfo=UTC)
    attempts = 2 if on_crash == "retry" else 1
    hooks = (None, {"url": "u"})
    run = Run("id", "token", "me", 1, attempts, on_crash, now, now, "probe", *hooks, now, None, 0)
    hook = hook_of(run, decide(outcome, 1, attempts, on_crash and OnCrash(on_crash)))
    assert (hook and hook["body"]["type"]) == kind


def test_hook_of_a_task_that_expired_counts_no_attempt_that_never_was() -> None:
    now = datetime(2027, 7, 1, tzinfo=UTC)
    hooks = (None, {"url": "u"})
    run = Run("id", "token", "me", 2, 3, None, now, now, "probe", *hooks, now, None, None)
    hook = hook_of(run, decide(TooLate("expired"), 2, 3, None))
    assert hook is not None
    assert hook["body"]["data"]["attempt"] == 1


@pytest.mark.parametrize("member", ["on_done", "on_failed"])
def test_address_of_a_hook_is_examined(store: Backend, member: str) -> None:
    with running(store) as client:
        body = task_body(**{member: {"url": "http://127.0.0.1/"}})
        problem = assert_problem(client.post("/tasks", json=body), 422, "VALIDATION_422")
    assert problem["errors"][0]["field"] == f"{member}.url"


def test_hook_has_no_body_of_its_own(store: Backend) -> None:
    with running(store) as client:
        body = task_body(on_done={"url": "https://example.com/", "body": {}})
        problem = assert_problem(client.post("/tasks", json=body), 422, "VALIDATION_422")
    assert problem["errors"][0]["field"] == "on_done.body"
