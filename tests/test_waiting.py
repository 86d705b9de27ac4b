"""Prefer: wait, from outside: the answer comes when the task has ended, or in time."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from job_scheduler.core import waiting
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.waiting import Waiting, wanted_seconds
from tests.support.app import Backend, assert_problem, later, post, running, service_process
from tests.support.services import wait_until

MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"


def wait(client: Any, task_id: str, prefer: str = "wait=30") -> Any:
    """Ask for a task, and wait for its end."""
    return client.get(f"/tasks/{task_id}", headers={"Prefer": prefer})


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=5", 5),
        ('respond-async, WAIT="7"', 7),
        ("wait = 8; foo=bar", 8),
        ("handling=lenient,wait=9", 9),
        ("wait=61", 60),
        ("wait=999999999", 60),
        ("wait=9999999999", 0),
        ("wait=0", 0),
        ("wait=-3", 0),
        ("wait=1.5", 0),
        ("wait", 0),
        ("await=5", 0),
        ("wait=x", 0),
    ],
)
def test_preference_is_read_as_the_rfc_has_it(prefer: str | None, seconds: int) -> None:
    assert wanted_seconds(prefer) == seconds


def test_answer_comes_when_the_task_has_ended(backend: Backend) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=later(0.6))["task_id"]
        response = wait(client, task_id)
        assert response.json()["status"] == "done"
        assert response.headers["Preference-Applied"] == "wait=30"
        assert wait(client, task_id).json()["status"] == "done"
        assert "Preference-Applied" not in client.get(f"/tasks/{task_id}").headers


def test_answer_comes_in_time_when_the_task_has_not_ended(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=later(3600))["task_id"]
        begin = time.monotonic()
        response = wait(client, task_id, "wait=1")
        assert time.monotonic() - begin >= 1
        assert (response.status_code, response.json()["status"]) == (200, "scheduled")
        assert_problem(wait(client, MISSING), 404, "TASK_404")


def test_task_that_is_removed_meanwhile_is_waited_for_no_longer(store: Backend) -> None:
    with running(store) as client, ThreadPoolExecutor(1) as pool:
        task_id = post(client, run_at=later(3600))["task_id"]
        answer = pool.submit(wait, client, task_id)
        threading.Event().wait(0.3)
        client.delete(f"/tasks/{task_id}")
        assert_problem(answer.result(10), 404, "TASK_404")


def test_many_wait_for_many(store: Backend) -> None:
    gate = threading.Event()
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(30))
    with running(store, registry) as client, ThreadPoolExecutor(8) as pool:
        tasks = [post(client, run_at=later(0))["task_id"] for _ in range(4)]
        answers = [pool.submit(wait, client, task_id) for task_id in tasks * 2]
        wait_until(lambda: store.count("status = 'running'") == 4)
        gate.set()
        assert {answer.result(20).json()["status"] for answer in answers} == {"done"}


def test_whoever_comes_when_too_many_wait_is_answered_at_once(store: Backend) -> None:
    async def scenario() -> None:
        with store.database() as database:
            full = Waiting(database, lambda: False)
            waits = [
                asyncio.ensure_future(full.until_ended(MISSING, 30))
                for _ in range(waiting.CALLERS_MAX)
            ]
            await asyncio.sleep(0)
            await asyncio.wait_for(full.until_ended(MISSING, 30), 5)
            assert not any(one.done() for one in waits)
            await full.look()  # there is no such task
            await asyncio.wait_for(asyncio.gather(*waits), 5)

    asyncio.run(scenario())


def test_those_who_wait_do_not_hold_up_the_stop(store: Backend, tmp_path: Path) -> None:
    with service_process(tmp_path, store.environment()) as service, service.start():
        body = {"name": "probe", "run_at": "2031-07-01T12:00:00Z"}
        task_id = httpx.post(f"{service.url}/tasks", json=body).json()["task_id"]
        with ThreadPoolExecutor(1) as pool:
            address = f"{service.url}/tasks/{task_id}"
            answer = pool.submit(httpx.get, address, headers={"Prefer": "wait=60"}, timeout=60)
            threading.Event().wait(0.5)
            service.stop()
            assert answer.result(10).json()["status"] == "scheduled"
