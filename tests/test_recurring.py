"""Recurring tasks, from outside: their times, their runs, and what a downtime makes of them."""

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from job_scheduler import Fail, RunContext
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.rescue import rescue_orphans
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    running,
    shown,
)
from tests.support.receiver import Receiver
from tests.support.services import wait_until

LOOPBACK = "127.0.0.1/32"
HOURLY = {"interval_seconds": 3600.0, "timezone": "UTC"}
DEFAULTS = {
    "timezone": "UTC",
    "dst_gap": "shift",
    "dst_fold": "first",
    "overlap": "skip",
    "catch_up": "latest",
}


def recurring(client: Any, **members: Any) -> dict[str, Any]:
    """Post a recurring task."""
    response = client.post("/tasks", json={"name": "probe"} | members)
    assert response.status_code == 201, response.text
    return dict(response.json())


def refused(client: Any, **members: Any) -> dict[str, str]:
    """Post what is refused; return the faults by their fields."""
    response = client.post("/tasks", json={"name": "probe"} | members)
    problem = assert_problem(response, 422, "VALIDATION_422")
    return {error["field"]: error["detail"] for error in problem["errors"]}


def times(client: Any, task_id: str, number: int) -> list[float]:
    """For when the first runs of a task were planned, in seconds from the first one on."""
    attempts = f"/tasks/{task_id}/runs"
    wait_until(lambda: len(client.get(attempts).json()) >= number, 20)
    planned = [parse_time(run["scheduled_for"]) for run in client.get(attempts).json()[:number]]
    return [(each - planned[0]).total_seconds() for each in planned]


def hours_ago(hours: float) -> datetime:
    """An instant, of a whole second: what is written by hand, SQLite keeps in milliseconds."""
    now = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    return (now - timedelta(hours=hours)).replace(microsecond=0)


# ------------------------------------------------------------------------ the request


def test_recurring_task_runs_again_and_again_and_stays_one_row(backend: Backend) -> None:
    with running(backend) as client:
        task = recurring(client, interval_seconds=1)
        assert task["status"] == "scheduled"
        assert task["recurrence"] == DEFAULTS | {"interval_seconds": 1.0}
        assert (task["run_count"], task["last_status"]) == (0, None)
        wait_until(lambda: shown(client, task["task_id"])["run_count"] >= 3)
        planned = times(client, task["task_id"], 3)
        now = shown(client, task["task_id"])
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()
    assert backend.count() == 1
    assert now["last_status"] == "done"
    assert now["result"]["message"].startswith("No task handler")
    assert planned == [0, 1, 2]
    assert {run["attempt"] for run in runs} == {1}
    assert parse_time(runs[0]["scheduled_for"]) == parse_time(task["run_at"])


def test_cron_counts_in_the_zone_that_is_named(store: Backend) -> None:
    with running(store) as client:
        task = recurring(
            client,
            cron="30 9 * * mon-fri",
            timezone="America/New_York",
            start_at="2031-07-04T00:00:00",
            max_runs=7,
        )
    assert task["run_at"] == "2031-07-04T13:30:00Z"
    assert task["recurrence"] == DEFAULTS | {
        "cron": "30 9 * * MON-FRI",
        "timezone": "America/New_York",
        "start_at": "2031-07-04T04:00:00+00:00",
        "max_runs": 7,
    }


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"run_at": None, "cron": None},
        {"run_at": "2031-07-01T12:00:00Z", "cron": "@daily"},
        {"run_at": "2031-07-01T12:00:00Z", "interval_seconds": 60},
        {"cron": "@daily", "interval_seconds": 60},
    ],
)
def test_task_has_one_kind_of_time(store: Backend, members: dict[str, Any]) -> None:
    with running(store) as client:
        words = "Give exactly one of run_at, cron and interval_seconds."
        assert refused(client, **members) == {"run_at": words}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_at", "2031-07-01T12:00:00Z"),
        ("end_at", "2031-07-01T12:00:00Z"),
        ("max_runs", 3),
        ("jitter_seconds", 3),
        ("dst_gap", "skip"),
        ("dst_fold", "both"),
        ("overlap", "queue"),
        ("catch_up", "all"),
    ],
)
def test_members_of_recurring_tasks_go_with_no_run_at(
    store: Backend, field: str, value: Any
) -> None:
    with running(store) as client:
        faults = refused(client, run_at=later(60).replace(" ", "T"), **{field: value})
    assert faults == {field: "Goes with cron or interval_seconds, not run_at."}


@pytest.mark.parametrize(
    ("members", "field", "words"),
    [
        ({"cron": "0 9 * *"}, "cron", "five fields"),
        ({"cron": "0 0 30 2 *"}, "cron", "never"),
        ({"cron": 5}, "cron", "text"),
        ({"cron": "@daily", "timezone": "Europe/Berlinn"}, "timezone", "Europe/Berlin"),
        ({"cron": "@daily", "timezone": ""}, "timezone", "zone"),
        ({"cron": "@daily", "start_at": "9999-12-31T23:59:59Z"}, "start_at", "the years"),
        (
            {"cron": "30 2 * 3 7L", "timezone": "Europe/Berlin", "dst_gap": "skip"},
            "cron",
            "never",
        ),
        ({"interval_seconds": 0.5}, "interval_seconds", "greater than or equal to 1"),
        ({"interval_seconds": "60"}, "interval_seconds", "number"),
        ({"cron": "@daily", "max_runs": 0}, "max_runs", "greater than or equal to 1"),
        ({"cron": "@daily", "overlap": "maybe"}, "overlap", "'skip', 'queue' or 'allow'"),
        (
            {"cron": "@daily", "start_at": "2031-01-02T00:00", "end_at": "2031-01-01T00:00"},
            "end_at",
            "Must not lie before start_at.",
        ),
        (
            {"cron": "@daily", "start_before": "2031-01-01T00:00:00Z"},
            "start_before",
            "Goes with run_at.",
        ),
        ({"cron": "@daily", "end_at": "2020-01-01T00:00:00Z"}, "end_at", "it never runs"),
    ],
)
def test_what_cannot_recur_is_refused(
    store: Backend, members: dict[str, Any], field: str, words: str
) -> None:
    with running(store) as client:
        faults = refused(client, **members)
    assert faults.keys() == {field}
    assert words in faults[field]


def test_first_time_is_start_at_itself_where_that_is_one(store: Backend) -> None:
    with running(store) as client:
        start = "2031-07-01T12:00:00Z"
        assert recurring(client, interval_seconds=60, start_at=start)["run_at"] == start
        assert recurring(client, cron="0 12 * * *", start_at=start)["run_at"] == start
        late = recurring(client, cron="59 11 * * *", start_at=start)
        assert late["run_at"] == "2031-07-02T11:59:00Z"


def test_interval_counts_from_a_start_that_has_passed(store: Backend) -> None:
    with running(store) as client:
        task = recurring(client, interval_seconds=3600, start_at="2020-01-01T00:07:00Z")
        ahead = parse_time(task["run_at"]) - datetime.now(UTC)  # noqa: TID251
    assert timedelta(0) < ahead <= timedelta(hours=1)
    assert (parse_time(task["run_at"]).minute, parse_time(task["run_at"]).second) == (7, 0)


def test_start_is_put_off_by_a_random_part_of_the_jitter(store: Backend) -> None:
    with running(store) as client:
        tasks = [recurring(client, cron="@daily", jitter_seconds=600) for _ in range(5)]
    delays = [parse_time(task["retry_at"]) - parse_time(task["run_at"]) for task in tasks]
    assert all(timedelta(0) <= delay <= timedelta(seconds=600) for delay in delays)
    assert len(set(delays)) == 5


def test_repeated_request_finds_the_task_that_has_moved_on(store: Backend) -> None:
    body = {"interval_seconds": 1, "task_id": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"}
    with running(store) as client:
        first = recurring(client, **body)
        wait_until(lambda: shown(client, first["task_id"])["run_count"])
        assert recurring(client, **body)["task_id"] == first["task_id"]
        other = client.post("/tasks", json={"name": "probe"} | body | {"interval_seconds": 2})
        assert_problem(other, 409, "TASK_CREATE_409")
        once = {"name": "probe", "run_at": first["run_at"], "task_id": first["task_id"]}
        assert_problem(client.post("/tasks", json=once), 409, "TASK_CREATE_409")
    assert store.count() == 1


def test_batch_takes_recurring_tasks_too(store: Backend) -> None:
    tasks = [
        {"name": "probe", "cron": "0 0 1 1 *", "start_at": "2031-01-01T00:00:00Z"},
        {"name": "probe", "run_at": "2031-07-01T12:00:00Z"},
    ]
    with running(store) as client:
        response = client.post("/tasks/batch", json={"tasks": tasks})
        assert response.status_code == 201
        yearly, once = response.json()
        tasks[0]["end_at"] = "2031-01-01T00:00:00Z"
        tasks[0]["start_at"] = "2031-01-01T00:00:01Z"
        problem = assert_problem(
            client.post("/tasks/batch", json={"tasks": tasks}), 422, "VALIDATION_422"
        )
    assert (yearly["run_at"], once["run_at"]) == ("2031-01-01T00:00:00Z", "2031-07-01T12:00:00Z")
    assert yearly["recurrence"]["cron"] == "0 0 1 1 *"
    assert once["recurrence"] is None
    assert problem["errors"][0]["field"] == "tasks.0.end_at"


# --------------------------------------------------------------------------- the runs


def test_last_run_ends_the_task(store: Backend) -> None:
    with running(store) as client:
        by_number = recurring(client, interval_seconds=1, max_runs=2)
        by_time = recurring(
            client,
            interval_seconds=1,
            start_at=later(0).replace(" ", "T"),
            end_at=later(2.5).replace(" ", "T"),
        )
        for task in (by_number, by_time):
            ended = finished(client, task["task_id"])
            assert (ended["status"], ended["run_count"]) == ("done", 2)
            assert ended["last_status"] == "done"
            assert ended["finished_at"] is not None
            assert times(client, task["task_id"], 2) == [0, 1]


def test_failed_run_is_repeated_without_moving_the_rhythm(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=2, retry_delay=[0.2])
    async def probe(context: RunContext) -> None:
        raise ValueError(f"attempt {context.attempt}")

    with running(store, registry) as client:
        task = recurring(client, interval_seconds=1)
        planned = times(client, task["task_id"], 4)
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()[:4]
        now = shown(client, task["task_id"])
    assert [run["attempt"] for run in runs] == [1, 2, 1, 2]
    assert [run["outcome"] for run in runs] == ["failed"] * 4
    assert (planned[0], planned[2]) == (0, 1)
    assert 0.2 <= planned[1] < 1 < planned[3]
    assert (now["status"], now["last_status"]) in (("scheduled", "failed"), ("running", "failed"))


def test_hook_is_sent_for_each_occurrence(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe() -> None:
        raise Fail("no")

    with (
        Receiver([200, 200]) as receiver,
        running(store, registry, webhook_allow=LOOPBACK) as client,
    ):
        recurring(client, interval_seconds=1, max_runs=2, on_failed={"url": receiver.url})
        wait_until(lambda: len(receiver.requests) == 2)
    bodies = [json.loads(request.body) for request in receiver.requests]
    assert [body["data"]["result"] for body in bodies] == ["no", "no"]


@pytest.mark.parametrize(
    ("overlap", "planned"), [("skip", [0, 2]), ("queue", [0, 1, 2]), (None, [0, 2])]
)
def test_time_that_comes_while_a_run_is_under_way_is_left_out_or_queued(
    store: Backend, overlap: str | None, planned: list[float]
) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe() -> None:
        await asyncio.sleep(1.2)

    with running(store, registry) as client:
        task = recurring(client, interval_seconds=1, overlap=overlap)
        assert times(client, task["task_id"], len(planned)) == planned


def test_overlapping_runs_are_tasks_of_their_own(store: Backend) -> None:
    registry = HandlerRegistry()
    together = threading.Barrier(3)

    @registry.task("probe")
    def probe(hours: int) -> int:
        together.wait(20)
        return hours

    with running(store, registry) as client:
        task = recurring(
            client,
            interval_seconds=1,
            overlap="allow",
            max_runs=3,
            payload={"hours": 24},
            priority=2,
        )
        ended = finished(client, task["task_id"])
        assert times(client, task["task_id"], 3) == [0, 1, 2]
        copies = [run["result"]["task_id"] for run in client.get(f"{_of(task)}/runs").json()]
        runs = [finished(client, copy) for copy in copies]
    assert (ended["status"], ended["run_count"]) == ("done", 3)
    assert {run["result"] for run in runs} == {24}
    assert {run["caused_by"] for run in runs} == {task["task_id"]}
    assert {run["priority"] for run in runs} == {2}
    assert {run["recurrence"] for run in runs} == {None}
    assert parse_time(runs[1]["run_at"]) - parse_time(runs[0]["run_at"]) == timedelta(seconds=1)


def test_limits_hold_for_the_overlapping_runs_alone(store: Backend) -> None:
    registry = HandlerRegistry()
    gate = threading.Event()
    registry.task("probe", rate_limit="1/minute")(lambda: gate.wait(30))
    with running(store, registry) as client:
        task = recurring(
            client, interval_seconds=1, overlap="allow", max_runs=3, concurrency_key="k"
        )
        ended = finished(client, task["task_id"])
        assert times(client, task["task_id"], 3) == [0, 1, 2]
        copies = store.count("caused_by IS NOT NULL AND concurrency_key = 'k'")
        gate.set()
    assert (ended["run_count"], copies) == (3, 3)


def test_crash_of_a_pattern_loses_nothing_since_nothing_had_begun(store: Backend) -> None:
    run_at = hours_ago(1 / 6)
    task_id = store.insert_task(
        status="running",
        run_at=run_at.strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        on_crash="hold",
        recurrence=json.dumps(HOURLY | {"overlap": "allow"}),
        run_count=4,
    )
    with store.database() as database:
        assert asyncio.run(rescue_orphans(database, lambda *_: None)) == 1
    row = store.row(task_id)
    assert (row["status"], row["run_at"], row["run_count"]) == ("scheduled", run_at, 4)
    assert store.sql("SELECT count(*) AS n FROM task_runs")[0]["n"] == 0


def test_recurring_tasks_are_not_held_after_a_downtime(store: Backend) -> None:
    store.insert_tasks(3, run_at=later(-60))
    task_id = store.insert_task(
        run_at=hours_ago(3.5).strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        recurrence=json.dumps(HOURLY),
        run_count=0,
    )
    with running(store, recovery_hold_above=1) as client:
        wait_until(lambda: shown(client, task_id)["run_count"] == 1)
        assert client.get("/health").json()["status"] == "degraded"
        assert shown(client, task_id)["missed_at"] is None
    assert store.count("missed_at IS NOT NULL") == 3


def test_hooks_are_those_of_the_overlapping_runs_alone(store: Backend) -> None:
    with Receiver([200, 200]) as receiver, running(store, webhook_allow=LOOPBACK) as client:
        task = recurring(
            client, interval_seconds=1, overlap="allow", max_runs=2, on_done={"url": receiver.url}
        )
        finished(client, task["task_id"])
        wait_until(lambda: len(receiver.requests) == 2)
        told = {json.loads(request.body)["data"]["task_id"] for request in receiver.requests}
        hooks = store.count("name = 'on_done'")
    assert task["task_id"] not in told
    assert (len(told), hooks) == (2, 2)


def _of(task: dict[str, Any]) -> str:
    return f"/tasks/{task['task_id']}"


@pytest.mark.parametrize("begun", [False, True])
def test_cancelled_task_does_not_recur(store: Backend, begun: bool) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe() -> None:
        await asyncio.sleep(60)

    with running(store, registry) as client:
        task = recurring(client, interval_seconds=1 if begun else 3600)
        if begun:
            wait_until(lambda: shown(client, task["task_id"])["status"] == "running")
        client.post(f"{_of(task)}/cancel")
        ended = finished(client, task["task_id"])
    assert ended["status"] == "cancelled"


# ---------------------------------------------------------------- crashes and downtimes


@pytest.mark.parametrize(
    ("max_attempts", "on_crash", "status", "moves"),
    [(1, None, "scheduled", True), (2, None, "scheduled", False), (1, "hold", "unknown", False)],
)
def test_crash_neither_loses_nor_doubles_an_occurrence(
    store: Backend, max_attempts: int, on_crash: str | None, status: str, moves: bool
) -> None:
    run_at = hours_ago(1 / 6)
    task_id = store.insert_task(
        status="running",
        run_at=run_at.strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        max_attempts=max_attempts,
        on_crash=on_crash,
        recurrence=json.dumps(HOURLY),
        run_count=4,
    )
    with store.database() as database:
        for rescued in (1, 0):
            found = asyncio.run(rescue_orphans(database, lambda *_: None))
            assert found == rescued
    row = store.row(task_id)
    assert row["status"] == status
    assert row["run_at"] == run_at + timedelta(hours=1 if moves else 0)
    assert row["run_count"] == (5 if moves else 4)
    assert row["last_status"] == ("failed" if moves else "unknown" if on_crash else None)
    assert row["attempt"] == (0 if moves else 1)
    assert store.sql("SELECT count(*) AS n FROM task_runs")[0]["n"] == 1


@pytest.mark.parametrize(
    ("policy", "catch_up", "run_at", "last_status"),
    [
        ("run", "none", 1, None),
        ("run", "latest", 0, None),
        ("run", "all", -3, None),
        ("fail", "latest", 1, "failed"),
        ("fail", "all", 1, "failed"),
        ("skip", "all", 1, None),
    ],
)
def test_what_was_missed_in_a_downtime_is_made_up_for_as_asked(
    store: Backend, policy: str, catch_up: str, run_at: int, last_status: str | None
) -> None:
    begin = hours_ago(3.5)
    task_id = store.insert_task(
        run_at=begin.strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        recurrence=json.dumps(HOURLY | {"catch_up": catch_up}),
        run_count=0,
        status="scheduled",
    )
    gate = threading.Event()
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(30))
    with running(store, registry, recover_past_tasks=policy) as client:
        task = shown(client, task_id)
        gate.set()
    passed = round((parse_time(task["run_at"]) - begin).total_seconds() / 3600)
    assert passed == run_at + 3
    assert task["last_status"] == last_status
    assert task["missed_at"] is None
    assert (task["result"] or "missed: the service was down").startswith("missed: ")


def test_all_that_was_missed_is_run_one_after_the_other(store: Backend) -> None:
    begin = hours_ago(3.5)
    task_id = store.insert_task(
        run_at=begin.strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        recurrence=json.dumps(HOURLY | {"catch_up": "all"}),
        run_count=0,
    )
    with running(store) as client:
        assert times(client, task_id, 4) == [0, 3600, 7200, 10800]
        wait_until(lambda: shown(client, task_id)["status"] == "scheduled")
        task = shown(client, task_id)
    assert task["run_count"] == 4
    assert parse_time(task["run_at"]) - begin == timedelta(hours=4)


def test_of_very_many_missed_times_the_last_hundred_are_made_up_for(store: Backend) -> None:
    begin = hours_ago(1)
    every_second = {"interval_seconds": 1.0, "catch_up": "all", "overlap": "skip"}
    task_id = store.insert_task(
        run_at=begin.strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        recurrence=json.dumps(every_second),
        run_count=0,
    )
    gate = threading.Event()
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(30))
    with running(store, registry) as client:
        task = shown(client, task_id)
        gate.set()
    behind = datetime.now(UTC) - parse_time(task["run_at"])  # noqa: TID251
    assert timedelta(seconds=99) <= behind <= timedelta(seconds=130)


@pytest.mark.parametrize(("policy", "status"), [("fail", "failed"), ("skip", "scheduled")])
def test_recurrence_that_ended_in_the_downtime_is_over(
    store: Backend, policy: str, status: str
) -> None:
    over = HOURLY | {"end_at": hours_ago(1).isoformat()}
    begin = hours_ago(1.5).strftime("%Y-%m-%d %H:%M:%S.%f+00:00")
    with Receiver([200]) as receiver:
        task_id = store.insert_task(
            run_at=begin,
            recurrence=json.dumps(over),
            run_count=0,
            on_failed=json.dumps({"url": receiver.url}),
        )
        with running(store, recover_past_tasks=policy, webhook_allow=LOOPBACK) as client:
            task = shown(client, task_id)
            if policy == "fail":
                wait_until(lambda: receiver.requests)
    assert task["status"] == status
    assert (task["missed_at"] is None) == (policy == "fail")


def test_repetition_that_was_missed_is_still_made(store: Backend) -> None:
    task_id = store.insert_task(
        run_at=hours_ago(1.5).strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        retry_at=hours_ago(1.4).strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        attempt=1,
        max_attempts=3,
        recurrence=json.dumps(HOURLY | {"catch_up": "none"}),
        run_count=0,
    )
    with running(store) as client:
        wait_until(lambda: shown(client, task_id)["run_count"] == 1)
        [run] = client.get(f"/tasks/{task_id}/runs").json()
    assert run["attempt"] == 2


@pytest.mark.parametrize("policy", ["skip", "fail"])
@pytest.mark.parametrize("max_runs", [1, 2])
def test_repetition_that_was_missed_is_given_up_and_the_run_has_failed(
    store: Backend, policy: str, max_runs: int
) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=3, retry_delay=[0.5])
    def probe() -> None:
        raise ValueError("no money")

    with Receiver([200]) as receiver:
        options = {"webhook_allow": LOOPBACK, "recover_past_tasks": policy}
        with running(store, registry, **options) as client:
            rule = {"interval_seconds": 3600, "start_at": later(1), "max_runs": max_runs}
            task_id = recurring(client, **rule, on_failed={"url": receiver.url})["task_id"]
            wait_until(lambda: shown(client, task_id)["retry_at"])
        store.sql(
            "UPDATE scheduled_tasks SET retry_at = :past WHERE attempt = 1",
            past=hours_ago(0.001).strftime("%Y-%m-%d %H:%M:%S.%f+00:00"),
        )
        with running(store, registry, **options) as client:
            task = shown(client, task_id)
            wait_until(lambda: receiver.requests)
            [run] = client.get(f"/tasks/{task_id}/runs").json()
            again = client.post(f"/tasks/{task_id}/retry")
    ends = max_runs == 1
    assert task["status"] == ("failed" if ends else "scheduled")
    assert (task["run_count"], task["last_status"]) == (1, "failed")
    assert task["result"].startswith("given up after 1 attempt: the next one was missed, since the")
    assert (task["missed_at"], task["finished_at"] is not None) == (None, ends)
    assert task["attempt"] == (1 if ends else 0)
    assert again.status_code == (200 if ends else 409)
    assert run["outcome"] == "failed"
    [sent] = receiver.requests
    assert json.loads(sent.body)["data"] == {
        "task_id": task_id,
        "name": "probe",
        "status": "failed",
        "attempt": 1,
        "result": task["result"],
    }


@pytest.mark.parametrize(
    "document",
    [
        '{"cron": "nonsense"}',
        '{"interval_seconds": 60, "start_at": "2026-01-01T00:00:00"}',
        '{"interval_seconds": 60, "max_runs": "5"}',
        '{"interval_seconds": 60, "jitter_seconds": 1e300}',
        '{"interval_seconds": 1e300}',
        '{"interval_seconds": 60, "timezone": "Nowhere"}',
        "[]",
        "3",
    ],
)
def test_task_whose_recurrence_nobody_can_read_runs_once(store: Backend, document: str) -> None:
    with running(store) as client:
        task_id = store.insert_task(run_at=later(0), recurrence=document, run_count=0)
        assert finished(client, task_id)["status"] == "done"
        assert client.get(f"/tasks/{task_id}/next").json() == []


def test_recurrence_that_nobody_can_read_does_not_hold_up_a_start(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-60), recurrence='{"odd": 1}', run_count=0)
    with running(store) as client:
        assert finished(client, task_id)["status"] == "done"


def test_service_that_restarts_daily_runs_a_weekly_task(store: Backend) -> None:
    with running(store) as client:
        task = recurring(client, cron="0 9 * * MON", start_at="2031-01-01T00:00:00Z")
    for _ in range(2):
        with running(store) as client:
            assert shown(client, task["task_id"])["run_at"] == "2031-01-06T09:00:00Z"
