"""Handlers: the registry, the threads, how they are called, and the built-in report."""

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

import job_scheduler
from job_scheduler.core.handlers.registry import HandlerRegistry, registered
from job_scheduler.core.outcomes import Outcome, Succeeded
from job_scheduler.threads import DaemonThreads
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until

# ------------------------------------------------------------------- the registry


def test_decorated_function_is_registered_and_stays_as_it_is(registry: HandlerRegistry) -> None:
    @registry.task("greet")
    def greet(name: str) -> str:
        return f"Hello {name}"

    handler = registry.get("greet")
    assert handler is not None
    assert (handler.name, handler.function, handler.is_async) == ("greet", greet, False)
    assert greet("Ada") == "Hello Ada"
    assert registry.get("unknown") is None


class AsyncObject:
    """Something that is called like an async function."""

    async def __call__(self) -> None:
        """Do nothing."""


async def async_function(_number: int = 0) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (async_function, True),
        (partial(async_function, 1), True),
        (AsyncObject(), True),
        (lambda: None, False),
        (partial(print, 1), False),
        (int, False),
    ],
)
def test_async_handlers_are_recognised(
    registry: HandlerRegistry, function: Callable[..., Any], is_async: bool
) -> None:
    registry.task("probe")(function)
    handler = registry.get("probe")
    assert handler is not None
    assert handler.is_async is is_async


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, None, len])
def test_unusable_name_is_refused(registry: HandlerRegistry, name: Any) -> None:
    with pytest.raises(ValueError, match="a task needs a name of 1 to 255 characters"):
        registry.task(name)
    assert registry.names() == []


def test_second_handler_of_a_name_is_refused(registry: HandlerRegistry) -> None:
    registry.task("probe")(print)
    with pytest.raises(ValueError, match="two handlers are registered under the name 'probe'"):
        registry.task("probe")(len)
    handler = registry.get("probe")
    assert handler is not None
    assert handler.function is print


def test_users_handler_replaces_a_built_in_one(store: Backend, registry: HandlerRegistry) -> None:
    registry.task("send_report")(lambda: "mine")
    registry.task("b")(lambda: None)
    with running(store, registry) as client:
        assert services_of(client).works.registry.names() == ["b", "send_report"]
        task = post(client, name="send_report", run_at=later(0))
        assert finished(client, task["task_id"])["result"] == "mine"


def test_packages_task_decorator_fills_the_services_own_registry() -> None:
    assert job_scheduler.task == registered.task
    script = (
        "from job_scheduler import task\n"
        "@task('greet')\n"
        "def greet(): ...\n"
        "from job_scheduler.core.handlers.registry import registered\n"
        "print(registered.names())\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "['greet']", found.stderr


# -------------------------------------------------------------------- the threads


def test_threads_are_bounded_reused_and_end_with_close() -> None:
    gate = threading.Semaphore(0)
    used: set[str] = set()

    def job(number: int) -> Outcome:
        used.add(threading.current_thread().name)
        assert gate.acquire(timeout=30)
        return Succeeded(number)

    async def scenario() -> None:
        threads = DaemonThreads(3, "handler")
        first = threads.submit(lambda: job(0))
        gate.release()
        assert await first == Succeeded(0)
        second = threads.submit(lambda: job(1))
        gate.release()
        await second
        assert used == {"handler-1"}
        outcomes = [threads.submit(partial(job, number)) for number in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(used) == 3)
        gate.release(10)
        assert await asyncio.gather(*outcomes) == [Succeeded(number) for number in range(10)]
        assert used == {"handler-1", "handler-2", "handler-3"}
        threads.close()

    before = set(threading.enumerate())
    asyncio.run(scenario())
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_context_of_the_caller_is_the_handlers_context() -> None:
    variable = contextvars.ContextVar("variable", default="nobody")

    async def scenario() -> Outcome:
        threads = DaemonThreads(1, "handler")
        variable.set("caller")
        try:
            return await threads.submit(lambda: Succeeded(variable.get()))
        finally:
            threads.close()

    assert asyncio.run(scenario()) == Succeeded("caller")


def test_handler_that_ends_after_its_caller_gave_up_frees_its_thread() -> None:
    gate = threading.Event()

    def slow() -> Outcome:
        assert gate.wait(30)
        return Succeeded("late")

    async def scenario() -> None:
        threads = DaemonThreads(1, "handler")
        given_up = threads.submit(slow)
        following = threads.submit(lambda: Succeeded("next"))
        given_up.cancel()
        gate.set()
        assert await following == Succeeded("next")
        threads.close()

    asyncio.run(scenario())


def test_handler_that_ends_after_the_loop_disturbs_nobody() -> None:
    gate = threading.Event()

    def slow() -> Outcome:
        assert gate.wait(30)
        return Succeeded("nobody listens")

    async def scenario() -> None:
        threads = DaemonThreads(1, "handler")
        threads.submit(slow).cancel()
        threads.close()

    before = set(threading.enumerate())
    asyncio.run(scenario())
    gate.set()
    wait_until(lambda: set(threading.enumerate()) <= before)


# ------------------------------------------------------------------- how they are called


def test_plain_handlers_leave_the_loop_free(store: Backend, registry: HandlerRegistry) -> None:
    names: dict[str, str] = {}

    @registry.task("plain")
    def plain() -> None:
        names["plain"] = threading.current_thread().name

    @registry.task("async")
    async def on_the_loop() -> None:
        names["async"] = threading.current_thread().name
        names["loop"] = str(asyncio.get_running_loop() is not None)

    with running(store, registry) as client:
        for name in ("plain", "async"):
            finished(client, post(client, name=name, run_at=later(0))["task_id"])
    assert names["plain"].startswith("handler-")
    assert not names["async"].startswith("handler-")


def test_payload_is_passed_as_keyword_arguments(store: Backend, registry: HandlerRegistry) -> None:
    registry.task("probe")(lambda **members: members)
    payload = {"a": 1, "b": [None, {"c": "ü"}], "größe": 2**63 - 1, "not an identifier": 1.5}
    with running(store, registry) as client:
        task = post(client, run_at=later(0), payload=payload)
        assert finished(client, task["task_id"])["result"] == payload
        task = post(client, run_at=later(0))
        assert finished(client, task["task_id"])["result"] == {}


def test_what_is_claimed_after_the_stop_is_given_back(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []

    @registry.task("async")
    async def on_the_loop() -> None:
        calls.append("async")

    task_ids = [store.insert_task(name, run_at=later(-1)) for name in ("async", "timer")]
    before = [store.row(task_id) for task_id in task_ids]

    async def scenario() -> None:
        async with bench(store, registry) as one:
            one.caller.stop()
            for task_id in task_ids:
                await one.runner.run_task(task_id)

    asyncio.run(scenario())
    for former in before:
        assert store.row(former["task_id"]) | {"updated_at": None} == former | {"updated_at": None}
    assert store.sql("SELECT * FROM task_runs") == []
    assert calls == []


# ---------------------------------------------------------------------------- timers


def test_task_without_a_handler_is_a_timer(backend: Backend) -> None:
    with running(backend) as client:
        punctual = finished(client, post(client, name="egg", run_at=later(0.2))["task_id"])
        late = finished(client, backend.insert_task("egg", run_at=later(-60)))
    assert punctual["status"] == late["status"] == "done"
    assert "No task handler is named 'egg'" in punctual["result"]["message"]
    assert punctual["result"]["fired_at"] == punctual["started_at"]
    assert 0 <= punctual["result"]["late_seconds"] < 5
    assert 60 <= late["result"]["late_seconds"] < 90


# -------------------------------------------------------------------- send_report

REPORT_END = "2027-07-01T12:00:00Z"


def fill(store: Backend) -> list[str]:
    """Tasks of the morning of a day: late by 1, 2, 3 and 60 s; return the failed ones."""
    rows: list[tuple[str, str, str | None, str | None]] = [
        ("done", "2027-07-01 09:00:00", "2027-07-01 09:00:01", None),
        ("done", "2027-07-01 10:00:00", "2027-07-01 10:01:00", None),
        ("failed", "2027-07-01 11:00:00", "2027-07-01 11:00:02", '"first"'),
        ("failed", "2027-07-01 11:30:00", "2027-07-01 11:30:03", '"second"'),
        ("failed", "2027-07-01 11:45:00", None, '"missed"'),
        ("scheduled", "2027-07-01 12:00:00", None, None),
        # Not of this period:
        ("done", "2027-07-01 12:00:01", "2027-07-01 13:00:00", None),
        ("failed", "2027-06-01 11:00:00", "2027-06-01 12:00:00", '"long ago"'),
    ]
    failed = []
    for status, run_at, started_at, result in rows:
        begun = f"{started_at}.000000" if started_at else None
        task_id = store.insert_task(
            f"job-{status}",
            status=status,
            run_at=f"{run_at}.000000+00:00",
            created_at="2027-01-01 00:00:00.000000",
            started_at=begun,
            finished_at=begun or ("2027-07-01 11:50:00.000000" if result else None),
            result=result,
        )
        if result and run_at > "2027-07":
            failed.append(task_id)
    return failed


def test_report_counts_tasks_and_tells_how_late_they_started(store: Backend) -> None:
    failed = fill(store)
    with running(store, recover_past_tasks="skip") as client:
        payload = {"hours": 24, "until": REPORT_END}
        task = post(client, name="send_report", run_at=later(0), payload=payload)
        report = finished(client, task["task_id"])["result"]
    assert report["from"] == "2027-06-30T12:00:00Z"
    assert report["until"] == REPORT_END
    assert report["tasks_by_status"] == {"done": 2, "failed": 3, "scheduled": 1}
    lateness = report["lateness_seconds"]
    assert lateness["tasks"] == 4
    # SQLite reckons in days, so that the last digits are rounded.
    assert lateness["median"] == pytest.approx(2, abs=0.001)
    assert lateness["worst"] == pytest.approx(60, abs=0.001)
    errors = [(entry["task_id"], entry["error"]) for entry in report["latest_failures"]]
    assert errors == list(zip(reversed(failed), ["missed", "second", "first"], strict=True))
    assert report["latest_failures"][0]["name"] == "job-failed"
    assert report["latest_failures"][1]["finished_at"] == "2027-07-01T11:30:03Z"


def test_report_in_markdown(store: Backend) -> None:
    failed = fill(store)
    payload = {"hours": 24, "until": "2027-07-01T14:00:00+02:00", "format": "markdown"}
    with running(store, recover_past_tasks="skip") as client:
        task = post(client, name="send_report", run_at=later(0), payload=payload)
        report = finished(client, task["task_id"])["result"]
    assert report.startswith("# Tasks from 2027-06-30T12:00:00Z until 2027-07-01T12:00:00Z\n")
    assert "| done | 2 |\n| failed | 3 |\n| scheduled | 1 |" in report
    assert "Started: 4; late by " in report
    assert f"- 2027-07-01T11:30:03Z **job-failed** ({failed[1]}): second" in report


def test_report_of_a_period_without_tasks(store: Backend) -> None:
    payload = {"hours": 0.5, "until": "2001-01-01T00:00:00"}
    with running(store) as client:
        results = [
            finished(
                client, post(client, name="send_report", run_at=later(0), payload=body)["task_id"]
            )
            for body in (payload, payload | {"format": "markdown"})
        ]
    assert results[0]["result"] == {
        "from": "2000-12-31T23:30:00Z",
        "until": "2001-01-01T00:00:00Z",
        "tasks_by_status": {},
        "lateness_seconds": {"tasks": 0, "median": None, "worst": None},
        "latest_failures": [],
    }
    assert "None has started." in results[1]["result"]
    assert results[1]["result"].endswith("## Latest failures\n\nNone.")


def test_report_covers_the_last_day_unless_said_otherwise(store: Backend) -> None:
    before = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    with running(store) as client:
        task = post(client, name="send_report", run_at=later(0))
        report = finished(client, task["task_id"])["result"]
    begin, end = (datetime.fromisoformat(report[name]) for name in ("from", "until"))
    assert (end - begin).total_seconds() == 86_400
    assert 0 <= (end - before).total_seconds() < 30
    # The report is itself one of the tasks.
    assert report["tasks_by_status"] == {"running": 1}
    assert report["lateness_seconds"]["tasks"] == 1


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"hours": 0}, "greater than 0"),
        ({"hours": -1}, "greater than 0"),
        ({"hours": 1e9}, "less than or equal to 8784"),
        ({"hours": True}, "a valid number"),
        ({"hours": "24"}, "a valid number"),
        ({"until": "tomorrow"}, "Write it like 2027-07-01T10:00:00Z"),
        ({"until": 7}, "Write it like 2027-07-01T10:00:00Z"),
        ({"until": "9999-12-31T23:59:59-10:00"}, "There is no such date and time in UTC"),
        ({"format": "pdf"}, "'json' or 'markdown'"),
        ({"days": 1}, "The handler takes no such argument."),
    ],
)
def test_report_with_a_bad_payload_is_refused_with_a_clear_error(
    store: Backend, payload: dict[str, Any], complaint: str
) -> None:
    with running(store) as client:
        body = task_body(name="send_report", run_at=later(0), payload=payload)
        problem = assert_problem(client.post("/tasks", json=body), 422, "PAYLOAD_422")
    [fault] = problem["errors"]
    [member] = payload
    assert (fault["location"], fault["field"]) == ("body", f"payload.{member}")
    assert complaint in fault["detail"]
    assert not fault["detail"].endswith("..")
    assert store.count() == 0


def test_report_of_a_time_before_all_others_fails_and_says_why(store: Backend) -> None:
    with running(store) as client:
        payload = {"until": "0001-01-01T00:00:00Z"}
        task = post(client, name="send_report", run_at=later(0), payload=payload)
        ended = finished(client, task["task_id"])
    assert ended["status"] == "failed"
    assert "until must lie 24 hours after the year 1 began" in ended["result"]
