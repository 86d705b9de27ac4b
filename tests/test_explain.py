"""GET /tasks/{task_id}/explain: one case for each reason, reached as it is in real life."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, func, select

from job_scheduler import RunContext
from job_scheduler.constants import InstanceState, OnCrash, RecoverPastTasks, RunOutcome, TaskStatus
from job_scheduler.core import own_words
from job_scheduler.core.downtime import Downtime
from job_scheduler.core.explain import explain
from job_scheduler.core.fact_finding import read_facts
from job_scheduler.core.facts import (
    Attempt,
    CatchUpFacts,
    Facts,
    Here,
    History,
    InstanceFacts,
    Line,
    Room,
    TaskFacts,
)
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.limits import HandlerLimit
from job_scheduler.core.locks import InProcessLock
from job_scheduler.core.rates import Rate
from job_scheduler.core.reasons import ReasonCode, duration
from job_scheduler.core.schemas_explain import TaskExplanation
from job_scheduler.core.store import tasks
from job_scheduler.database import Database
from job_scheduler.identifiers import new_token
from tests.conftest import POSTGRESQL
from tests.support.app import (
    ROOT,
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    refused,
    running,
    services_of,
    shown,
    statements,
)
from tests.support.services import wait_until

MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
HOUR = 3600.0
HOURLY = {"interval_seconds": HOUR, "timezone": "UTC"}


def explained(client: Any, task_id: str) -> dict[str, dict[str, Any]]:
    """Ask why; return the reasons by their codes, in their order."""
    response = client.get(f"/tasks/{task_id}/explain")
    assert response.status_code == 200, response.text
    answer = response.json()
    reasons = answer["reasons"]
    assert answer["task_id"] == task_id
    assert answer["status"] == shown(client, task_id)["status"]
    assert answer["summary"] == reasons[0]["text"]
    codes = [reason["code"] for reason in reasons]
    assert len(set(codes)) == len(codes)
    for reason in reasons:
        assert reason["text"][-1:] in (".", "…") or reason["code"] == "failed", reason
        assert reason["remedy"].endswith("."), reason
        assert None not in reason.values(), reason
    return {reason["code"]: reason for reason in reasons}


def codes(client: Any, task_id: str) -> list[str]:
    """Ask why; return the codes alone, in their order."""
    return list(explained(client, task_id))


def only(client: Any, task_id: str, code: str) -> dict[str, Any]:
    """Ask why; return the reason, which is the only one."""
    reasons = explained(client, task_id)
    assert list(reasons) == [code], reasons
    return reasons[code]


def near(text: str, seconds: float, within: float = 30.0) -> None:
    """Check that a time lies in about so many seconds."""
    ahead = (parse_time(text) - datetime.now(UTC)).total_seconds()  # noqa: TID251
    assert abs(ahead - seconds) < within, (text, seconds)


_BEGIN: dict[str, datetime] = {}


@pytest.fixture(autouse=True)
def begin() -> None:
    """The second in which the test begins, from which ``ago`` counts."""
    _BEGIN["test"] = datetime.now(UTC).replace(microsecond=0)  # noqa: TID251 (tests have a clock)


def hours_ago(hours: float) -> datetime:
    """The instant so many hours before the test began."""
    return _BEGIN["test"] - timedelta(hours=hours)


def ago(hours: float) -> str:
    """The same, as both databases take it."""
    return hours_ago(hours).strftime("%Y-%m-%d %H:%M:%S.%f")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds up the handlers of ``held``, until it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def held(gate: threading.Event) -> HandlerRegistry:
    """A registry with a handler that ends when the gate is opened."""
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(30))
    return registry


@pytest.fixture
def works() -> HandlerRegistry:
    """A registry with a handler that does its work."""
    registry = HandlerRegistry()
    registry.task("probe")(lambda: "well")
    return registry


def until_running(store: Backend, number: int = 1) -> None:
    """Wait until so many tasks run."""
    wait_until(lambda: store.count("status = 'running'") == number)


def until_blocked(client: Any, task_id: str) -> None:
    """Wait until a limit has set a task aside."""
    wait_until(lambda: shown(client, task_id)["blocked_by"])


def insert_run(store: Backend, task_id: str, **columns: Any) -> None:
    """Enter an attempt that has ended into a task's history, as the record does."""
    columns = {
        "task_id": task_id,
        "claim_token": new_token(),
        "attempt": 1,
        "outcome": "done",
    } | columns
    columns.setdefault("started_at", columns["scheduled_for"])
    columns.setdefault("finished_at", columns["started_at"])
    store.sql(
        f"INSERT INTO task_runs ({', '.join(columns)}) "  # noqa: S608 (the test's own)
        f"VALUES ({', '.join(f':{column}' for column in columns)})",
        **columns,
    )


def insert_instance(store: Backend, begin: str, end: str, state: str = "dead") -> str:
    """Enter an instance of some other host that lived from then to then."""
    instance_id = new_token()
    store.sql(
        "INSERT INTO instances (instance_id, host, pid, process_started, state, started_at, "
        "heartbeat_at) VALUES (:instance_id, 'elsewhere', 1, 'once', :state, :begin, :end)",
        instance_id=instance_id,
        state=state,
        begin=begin,
        end=end,
    )
    return instance_id


@contextmanager
def long_running(store: Backend, registry: HandlerRegistry, **options: Any) -> Iterator[TestClient]:
    """The service, as if it had been started long ago."""
    with running(store, registry, **options) as client:
        store.sql("UPDATE instances SET started_at = :begin", begin=ago(1000))
        yield client


# ---------------------------------------------------------------------- before its time


def test_task_that_is_not_due_says_for_how_long(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        task = post(client, run_at=later(3 * HOUR + 30))
        reason = only(client, task["task_id"], "not_due")
        missing = client.get(f"/tasks/{MISSING}/explain")
        assert_problem(missing, 404, "TASK_404")
        assert_problem(client.get("/tasks/nonsense/explain"), 404, "TASK_404")
    assert reason["text"].startswith("It is not due for 3 h: its time is ")
    assert reason["until"] == task["run_at"]
    assert 3 * HOUR < reason["seconds"] <= 3 * HOUR + 30


def test_paused_task(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        task_id = post(client, run_at=later(HOUR))["task_id"]
        client.post(f"/tasks/{task_id}/pause")
        reasons = explained(client, task_id)
        due = store.insert_task(run_at=later(-HOUR), status="paused")
        assert only(client, due, "paused")["remedy"].startswith(f"POST /tasks/{due}/resume")
    assert list(reasons) == ["paused", "not_due"]
    assert reasons["not_due"]["remedy"].endswith(f"POST /tasks/{task_id}/run starts it now.")


def test_task_that_waits_for_its_retry(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=3, retry_delay=[HOUR])
    def probe() -> None:
        raise ValueError("no luck")

    with running(store, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        wait_until(lambda: shown(client, task_id)["retry_at"])
        reasons = explained(client, task_id)
    assert list(reasons) == ["waiting_for_retry", "attempt_failed"]
    waits = reasons["waiting_for_retry"]
    assert (waits["attempts"], waits["max_attempts"]) == (1, 3)
    assert waits["text"].startswith("Attempt 1 of 3 has not succeeded (ValueError: no luck); ")
    assert waits["error"] == "ValueError: no luck"
    near(waits["until"], HOUR)
    assert reasons["attempt_failed"]["attempts"] == 1


def test_task_that_is_run_again_later(store: Backend, works: HandlerRegistry) -> None:
    task_id = store.insert_task(run_at=ago(2), retry_at=later(HOUR), attempt=2, max_attempts=2)
    with running(store, works) as client:
        reason = only(client, task_id, "run_again")
    assert (reason["attempts"], reason["max_attempts"]) == (2, 2)
    near(reason["until"], HOUR)


def test_start_that_the_jitter_puts_off(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        body = {"name": "probe", "cron": "@daily", "jitter_seconds": 600}
        task = client.post("/tasks", json=body).json()
        reasons = explained(client, task["task_id"])
    assert list(reasons) == ["jitter", "recurs"]
    assert reasons["jitter"]["until"] == task["retry_at"]
    assert reasons["jitter"]["run_at"] == task["run_at"]
    assert reasons["recurs"]["next_at"] == task["run_at"]
    assert reasons["recurs"]["text"].startswith("It has not run yet; its next time is ")
    assert reasons["jitter"]["remedy"].endswith("/run makes an extra run now.")


def test_start_that_was_put_off_for_no_known_reason(store: Backend, works: HandlerRegistry) -> None:
    task_id = store.insert_task(run_at=ago(2), retry_at=later(HOUR))
    with running(store, works) as client:
        reason = only(client, task_id, "put_off")
    assert "not recorded" in reason["text"]
    near(reason["until"], HOUR)


# ------------------------------------------------------------------- handlers and names


def test_task_whose_handler_is_missing_in_this_release(
    store: Backend, works: HandlerRegistry
) -> None:
    with running(store, works) as client:
        task_id = post(client, run_at=later(1.5))["task_id"]
    with running(store) as client:
        wait_until(lambda: shown(client, task_id)["retry_at"])
        parked = only(client, task_id, "no_handler")
        early = store.insert_task(expects_handler=True)
        assert codes(client, early) == ["not_due", "no_handler"]
        instance_id = services_of(client).heartbeat.instance_id
    assert parked["name"] == "probe"
    assert parked["instance_id"] == instance_id
    near(parked["until"], 60)
    with running(store, works) as client:
        again = only(client, task_id, "no_handler")
        near(again["until"], 60)
        assert "looked at again" in again["text"]


def test_every_task_waits_for_its_handler_where_unknown_names_are_rejected(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(HOUR))
    with running(store, unknown_tasks="reject") as client:
        assert codes(client, task_id) == ["not_due", "no_handler"]


def test_task_that_only_keeps_the_time(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=later(HOUR))["task_id"]
        reasons = explained(client, task_id)
        assert list(reasons) == ["not_due", "timer"]
        ended = finished(client, post(client, run_at=later(0))["task_id"])
        done = only(client, ended["task_id"], "timer")
        webhook = store.insert_task(webhook='{"url": "http://127.0.0.1:9/"}')
        assert codes(client, webhook) == ["not_due"]
    assert reasons["timer"]["name"] == done["name"] == "probe"
    assert done["finished_at"] == ended["finished_at"]


# ------------------------------------------------------------------------------- limits


def test_task_that_waits_for_its_key(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    with running(store, held) as client:
        first = post(client, run_at=later(0), concurrency_key="k")["task_id"]
        until_running(store)
        second, third = (
            post(client, run_at=later(0), concurrency_key="k")["task_id"] for _ in range(2)
        )
        until_blocked(client, second)
        until_blocked(client, third)
        holders = only(client, second, "waiting_for_key")
        behind = only(client, third, "waiting_for_key")
        store.sql("UPDATE scheduled_tasks SET priority = 1 WHERE task_id = :id", id=third)
        assert only(client, third, "waiting_for_key")["before"] == 0
        assert only(client, second, "waiting_for_key")["before"] == 1
        # Seen by an instance that has room for more.
        store.sql("UPDATE scheduled_tasks SET max_running = 5 WHERE task_id = :id", id=second)
        reason = only(client, second, "waiting_for_key")
        assert "key 'k', with 1 task before it" in reason["text"]
        gate.set()
        for task_id in (first, second, third):
            finished(client, task_id)
    assert holders["text"] == (
        f"It waits for its concurrency key 'k', which task {first} holds: no more than 1 task "
        "may run beside each other."
    )
    assert holders["limit"] == "key:k"
    assert (holders["key"], holders["holders"]) == ("k", [first])
    assert (holders["running"], holders["places"], holders["before"]) == (1, 1, 0)
    assert behind["before"] == 1
    near(holders["since"], 0)


def test_holders_of_a_key_are_named_up_to_a_bound(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        instance_id = services_of(client).heartbeat.instance_id
        with running_rows(store, instance_id, 12, concurrency_key="k"):
            task_id = store.insert_task(
                run_at=ago(1), concurrency_key="k", max_running=12, blocked_by="key:k"
            )
            reason = only(client, task_id, "waiting_for_key")
    assert (reason["running"], reason["places"], len(reason["holders"])) == (12, 12, 10)
    assert "and 2 more hold" in reason["text"]


@contextmanager
def running_rows(
    store: Backend, instance_id: str, number: int, **columns: Any
) -> Iterator[list[str]]:
    """Rows of tasks that an instance runs, for as long as it does not notice that it does not."""
    ids = [
        store.insert_task(status="running", instance_id=instance_id, **columns)
        for _ in range(number)
    ]
    yield ids


def test_task_that_waits_for_a_place_of_its_handler(store: Backend, gate: threading.Event) -> None:
    registry = HandlerRegistry()
    registry.task("probe", max_running=1)(lambda: gate.wait(30))
    with running(store, registry) as client:
        first = post(client, run_at=later(0))["task_id"]
        until_running(store)
        second = post(client, run_at=later(0))["task_id"]
        until_blocked(client, second)
        reason = only(client, second, "waiting_for_handler")
        gate.set()
        finished(client, second)
    assert (reason["limit"], reason["name"]) == ("handler:probe", "probe")
    assert (reason["holders"], reason["running"], reason["places"]) == ([first], 1, 1)
    assert f"task {first} does" in reason["text"]


def test_task_that_waits_for_the_rate_of_its_handler(store: Backend) -> None:
    registry = HandlerRegistry()
    registry.task("hourly", rate_limit="1/hour")(lambda: "well")
    with running(store, registry) as client:
        finished(client, post(client, name="hourly", run_at=later(0))["task_id"])
        tasks = [post(client, name="hourly", run_at=later(0))["task_id"] for _ in range(2)]
        for task_id in tasks:
            until_blocked(client, task_id)
        first, second = (only(client, task_id, "waiting_for_rate") for task_id in tasks)
    assert "(1 in 1 h), with no other task before it" in first["text"]
    near(first["expected_at"], HOUR)
    near(second["expected_at"], 2 * HOUR)
    assert (first["before"], second["before"]) == (0, 1)
    assert first["rate"] == pytest.approx(1 / HOUR)


def test_limit_that_is_gone_or_has_room_says_so(store: Backend) -> None:
    registry = HandlerRegistry()
    registry.task("spare", max_running=2, rate_limit="10/second")(lambda: "well")
    lock = InProcessLock()
    with running(store, registry, lock=lock) as client:
        for place, (blocked_by, code) in enumerate(
            [
                ("key:k", "waiting_for_key"),
                ("handler:spare", "waiting_for_handler"),
                ("rate:spare", "waiting_for_rate"),
                ("handler:other", "about_to_start"),
                ("rate:other", "about_to_start"),
            ]
        ):
            task_id = f"{MISSING[:-2]}{place:02}"
            assert asyncio.run(lock.acquire(task_id, new_token()))
            store.insert_task(
                "spare", task_id=task_id, run_at=ago(1), concurrency_key="k", blocked_by=blocked_by
            )
            reason = only(client, task_id, code)
            assert "about to start" in reason["text"]
            assert reason["limit"] == blocked_by


# ----------------------------------------------------------------------------- capacity


def test_task_for_which_there_is_no_place(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    held.task("other")(lambda: "well")
    with running(store, held, threads=1) as client:
        post(client, run_at=later(0))
        until_running(store)
        urgent = post(client, name="other", run_at=later(0), priority=2)["task_id"]
        usual = post(client, name="other", run_at=later(0))["task_id"]
        same = post(client, run_at=later(0))["task_id"]
        reasons = [only(client, each, "waiting_for_capacity") for each in (urgent, usual, same)]
        on_loop = store.insert_task(run_at=later(HOUR))
        assert codes(client, on_loop) == ["not_due"]
        gate.set()
        finished(client, same)
    assert [reason["before"] for reason in reasons] == [0, 1, 2]
    assert [(each["running"], each["places"]) for each in reasons] == [(1, 1)] * 3
    assert "waits for a place: 1 of 1 are taken, with 1 task before it" in reasons[1]["text"]
    assert (reasons[2]["running_of_name"], reasons[2]["places_of_name"]) == (1, 1)
    assert "'probe' take all places that one name may take (1 of 1)" in reasons[2]["text"]


def test_all_places_of_an_instance_may_be_fewer_than_its_threads(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    held.task("other")(lambda: "well")
    with running(store, held, threads=4, max_running=2) as client:
        for _ in range(2):
            post(client, run_at=later(0))
        until_running(store, 2)
        task_id = post(client, name="other", run_at=later(0))["task_id"]
        reason = only(client, task_id, "waiting_for_capacity")
        gate.set()
        finished(client, task_id)
    assert (reason["running"], reason["places"]) == (2, 2)


def test_task_that_is_about_to_start(store: Backend, works: HandlerRegistry) -> None:
    lock = InProcessLock()
    assert asyncio.run(lock.acquire(MISSING, new_token()))
    with running(store, works, lock=lock) as client:
        post(client, task_id=MISSING, run_at=later(-1))
        # Each in places of another kind.
        instance_id = services_of(client).heartbeat.instance_id
        store.insert_task(status="running", instance_id=instance_id, command='["true"]')
        store.insert_task("else", status="running", instance_id=instance_id)
        reason = only(client, MISSING, "about_to_start")
    assert (reason["running"], reason["places"], reason["before"]) == (0, 16, 0)
    near(reason["since"], -1)


def test_places_are_those_of_all_instances_but_for_the_lost_ones(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    lock = InProcessLock()
    assert asyncio.run(lock.acquire(MISSING, new_token()))
    held.task("hangs", timeout=0.1)(lambda: gate.wait(30))
    with running(store, held, lock=lock, lease_seconds=60, threads=3) as client:
        insert_instance(store, ago(1), later(0), "alive")
        insert_instance(store, ago(1), later(0), "starting")
        insert_instance(store, ago(2), ago(1))
        finished(client, post(client, name="hangs", run_at=later(0))["task_id"])
        assert services_of(client).dispatcher.lost == 1
        post(client, task_id=MISSING, run_at=later(-1))
        reason = only(client, MISSING, "about_to_start")
        gate.set()
    assert (reason["running"], reason["places"]) == (0, 5)


def test_tasks_before_it_are_counted_up_to_a_bound(store: Backend, works: HandlerRegistry) -> None:
    lock = InProcessLock()
    assert asyncio.run(lock.acquire(MISSING, new_token()))
    with running(store, works, lock=lock, max_running=1) as client:
        store.insert_tasks(1_500, run_at=later(HOUR))
        task_id = store.insert_task(run_at=later(-HOUR), blocked_by="key:k", concurrency_key="k")
        store.sql(
            "UPDATE scheduled_tasks SET blocked_by = 'key:k', concurrency_key = 'k', "
            "run_at = :run_at WHERE task_id != :id",
            run_at=ago(2),
            id=task_id,
        )
        reasons = explained(client, task_id)
    assert reasons["waiting_for_key"]["before"] == 1_000
    assert "1000 tasks or more before it" in reasons["waiting_for_key"]["text"]


@pytest.mark.parametrize(
    ("blocked_by", "text"),
    [
        ("handler:probe", "It waits for its handler's max_running, with 3 tasks before it."),
        ("rate:probe", "with 3 tasks before it: it may start at about "),
        ("key:k", "It waits for its concurrency key 'k', with 3 tasks before it."),
    ],
)
def test_tasks_before_it_take_the_room_that_there_is(blocked_by: str, text: str) -> None:
    facts = Facts(NOON, waits(blocked_by=blocked_by), line=Line(before=3))
    limits = {"probe": HandlerLimit(2, Rate(2, 1.0))}
    [reason] = explain(facts, here(limits=limits)).reasons
    assert text in reason.text
    assert reason.data["before"] == 3


# ----------------------------------------------------------------- missed and too late


def test_task_that_was_missed_and_set_aside(store: Backend, works: HandlerRegistry) -> None:
    insert_instance(store, ago(9), ago(2))
    insert_instance(store, ago(20), ago(10))
    task_id = store.insert_task(run_at=ago(1))
    with running(store, works, recover_past_tasks="skip") as client:
        reason = only(client, task_id, "missed")
        started = services_of(client).sweep.last_at
    assert reason["policy"] == "skip"
    assert parse_time(reason["since"]) == hours_ago(2)
    near(reason["until"], 0)
    assert started is not None
    assert f"while the service was down from {reason['since']} to " in reason["text"]
    assert reason["remedy"].startswith(f"POST /tasks/{task_id}/run runs it after all")


def test_task_that_was_missed_at_a_time_nobody_remembers(
    store: Backend, works: HandlerRegistry
) -> None:
    task_id = store.insert_task(run_at=ago(100), missed_at=ago(50))
    with running(store, works) as client:
        reason = only(client, task_id, "missed")
    assert "while the service was down, and set aside" in reason["text"]
    assert not {"since", "until"} & reason.keys()


@pytest.mark.parametrize("known", [True, False])
def test_task_that_was_missed_and_failed(
    store: Backend, works: HandlerRegistry, known: bool
) -> None:
    if known:
        insert_instance(store, ago(9), ago(2))
    task_id = store.insert_task(run_at=ago(1))
    with running(store, works, recover_past_tasks="fail") as client:
        reason = only(client, task_id, "missed")
    assert reason["policy"] == "fail"
    near(reason["until"], 0)
    assert ("since" in reason) == known
    assert reason["remedy"].startswith(f"POST /tasks/{task_id}/retry ")


def test_missed_tasks_that_are_released_at_a_bounded_rate(
    store: Backend, works: HandlerRegistry
) -> None:
    for number in range(15):
        store.insert_task(run_at=ago(1 + number), task_id=f"{MISSING[:-2]}{number:02}")
    with running(store, works, recovery_rate=1) as client:
        wait_until(lambda: store.count("missed_at IS NULL") >= 10)
        youngest = explained(client, f"{MISSING[:-2]}00")
        released = explained(client, f"{MISSING[:-2]}05")
    waits = youngest["waiting_for_release"]
    assert list(youngest) == ["waiting_for_release"]
    assert waits["rate"] == 1
    assert 1 <= waits["before"] <= 4
    assert f"1 a second, with {waits['before']} task" in waits["text"]
    near(waits["expected_at"], 14, within=10)
    assert list(released) == ["released"]
    assert parse_time(released["released"]["run_at"]) == hours_ago(6)


def test_missed_tasks_that_wait_for_an_approval(store: Backend, works: HandlerRegistry) -> None:
    tasks = [store.insert_task(run_at=ago(hours)) for hours in (3, 2, 1)]
    with running(store, works, recovery_hold_above=1) as client:
        reason = only(client, tasks[2], "waiting_for_approval")
        assert client.post(f"/tasks/{tasks[2]}/run").status_code == 200
        finished(client, tasks[2])
    assert reason["before"] == 2
    assert "POST /recovery/approve" in reason["remedy"]


def test_task_that_expires(store: Backend, works: HandlerRegistry) -> None:
    waits = store.insert_task(run_at=later(HOUR), start_before=ago(-0.5), status="paused")
    with running(store, works) as client:
        assert codes(client, waits) == ["paused", "expired", "not_due"]
        assert codes(client, store.insert_task(start_before=ago(-2))) == ["not_due"]
        task = post(client, run_at=later(-60), start_before=later(-30))
        finished(client, task["task_id"])
        reason = only(client, task["task_id"], "expired")
    assert reason["until"] == task["start_before"]


def test_recurring_task_without_any_time_left(store: Backend, works: HandlerRegistry) -> None:
    over = json.dumps(HOURLY | {"end_at": f"{ago(1)}+00:00"})
    task_id = store.insert_task(run_at=ago(1.5), recurrence=over, run_count=0)
    with running(store, works, recover_past_tasks="skip") as client:
        reasons = explained(client, task_id)
    assert list(reasons) == ["over", "recurs"]
    assert "next_at" not in reasons["recurs"]


# -------------------------------------------------------------------------- while it runs


def test_task_that_runs(store: Backend, gate: threading.Event) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", timeout=60)
    def probe(context: RunContext) -> None:
        context.progress(0.25, "page 1 of 4")
        gate.wait(30)

    with running(store, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        wait_until(lambda: shown(client, task_id)["progress"])
        task = shown(client, task_id)
        reason = only(client, task_id, "running")
        client.post(f"/tasks/{task_id}/cancel")
        cancelled = explained(client, task_id)
        gate.set()
        finished(client, task_id)
        own = post(client, run_at=later(0), timeout=30)["task_id"]
        finished(client, own)
    assert reason["since"] == task["started_at"]
    assert reason["instance_id"] == task["instance_id"]
    assert reason["progress"] == {"fraction": 0.25, "message": "page 1 of 4"}
    assert parse_time(reason["until"]) - parse_time(reason["since"]) == timedelta(seconds=60)
    assert list(cancelled) == ["cancelling", "running"]
    near(cancelled["cancelling"]["since"], 0)


def test_run_of_an_instance_that_is_silent(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works, lease_seconds=60) as client:
        silent = insert_instance(store, ago(1), later(-45), "alive")
        quiet = insert_instance(store, ago(1), later(-20), "alive")
        reasons = explained(
            client,
            store.insert_task(status="running", run_at=later(0), instance_id=silent, timeout=90),
        )
        other = store.insert_task(status="running", run_at=later(0), instance_id=quiet)
        assert codes(client, other) == ["running"]
    assert list(reasons) == ["instance_silent", "running"]
    assert reasons["instance_silent"]["instance_id"] == silent
    near(reasons["instance_silent"]["until"], 15, within=10)
    started = parse_time(reasons["running"]["since"])
    assert parse_time(reasons["running"]["until"]) - started == timedelta(seconds=90)


@pytest.mark.parametrize("known", [True, False])
def test_run_of_an_instance_that_has_died(
    store: Backend, works: HandlerRegistry, known: bool
) -> None:
    with running(store, works) as client, refused(store, "NEW.status = 'failed'"):
        dead = insert_instance(store, ago(2), ago(1)) if known else new_token()
        task_id = store.insert_task(status="running", run_at=later(0), instance_id=dead)
        reasons = explained(client, task_id)
    assert list(reasons) == ["instance_dead", "running"]
    assert ("since" in reasons["instance_dead"]) == known


# ------------------------------------------------------------------------ how it has ended


def test_task_that_is_done_with_nothing_unusual(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        task = finished(client, post(client, run_at=later(0.3))["task_id"])
        assert only(client, task["task_id"], "done")["finished_at"] == task["finished_at"]


@pytest.mark.parametrize(("error", "told"), [("no", "no"), ("x" * 501, "x" * 500 + " …")])
def test_task_that_has_failed(store: Backend, error: str, told: str) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=2, retry_delay=[0])
    def probe() -> None:
        raise RuntimeError(error)

    with running(store, registry) as client:
        task_id = finished(client, post(client, run_at=later(0))["task_id"])["task_id"]
        reasons = explained(client, task_id)
    assert list(reasons) == ["failed", "attempt_failed"]
    failed = reasons["failed"]
    assert (failed["attempts"], failed["max_attempts"]) == (2, 2)
    assert failed["error"] == f"RuntimeError: {error}"[:500] + (" …" if len(error) > 500 else "")
    assert told[:480] in failed["text"]
    assert reasons["attempt_failed"]["text"].startswith("Attempt 1 failed at ")
    assert f"GET /tasks/{task_id}/runs" in reasons["attempt_failed"]["remedy"]


def test_failure_without_a_reason(store: Backend, works: HandlerRegistry) -> None:
    task_id = store.insert_task(status="failed", attempt=1, run_at=later(0))
    with running(store, works) as client:
        reason = only(client, task_id, "failed")
    assert reason["text"] == "It has failed after 1 attempt: no reason is given."
    assert not {"error", "finished_at"} & reason.keys()


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, ["cut_off"]),
        ({"on_crash": "hold"}, ["unknown"]),
        ({"max_attempts": 2}, ["attempt_crashed"]),
    ],
)
def test_run_that_was_cut_off_by_the_death_of_its_instance(
    store: Backend, works: HandlerRegistry, members: dict[str, Any], expected: list[str]
) -> None:
    with running(store, works) as client:
        task_id = store.insert_task(
            status="running", run_at=later(-1), instance_id=new_token(), **members
        )
        finished(client, task_id)
        reasons = explained(client, task_id)
    assert list(reasons) == expected
    if expected == ["attempt_crashed"]:
        assert reasons["attempt_crashed"]["attempts"] == 1
        near(reasons["attempt_crashed"]["until"], 0)
    else:
        near(reasons[expected[0]]["finished_at"], 0)


def test_cancelled_task(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        before = post(client, run_at=later(HOUR))["task_id"]
        client.post(f"/tasks/{before}/cancel")
        assert "before it started" in only(client, before, "cancelled")["text"]
        begun = store.insert_task(status="cancelled", attempt=1, finished_at=ago(0))
        assert only(client, begun, "cancelled")["text"] == "It was cancelled after 1 attempt."


# -------------------------------------------------------------------------- it ran late


def test_task_that_was_posted_after_its_time(store: Backend, works: HandlerRegistry) -> None:
    with running(store, works) as client:
        task = finished(client, post(client, run_at=later(-90))["task_id"])
        reason = only(client, task["task_id"], "posted_late")
    assert (reason["run_at"], reason["created_at"]) == (task["run_at"], task["created_at"])
    assert reason["started_at"] == task["started_at"]
    assert reason["text"].startswith("It started 1 min 30 s after its time, which had passed")


@pytest.mark.parametrize("known", [True, False])
def test_task_that_a_downtime_made_late(
    store: Backend, works: HandlerRegistry, known: bool
) -> None:
    if known:
        insert_instance(store, ago(9), ago(3))
    task_id = store.insert_task(run_at=ago(1), created_at=ago(4))
    with running(store, works) as client:
        finished(client, task_id)
        reason = only(client, task_id, "late_by_downtime")
    assert reason["seconds"] == pytest.approx(HOUR, abs=30)
    near(reason["until"], 0)
    assert ("since" in reason) == known
    if known:
        assert parse_time(reason["since"]) == hours_ago(3)


def test_task_that_was_late_for_its_key(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    with running(store, held) as client:
        first = post(client, run_at=later(0), concurrency_key="k")["task_id"]
        until_running(store)
        second = post(client, run_at=later(0.1), concurrency_key="k")["task_id"]
        other = post(client, run_at=later(0.1), concurrency_key="k")["task_id"]
        client.post(f"/tasks/{other}/cancel")
        until_blocked(client, second)
        gate.wait(1.5)
        gate.set()
        finished(client, second)
        reason = only(client, second, "late_by_key")
        assert codes(client, first) == ["done"]
    assert (reason["key"], reason["holders"]) == ("k", [first])
    assert f"was held by task {first} meanwhile" in reason["text"]


def test_task_that_was_late_for_no_known_reason(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        task_id = store.insert_task(run_at=ago(1), created_at=ago(2), concurrency_key="k")
        finished(client, task_id)
        reason = only(client, task_id, "late")
    assert "why is not recorded" in reason["text"]
    assert reason["seconds"] == pytest.approx(HOUR, abs=30)


def test_start_that_the_jitter_made_late(store: Backend, works: HandlerRegistry) -> None:
    rule = {"name": "probe", "interval_seconds": HOUR, "jitter_seconds": 2}
    with running(store, works) as client:
        bodies = [rule | {"start_at": later(1)} for _ in range(30)]
        posted = client.post("/tasks/batch", json={"tasks": bodies}).json()
        put_off = {
            task["task_id"]: (parse_time(task["retry_at"]) - parse_time(task["run_at"]))
            for task in posted
        }
        wait_until(lambda: store.count("run_count = 1") == len(posted))
        long = [each for each, delay in put_off.items() if delay > timedelta(seconds=1.1)]
        reasons = {task_id: explained(client, task_id) for task_id in long}
    late = {task_id: found["late_by_jitter"] for task_id, found in reasons.items()}
    assert late
    for task_id, reason in late.items():
        assert list(reasons[task_id]) == ["jitter", "late_by_jitter", "recurs"]
        assert parse_time(reason["until"]) - parse_time(reason["run_at"]) == put_off[task_id]
        assert ": jitter_seconds put it off to " in reason["text"]


def test_start_that_came_later_than_the_jitter_asked_for(
    store: Backend, works: HandlerRegistry
) -> None:
    with long_running(store, works) as client:
        task_id = recurring(store, ago(-0.5), jitter_seconds=60.0)
        insert_run(store, task_id, scheduled_for=ago(0.5), started_at=ago(0.25))
        changed = recurring(store, ago(-0.5), jitter_seconds=7 * 86_400.0)
        insert_run(store, changed, scheduled_for=ago(0.5), started_at=ago(0.4999))
        reasons = explained(client, task_id)
        assert codes(client, changed) == ["not_due", "recurs"]
    assert list(reasons) == ["not_due", "late", "recurs"]
    assert (
        "It started 15 min after its time, of which jitter_seconds asked for "
        in (reasons["late"]["text"])
    )


def test_start_that_the_run_before_it_made_late(store: Backend, gate: threading.Event) -> None:
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(2.5))
    rule = {"name": "probe", "interval_seconds": 1, "overlap": "queue", "max_runs": 3}
    with running(store, registry) as client:
        task_id = client.post("/tasks", json=rule).json()["task_id"]
        wait_until(lambda: store.count("status = 'running' AND run_count = 1") == 1)
        first = client.get(f"/tasks/{task_id}/runs").json()[0]
        under_way = explained(client, task_id)
        gate.set()
        finished(client, task_id)
        reasons = explained(client, task_id)
    assert list(under_way) == ["running", "late_by_overlap", "overlap_queued", "recurs"]
    late = under_way["late_by_overlap"]
    assert late["until"] == first["finished_at"]
    assert late["seconds"] > 1
    assert ": the run before it was under way until " in late["text"]
    assert list(reasons) == ["late_by_overlap", "recurs"]


def test_run_before_it_does_not_make_late_what_came_after_it(
    store: Backend, works: HandlerRegistry
) -> None:
    with long_running(store, works) as client:
        ended, beside = (
            recurring(store, ago(-0.5), overlap=overlap) for overlap in ("queue", "allow")
        )
        insert_run(store, ended, scheduled_for=ago(1.5), finished_at=ago(1.4))
        insert_run(store, beside, scheduled_for=ago(1.5), finished_at=ago(0.45))
        for task_id in (ended, beside):
            insert_run(store, task_id, scheduled_for=ago(0.5), started_at=ago(0.4))
            assert codes(client, task_id) == ["not_due", "late", "recurs"]


def test_run_that_is_under_way_and_came_late(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    with running(store, held) as client:
        task_id = post(client, run_at=later(-90))["task_id"]
        until_running(store)
        assert codes(client, task_id) == ["running", "posted_late"]
        gate.set()


# ----------------------------------------------------------------------- it ran twice


def test_run_that_was_interrupted_by_a_stop(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=2)
    async def probe(context: RunContext) -> None:
        if context.attempt == 1:
            await asyncio.sleep(60)

    with running(store, registry, shutdown_grace=0) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        until_running(store)
    with running(store, registry) as client:
        finished(client, task_id)
        reasons = explained(client, task_id)
    assert list(reasons) == ["attempt_interrupted"]
    assert reasons["attempt_interrupted"]["attempt"] == 1


def test_run_that_lost_its_lease(store: Backend, works: HandlerRegistry) -> None:
    twice = store.insert_task(run_at=ago(1), status="done", attempt=2, max_attempts=2)
    insert_run(store, twice, scheduled_for=ago(1), finished_at=ago(0.5), outcome="lost")
    insert_run(store, twice, scheduled_for=ago(0.9), attempt=2)
    once = store.insert_task(run_at=ago(1), status="failed", attempt=1, result='"interrupted: …"')
    insert_run(store, once, scheduled_for=ago(1), finished_at=ago(0.5), outcome="lost")
    with running(store, works) as client:
        reason = only(client, twice, "lease_lost")
        assert codes(client, once) == ["cut_off", "lease_lost"]
    assert (reason["attempts"], reason["attempt"]) == (1, 1)
    assert parse_time(reason["until"]) == hours_ago(0.5)
    assert "lost its lease: it ended at " in reason["text"]


def test_task_that_somebody_ran_again(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    def probe(context: RunContext) -> str:
        if context.attempt == 1:
            raise ValueError("no")
        return "well"

    with running(store, registry) as client:
        task_id = finished(client, post(client, run_at=later(0))["task_id"])["task_id"]
        client.post(f"/tasks/{task_id}/retry")
        wait_until(lambda: shown(client, task_id)["status"] == "done")
        reasons = explained(client, task_id)
    assert list(reasons) == ["attempt_failed", "run_again"]
    assert (reasons["run_again"]["attempts"], reasons["run_again"]["max_attempts"]) == (2, 1)


def test_attempts_of_one_kind_are_told_together(store: Backend, works: HandlerRegistry) -> None:
    task_id = store.insert_task(run_at=ago(1), retry_at=later(HOUR), attempt=30, max_attempts=50)
    for number in range(1, 31):
        insert_run(
            store,
            task_id,
            scheduled_for=ago(1),
            started_at=ago(1 - number / 60),
            attempt=number,
            outcome="failed",
            result=json.dumps(f"error {number}"),
        )
    with running(store, works) as client:
        reasons = explained(client, task_id)
    assert reasons["waiting_for_retry"]["error"] == "error 30"
    failed = reasons["attempt_failed"]
    assert (failed["attempts"], failed["attempt"]) == (20, 30)
    assert failed["text"].startswith("Attempt 30 (and 19 before it) failed at ")


# -------------------------------------------------------------------- recurring tasks


def recurring(store: Backend, run_at: str, runs: int = 3, **members: Any) -> str:
    """Insert a recurring task as it stands after some runs."""
    columns = {"last_status": "done", "run_count": runs} | members.pop("columns", {})
    rule = json.dumps(HOURLY | members)
    return store.insert_task(run_at=run_at, recurrence=rule, **columns)


def test_recurring_task_tells_of_its_times(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        task_id = recurring(store, ago(-0.5))
        insert_run(store, task_id, scheduled_for=ago(1.5), attempt=1, outcome="failed")
        insert_run(store, task_id, scheduled_for=ago(1.5), started_at=ago(1), attempt=2)
        insert_run(store, task_id, scheduled_for=ago(0.5))
        reasons = explained(client, task_id)
        ended = store.insert_task(
            status="done", run_at=ago(1), recurrence=json.dumps(HOURLY), run_count=1
        )
        over = only(client, ended, "recurs")
        unreadable = store.insert_task(recurrence='{"cron": "nonsense"}')
        assert codes(client, unreadable) == ["not_due"]
    assert list(reasons) == ["not_due", "recurs"]
    assert reasons["recurs"]["text"].startswith("It has run 3 times, the last one done; its next ")
    assert reasons["recurs"]["runs"] == 3
    assert over["text"] == "It has run 1 time."


def test_attempts_of_the_last_occurrence_are_told(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        task_id = recurring(store, ago(-0.5))
        insert_run(store, task_id, scheduled_for=ago(1.5), outcome="crashed")
        insert_run(store, task_id, scheduled_for=ago(1.5), started_at=ago(1), attempt=2)
        insert_run(store, task_id, scheduled_for=ago(0.5), outcome="failed")
        insert_run(store, task_id, scheduled_for=ago(0.5), started_at=ago(0.4), attempt=2)
        assert codes(client, task_id) == ["not_due", "attempt_failed", "recurs"]


def test_recurring_task_whose_runs_fail_tells_the_error(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=2, retry_delay=[0])
    def probe(context: RunContext) -> None:
        raise ValueError(f"no luck with attempt {context.attempt}")

    with running(store, registry) as client:
        rule = {"name": "probe", "interval_seconds": 1}
        task_id = client.post("/tasks", json=rule).json()["task_id"]
        wait_until(lambda: shown(client, task_id)["run_count"] == 1)
        client.post(f"/tasks/{task_id}/pause")
        once = explained(client, task_id)
        client.post(f"/tasks/{task_id}/resume")
        wait_until(lambda: shown(client, task_id)["run_count"] == 3)
        client.post(f"/tasks/{task_id}/pause")
        thrice = explained(client, task_id)
        runs = client.get(f"/tasks/{task_id}/runs").json()
    assert list(once)[:1] == ["paused"]
    first = once["failed"]
    assert first["text"] == (
        f"Its last run, that of {runs[0]['scheduled_for'][:19]}Z, failed after 2 attempts: "
        "ValueError: no luck with attempt 2"
    )
    assert first["error"] == "ValueError: no luck with attempt 2"
    assert (first["attempts"], first["max_attempts"]) == (2, 2)
    assert (first["run_at"], first["finished_at"]) == (
        runs[0]["scheduled_for"],
        runs[1]["finished_at"],
    )
    assert first["remedy"].startswith(f"Mend the cause; GET /tasks/{task_id}/runs lists ")
    assert "attempt_failed" in once
    assert once["recurs"]["text"].startswith("It has run 1 time, the last one failed")
    assert "Nothing needs to be done" not in once["recurs"]["remedy"]
    assert thrice["failed"]["text"].startswith(
        f"Its last 3 runs have failed: the last one, that of {runs[-1]['scheduled_for'][:16]}"
    )


def test_run_of_a_failing_task_that_is_under_way_tells_how_the_last_one_failed(
    store: Backend, works: HandlerRegistry
) -> None:
    failed = {"status": "running", "last_status": "failed", "run_count": 1, "started_at": later(0)}
    with long_running(store, works) as client:
        failed["instance_id"] = services_of(client).heartbeat.instance_id
        first = recurring(store, later(0), columns=failed | {"claim_token": new_token()})
        again = {"attempt": 2, "max_attempts": 2, "claim_token": new_token()}
        second = recurring(store, later(0), columns=failed | again)
        for task_id in (first, second):
            insert_run(store, task_id, scheduled_for=ago(1), outcome="failed", result='"no"')
        insert_run(store, second, scheduled_for=ago(0), outcome="failed")
        reasons = explained(client, first)
        assert codes(client, second) == ["running", "attempt_failed", "recurs"]
        assert "Nothing" not in explained(client, second)["recurs"]["remedy"]
    assert list(reasons) == ["running", "failed", "recurs"]
    assert reasons["failed"]["error"] == "no"


def test_recurring_task_whose_run_was_cut_off(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        crashed, lost, mended = (recurring(store, ago(-0.5)) for _ in range(3))
        insert_run(store, crashed, scheduled_for=ago(0.5), outcome="crashed", result='"dead"')
        insert_run(store, lost, scheduled_for=ago(0.5), outcome="lost", result='"well"')
        for outcome, hours in (("failed", 1.5), ("done", 0.5)):
            insert_run(store, mended, scheduled_for=ago(hours), outcome=outcome)
        reasons = explained(client, crashed)
        assert codes(client, lost) == ["not_due", "cut_off", "lease_lost", "recurs"]
        assert "error" not in explained(client, lost)["cut_off"]
        assert codes(client, mended) == ["not_due", "recurs"]
    assert list(reasons) == ["not_due", "cut_off", "recurs"]
    assert reasons["cut_off"]["error"] == "dead"
    assert reasons["cut_off"]["remedy"].endswith(
        f"POST /tasks/{crashed}/run makes an extra run now."
    )


def test_recurring_task_that_failed_and_whose_history_is_gone(
    store: Backend, works: HandlerRegistry
) -> None:
    with long_running(store, works) as client:
        columns = {"last_status": "failed", "result": '"ValueError: no"'}
        task_id = recurring(store, ago(-0.5), columns=columns)
        reasons = explained(client, task_id)
        silent = recurring(store, ago(-0.5), columns={"last_status": "failed"})
        without = explained(client, silent)["failed"]
    assert list(reasons) == ["not_due", "failed", "recurs"]
    assert reasons["failed"]["text"] == "Its last run failed: ValueError: no"
    assert not {"attempts", "run_at"} & reasons["failed"].keys()
    assert without["text"] == "Its last run failed: no reason is given."


def test_first_run_that_has_not_ended(
    store: Backend, held: HandlerRegistry, gate: threading.Event
) -> None:
    with running(store, held) as client:
        rule = {"interval_seconds": HOUR, "start_at": later(1)}
        task_id = client.post("/tasks", json={"name": "probe"} | rule).json()["task_id"]
        until_running(store)
        begun = explained(client, task_id)["recurs"]
        gate.set()
        failing = recurring(
            store,
            ago(0.1),
            0,
            columns={"retry_at": ago(-1), "attempt": 1, "max_attempts": 2, "last_status": None},
        )
        insert_run(store, failing, scheduled_for=ago(0.1), outcome="failed")
        repeated = explained(client, failing)["recurs"]
    for reason in (begun, repeated):
        assert reason["text"].startswith("Its first run has not ended yet; its next time is ")
        assert reason["runs"] == 0


@pytest.mark.parametrize("recorded", [True, False])
def test_repetition_that_a_downtime_made_to_be_given_up(store: Backend, recorded: bool) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=3, retry_delay=[0.5])
    def probe() -> None:
        raise ValueError("no money")

    with running(store, registry) as client:
        rule = {"interval_seconds": HOUR, "start_at": later(1)}
        task_id = client.post("/tasks", json={"name": "probe"} | rule).json()["task_id"]
        wait_until(lambda: shown(client, task_id)["retry_at"])
    store.sql("UPDATE scheduled_tasks SET retry_at = :past WHERE attempt > 0", past=ago(0.001))
    with running(store, registry, recover_past_tasks="skip") as client:
        if not recorded:  # by a release that did not
            store.sql("UPDATE scheduled_tasks SET run_count = 0, last_status = NULL, result = NULL")
        reasons = explained(client, task_id)
    assert list(reasons) == ["not_due", "failed", "recurs"]
    failed = reasons["failed"]
    assert (failed["error"], failed["attempts"], failed["max_attempts"]) == (
        "ValueError: no money",
        1,
        3,
    )
    given_up = ", and the next one was missed in a downtime" if recorded else ""
    assert f" failed after 1 attempt{given_up}: ValueError: no money" in failed["text"]
    assert reasons["recurs"]["text"].startswith("It has run 1 time, the last one failed; its next ")


def test_times_that_came_while_a_run_was_under_way(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        skips, queues = (
            recurring(store, ago(-0.5), overlap=overlap) for overlap in ("skip", "queue")
        )
        for task_id in (skips, queues):
            insert_run(store, task_id, scheduled_for=ago(3.5), finished_at=ago(1))
            insert_run(store, task_id, scheduled_for=ago(0.5))
        reasons = explained(client, skips)
        assert codes(client, queues) == ["not_due", "times_left_out", "recurs"]
    assert list(reasons) == ["not_due", "overlap_skipped", "recurs"]
    reason = reasons["overlap_skipped"]
    assert reason["count"] == 2
    assert [parse_time(each) for each in reason["times"]] == [hours_ago(2.5), hours_ago(1.5)]
    assert reason["text"].startswith("2 of its times, such as ")


def test_times_that_wait_for_their_turn(store: Backend) -> None:
    registry = HandlerRegistry()
    registry.task("probe", max_running=1)(lambda: "well")
    with long_running(store, registry) as client:
        instance_id = services_of(client).heartbeat.instance_id
        store.insert_task(status="running", instance_id=instance_id)
        waits = {"blocked_by": "handler:probe"}
        queues = recurring(store, ago(2.5), overlap="queue", columns=waits)
        insert_run(store, queues, scheduled_for=ago(3.5), finished_at=ago(1.7))
        first = recurring(store, ago(2.5), overlap="queue", columns=waits)
        passed = recurring(store, ago(2.5), overlap="queue", columns=waits)
        insert_run(store, passed, scheduled_for=ago(3.5), finished_at=ago(3))
        reasons = explained(client, queues)
        for task_id in (first, passed):
            assert codes(client, task_id) == ["waiting_for_handler", "recurs"]
    assert list(reasons) == ["waiting_for_handler", "overlap_queued", "recurs"]
    told = [parse_time(each) for each in reasons["overlap_queued"]["times"]]
    assert told == [hours_ago(2.5), hours_ago(1.5), hours_ago(0.5)]


def test_times_that_come_while_a_run_is_under_way(store: Backend, works: HandlerRegistry) -> None:
    with long_running(store, works) as client:
        instance_id = services_of(client).heartbeat.instance_id
        columns = {
            "status": "running",
            "instance_id": instance_id,
            "started_at": ago(3),
            "attempt": 1,
            "claim_token": new_token(),
        }
        one = recurring(store, ago(1.5), overlap="queue", columns=columns)
        late = explained(client, one)
        columns["claim_token"] = new_token()
        many = recurring(store, ago(2.5), overlap="skip", columns=columns)
        insert_run(store, many, scheduled_for=ago(200.5))
        skipped = explained(client, many)
    assert list(late) == ["running", "overlap_queued", "recurs"]
    assert late["overlap_queued"]["text"].startswith("Its time of ")
    near(late["recurs"]["next_at"], -0.5 * HOUR)
    assert list(skipped) == ["running", "overlap_skipped", "times_left_out", "recurs"]
    assert skipped["overlap_skipped"]["count"] == 2
    assert skipped["times_left_out"]["count"] == 98
    assert len(skipped["times_left_out"]["times"]) == 10
    assert skipped["times_left_out"]["text"].startswith("98 of its times, such as ")


def test_times_that_passed_in_a_downtime(store: Backend, works: HandlerRegistry) -> None:
    insert_instance(store, ago(9), ago(4.2))
    task_id = recurring(store, ago(0.5), catch_up="none")
    insert_run(store, task_id, scheduled_for=ago(4.5))
    with running(store, works) as client:
        reasons = explained(client, task_id)
    assert list(reasons) == ["not_due", "times_missed", "recurs"]
    assert reasons["times_missed"]["count"] == 4
    assert "catch_up is none" in reasons["times_missed"]["text"]


@pytest.mark.parametrize("policy", ["skip", "fail", "run"])
def test_times_that_the_policy_left_out_after_a_downtime(
    store: Backend, works: HandlerRegistry, policy: str
) -> None:
    insert_instance(store, ago(9), ago(4.2))
    # Under run, they were left out by a start with another policy.
    task_id = recurring(store, ago(-0.5 if policy == "run" else 0.5), catch_up="all")
    insert_run(store, task_id, scheduled_for=ago(4.5))
    with running(store, works, recover_past_tasks=policy) as client:
        missed = explained(client, task_id)["times_missed"]
    assert missed["count"] == 4
    if policy == "run":
        assert "RECOVER_PAST_TASKS or catch_up was another" in missed["text"]
    else:
        assert f"were not run (RECOVER_PAST_TASKS is {policy})" in missed["text"]
    assert "catch_up is all" not in missed["text"]


def test_recurring_task_that_failed_for_being_missed(
    store: Backend, works: HandlerRegistry
) -> None:
    task_id = recurring(store, ago(0.5))
    with running(store, works, recover_past_tasks="fail") as client:
        reasons = explained(client, task_id)
    assert list(reasons) == ["not_due", "missed", "recurs"]
    assert f"POST /tasks/{task_id}/run makes an extra run" in reasons["missed"]["remedy"]
    assert reasons["recurs"]["text"].startswith("It has run 3 times; its next time is ")


def test_times_that_were_left_out_for_no_known_reason(
    store: Backend, works: HandlerRegistry
) -> None:
    with long_running(store, works) as client:
        task_id = recurring(store, ago(-0.5))
        insert_run(store, task_id, scheduled_for=ago(2.5))
        changed = recurring(store, ago(-0.5))
        insert_run(store, changed, scheduled_for=ago(2.25))
        insert_run(store, changed, scheduled_for=ago(4.25), attempt=2)
        reasons = explained(client, task_id)
        assert codes(client, changed) == ["not_due", "recurs"]
    assert list(reasons) == ["not_due", "times_left_out", "recurs"]
    assert reasons["times_left_out"]["count"] == 2


def test_history_that_is_too_long_is_not_looked_through(
    store: Backend, works: HandlerRegistry
) -> None:
    task_id = recurring(store, ago(-0.5), runs=10_001)
    store.sql(
        "INSERT INTO task_runs "  # noqa: S608 (the test's own)
        "(task_id, claim_token, attempt, scheduled_for, started_at, outcome) "
        "WITH RECURSIVE numbers(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10001) "
        f"SELECT task_id, {NUMBERED[store.dialect]}, 1, run_at, run_at, 'failed' "
        "FROM numbers CROSS JOIN scheduled_tasks"
    )
    with running(store, works) as client:
        reasons = explained(client, task_id)
    assert list(reasons) == ["not_due", "recurs"]
    assert "too long to be looked through" in reasons["recurs"]["text"]


NUMBERED = {
    "sqlite": "printf('01980d2a-6c1e-7c3a-9f57-%012d', n)",
    "postgresql": "CAST('01980d2a-6c1e-7c3a-9f57-' || lpad(CAST(n AS text), 12, '0') AS uuid)",
}
"""A token made of a number n."""


# ------------------------------------------------------------- whatever is known of a task

NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)


def waits(**members: Any) -> TaskFacts:
    """What is known of a task that has been due for a minute."""
    usual: dict[str, Any] = dict.fromkeys(field.name for field in fields(TaskFacts))
    usual |= {
        "task_id": MISSING,
        "name": "probe",
        "kind": "handler",
        "status": TaskStatus.Scheduled,
        "run_at": NOON - timedelta(minutes=1),
        "due": NOON - timedelta(minutes=1),
        "created_at": NOON - timedelta(hours=1),
        "attempt": 0,
        "max_attempts": 1,
    }
    return TaskFacts(**(usual | members))


def here(**members: Any) -> Here:
    """What an instance knows that has a handler for every name, and room."""
    usual: dict[str, Any] = {
        "instance_id": new_token(),
        "has_handler": True,
        "waits_without": False,
        "timeout": None,
        "limits": {},
        "lease": 15.0,
        "rate": 1_000.0,
        "policy": RecoverPastTasks.Run,
        "room": lambda _: Room(16, 0, 15, 0),
    }
    return Here(**(usual | members))


moments = st.integers(-(10**6), 10**6).map(lambda seconds: NOON + timedelta(seconds=seconds))
maybe = st.none() | moments
ids = st.sampled_from([MISSING, MISSING[:-1] + "2"])
RULES: list[Any] = [
    None,
    HOURLY,
    HOURLY | {"overlap": "queue"},
    HOURLY | {"jitter_seconds": 600.0},
    {"cron": "*/7 * * * *", "timezone": "Europe/Berlin"},
    {"cron": "nonsense"},
    [],
]
RESULTS = [
    None,
    "no",
    {"message": "No task handler …", "fired_at": "…", "late_seconds": 0.1},
    own_words.waiting("probe"),
    own_words.expired(NOON),
    Downtime(NOON, NOON).result,
    Downtime(None, NOON).result,
    "missed: the service was down until nonsenseZ",
]

task_facts = st.builds(
    TaskFacts,
    task_id=ids,
    name=st.just("probe"),
    kind=st.sampled_from(["handler", "webhook", "command", "pattern"]),
    status=st.sampled_from(TaskStatus),
    run_at=moments,
    due=moments,
    created_at=moments,
    result=st.sampled_from(RESULTS),
    attempt=st.integers(0, 3),
    max_attempts=st.integers(1, 3),
    on_crash=st.none() | st.sampled_from(OnCrash),
    start_before=maybe,
    timeout=st.none() | st.just(5.0),
    concurrency_key=st.none() | st.just("k"),
    max_running=st.none() | st.integers(1, 2),
    blocked_by=st.none()
    | st.sampled_from(["key:k", "handler:probe", "rate:probe", "rate:other", "odd"]),
    expects_handler=st.none() | st.booleans(),
    progress=st.none() | st.just({"fraction": 0.5, "message": None}),
    cancel_requested_at=maybe,
    retry_at=maybe,
    instance_id=st.none() | ids,
    started_at=maybe,
    finished_at=maybe,
    missed_at=maybe,
    recurrence=st.sampled_from(RULES),
    run_count=st.none() | st.integers(0, 2),
    last_status=st.none() | st.just("done"),
)
attempts = st.builds(
    Attempt, st.integers(1, 3), moments, moments, moments, st.sampled_from(RunOutcome)
)
facts_of_all_kinds = st.builds(
    Facts,
    now=moments,
    task=task_facts,
    history=st.builds(
        History, st.lists(attempts, max_size=4), st.sampled_from(RESULTS), st.booleans()
    ),
    instances=st.lists(
        st.builds(InstanceFacts, ids, st.sampled_from(InstanceState), moments, moments), max_size=3
    ),
    catch_up=st.none()
    | st.builds(CatchUpFacts, moments, moments, maybe, st.booleans(), st.booleans()),
    line=st.none()
    | st.builds(
        Line, st.integers(0, 1_000), st.integers(1, 12), st.just([MISSING]), maybe, st.just({})
    ),
    key_holders=st.lists(ids, max_size=2),
).filter(lambda facts: not facts.key_holders or facts.task.concurrency_key)


@settings(max_examples=400)
@given(
    facts=facts_of_all_kinds,
    has_handler=st.none() | st.booleans(),
    waits_without=st.booleans(),
    room=st.builds(Room, *(st.integers(0, 2) for _ in range(4))),
)
def test_every_task_has_a_reason_that_can_be_shown(
    facts: Facts, has_handler: bool | None, waits_without: bool, room: Room
) -> None:
    limits = {"probe": HandlerLimit(1, Rate(1, 60.0))}
    found = explain(
        facts,
        here(
            has_handler=has_handler,
            waits_without=waits_without,
            limits=limits,
            room=lambda _: room,
        ),
    )
    assert found.reasons
    answer = TaskExplanation.of(found).model_dump_json(exclude_unset=True)
    assert json.loads(answer)["summary"] == found.reasons[0].text
    told = [reason.code for reason in found.reasons]
    assert len(set(told)) == len(told)
    assert not any("None" in reason.text for reason in found.reasons)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (90.2, "1 min 30 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h"),
        (3_605, "1 h"),
        (12_000, "3 h 20 min"),
        (86_400, "1 day"),
        (2 * 86_400 + 3_600, "2 days 1 h"),
    ],
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ------------------------------------------------------------------------ the statements


def test_facts_are_read_at_one_instant_along_indexes(store: Backend) -> None:
    due = {"run_at": ago(1), "created_at": ago(2)}
    tasks = [
        store.insert_task(**due, priority=0),
        store.insert_task(**due, priority=2),
        store.insert_task(**due, concurrency_key="k", blocked_by="key:k"),
        store.insert_task(**due, blocked_by="handler:probe"),
        store.insert_task(**due, blocked_by="rate:probe"),
        store.insert_task(**due, missed_at=ago(0.5)),
        store.insert_task(
            **due, concurrency_key="k", status="running", started_at=ago(0.5), attempt=1
        ),
    ]
    insert_run(store, tasks[0], scheduled_for=ago(1))
    with store.database() as database:
        for task_id in tasks:
            with statements(database.engine) as made:
                asyncio.run(database.read_at_once(read_facts, task_id))
            asked = [each for each in made if each != "BEGIN"]
            assert 4 <= len(asked) <= 6
            assert all(each.startswith("SELECT") for each in asked)
            with planned(database) as plans, database.reading(at_once=True) as connection:
                read_facts(connection, task_id)
            for plan in plans:
                assert not re.search(
                    r"(SCAN|Seq Scan on) (scheduled_tasks|task_runs)\b(?! USING INDEX ix_)", plan
                ), plan


@contextmanager
def planned(database: Database) -> Iterator[list[str]]:
    """Collect the plans of the statements that are executed inside the block."""
    plans: list[str] = []
    explain = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"

    def collect(*arguments: Any) -> None:
        _, cursor, statement, parameters, *_ = arguments
        with closing(cursor.connection.cursor()) as own:
            if database.dialect == "postgresql":
                own.execute("SET LOCAL enable_seqscan = off")
            own.execute(f"{explain} {statement}", parameters)
            plans.append("\n".join(str(row[-1]) for row in own.fetchall()))

    event.listen(database.engine, "before_cursor_execute", collect)
    try:
        yield plans
    finally:
        event.remove(database.engine, "before_cursor_execute", collect)


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_change_in_between_is_not_seen(store: Backend) -> None:
    task_id = store.insert_task()

    def look(connection: Connection) -> tuple[int, int]:
        count = select(func.count()).select_from(tasks)
        first = connection.execute(count).scalar_one()
        store.insert_task()
        return first, connection.execute(count).scalar_one()

    with store.database() as database:
        assert asyncio.run(database.read_at_once(look)) == (1, 1)
        assert asyncio.run(database.read(look)) == (2, 3)
    assert store.row(task_id)


# ------------------------------------------------------------------------------ the page


def test_page_explains_every_code() -> None:
    page = (ROOT / "docs" / "explain.md").read_text()
    told = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert told == [code.value for code in ReasonCode]
    [example] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    TaskExplanation.model_validate_json(example, extra="forbid")
