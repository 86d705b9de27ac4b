"""The catch-up: missed tasks are released at a bounded rate, or wait until a person approves."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import InstanceState, RecoverPastTasks
from job_scheduler.core import catch_up, instances
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.instances import Member
from job_scheduler.core.recovery import Rules, recover
from job_scheduler.core.release import Release
from job_scheduler.database import Database
from job_scheduler.exceptions import StartError
from job_scheduler.identifiers import new_token
from job_scheduler.process import own_identity
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    migrate,
    parse_time,
    post,
    running,
    service_process,
    statements,
)
from tests.support.services import temporary_database, wait_until

RUN, FAIL, SKIP = RecoverPastTasks.Run, RecoverPastTasks.Fail, RecoverPastTasks.Skip
TICK = timedelta(milliseconds=1.5)
"""SQLite's clock ticks in milliseconds."""


def start(store: Backend, rules: Rules, database: Database | None = None) -> int:
    """Recover as an instance does that starts alone; return how many tasks were overdue."""
    if database is None:
        with store.database() as own:
            return start(store, rules, own)
    member = Member(new_token(), own_identity())
    with database.writing() as connection:
        instances.register(connection, member, InstanceState.Recovering)
    return asyncio.run(recover(database, member.instance_id, rules))


def step(store: Backend, rate: float = 1_000.0) -> None:
    """Take one step of the loop that releases."""
    with store.database() as database:
        asyncio.run(Release(database, rate).step())


def approve(store: Backend, rate: float = 1_000.0) -> catch_up.Approved:
    """Approve what is held."""
    with store.database() as database, database.writing() as connection:
        return catch_up.approve(connection, rate)


def current(store: Backend) -> catch_up.CatchUpRow | None:
    """The catch-up as it stands."""
    with store.database() as database, database.reading() as connection:
        return catch_up.current(connection)


def insert_staggered(store: Backend, number: int) -> None:
    """Insert tasks that were due one second after the other, the last a second ago."""
    with store.database() as database, database.writing() as connection:
        connection.execute(
            text("INSERT INTO scheduled_tasks (name, run_at) VALUES ('probe', :run_at)"),
            [{"run_at": later(-seconds)} for seconds in range(1, number + 1)],
        )


def releases(store: Backend) -> list[tuple[datetime, datetime]]:
    """When released tasks were due and when they may start, in the order of the latter."""
    ids = store.sql(
        "SELECT CAST(task_id AS text) AS task_id FROM scheduled_tasks "
        "WHERE retry_at IS NOT NULL ORDER BY retry_at, run_at"
    )
    rows = [store.row(row["task_id"]) for row in ids]
    assert all(row["missed_at"] is None for row in rows)
    return [(row["run_at"], row["retry_at"]) for row in rows]


@contextmanager
def failing_at(database: Database, statement: str, number: int) -> Iterator[None]:
    """Break the statement that contains these words when it is executed for the n-th time."""
    seen = 0

    def refuse(*arguments: Any) -> None:
        nonlocal seen
        seen += statement in " ".join(arguments[2].split())
        if seen == number:
            seen += 1
            raise RuntimeError("broken by the test")

    event.listen(database.engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", refuse)


# ------------------------------------------------------------------------- the rate


def test_up_to_the_rate_nothing_is_written(store: Backend) -> None:
    insert_staggered(store, 3)
    with store.database() as database, statements(database.engine) as executed:
        assert start(store, Rules(RUN, rate=3), database) == 3
    assert not [
        one for one in executed if one.startswith(("UPDATE", "DELETE", "INSERT INTO catch"))
    ]
    assert store.count("missed_at IS NULL AND retry_at IS NULL") == 3
    assert current(store) is None


def test_more_are_released_at_the_rate_the_oldest_first(store: Backend) -> None:
    insert_staggered(store, 25)
    began = store.sql("SELECT min(run_at) AS first FROM scheduled_tasks")
    assert start(store, Rules(RUN, rate=10)) == 25
    opened = current(store)
    assert opened is not None
    assert store.count("missed_at IS NOT NULL AND retry_at IS NULL") == 25
    step(store, 10)
    released = releases(store)
    assert len(released) == 25
    assert [run_at for run_at, _ in released] == sorted(run_at for run_at, _ in released)
    first = released[0][1]
    assert first >= opened.now - TICK
    for place, (_, retry_at) in enumerate(released):
        assert abs(retry_at - first - timedelta(seconds=place / 10)) <= TICK
    ended = current(store)
    assert ended is not None
    assert ended.released_until is not None
    assert abs(ended.released_until - first - timedelta(seconds=2.5)) <= TICK
    assert ended.finished_at is not None
    assert store.sql("SELECT min(run_at) AS first FROM scheduled_tasks") == began


def test_no_more_are_released_than_may_start_soon(store: Backend) -> None:
    insert_staggered(store, 100)
    start(store, Rules(RUN, rate=2))
    for _ in range(2):
        step(store, 2)
    row = current(store)
    assert row is not None
    assert 19 <= store.count("missed_at IS NULL") < 100
    assert all(retry_at < row.now + catch_up.HORIZON for _, retry_at in releases(store))


def test_rate_holds_over_a_restart_in_the_middle(store: Backend) -> None:
    insert_staggered(store, 2_500)
    rules = Rules(RUN, rate=500)
    start(store, rules)
    with store.database() as database, database.writing() as connection:
        assert catch_up.release(connection, 500).tasks == 1_000
    before = current(store)
    start(store, rules)  # what was released and is overdue by now joins in
    after = current(store)
    assert before is not None
    assert after is not None
    assert (after.missed_at, after.released_until) == (before.missed_at, before.released_until)
    for _ in range(2):
        step(store, 500)
    times = [retry_at for _, retry_at in releases(store)]
    assert len(times) == 2_500
    gaps = [after - one for one, after in pairwise(times)]
    assert min(gaps) >= timedelta(milliseconds=2) - TICK


def test_even_a_few_join_a_release_that_is_under_way(store: Backend) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, rate=1))
    store.insert_task(run_at=later(-0.5))
    assert start(store, Rules(RUN, rate=1_000)) == 1
    assert store.count("missed_at IS NOT NULL") == 6


def test_retried_task_keeps_its_attempts_and_is_released_too(store: Backend) -> None:
    task_id = store.insert_task(
        run_at=later(-90), retry_at=later(-5), attempt=1, max_attempts=3, status="scheduled"
    )
    insert_staggered(store, 1)
    start(store, Rules(RUN, rate=1))
    step(store, 1)
    row = store.row(task_id)
    assert (row["attempt"], row["missed_at"]) == (1, None)
    assert row["retry_at"] > row["run_at"] + timedelta(seconds=89)


def test_many_are_set_aside_and_released_by_few_statements(store: Backend) -> None:
    store.insert_tasks(5_000, run_at=later(-60))
    with store.database() as database, statements(database.engine) as executed:
        start(store, Rules(RUN), database)
        asyncio.run(Release(database, 1_000).step())
    assert store.count("missed_at IS NULL AND retry_at IS NOT NULL") == 5_000
    updates = [one for one in executed if one.startswith("UPDATE scheduled_tasks")]
    assert len(updates) <= 2 * 7
    assert len(executed) < 64
    if store.dialect == "postgresql":
        assert all("ORDER BY task_id FOR NO KEY UPDATE" in one for one in updates)


def test_failed_and_skipped_batches_lock_their_rows_in_order(store: Backend) -> None:
    for policy in (FAIL, SKIP):
        insert_staggered(store, 2)
        with store.database() as database, statements(database.engine) as executed:
            assert start(store, Rules(policy), database) == 2
        updates = [one for one in executed if one.startswith("UPDATE scheduled_tasks")]
        assert updates
        if store.dialect == "postgresql":
            assert all("ORDER BY task_id FOR NO KEY UPDATE" in one for one in updates)


@pytest.mark.postgresql
@pytest.mark.slow
def test_batch_reads_little_more_than_it_treats_before_there_are_statistics(
    postgresql_database: str,
) -> None:
    read = text(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
        "WHERE relname = 'scheduled_tasks'"
    )
    with temporary_database(postgresql_database) as url:
        migrate(url)
        fresh = Backend(url)
        with fresh.database() as database, database.writing() as connection:
            opened = catch_up.begin(connection, parse_time("2026-01-01T00:00:00Z"), hold=False)
        fresh.sql(
            "INSERT INTO scheduled_tasks (name, run_at, missed_at) "
            "SELECT 'probe', now() - interval '1 minute', :missed_at "
            "FROM generate_series(1, 200000)",
            missed_at=opened.missed_at,
        )
        for _ in range(2):
            # A session of its own each: the numbers are those of all its transactions.
            with fresh.database() as database, database.writing() as connection:
                assert catch_up.release(connection, 1_000_000.0).tasks == 1_000
                assert connection.execute(read).scalar_one() < 10_000


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_locked_task_does_not_hold_up_the_others(store: Backend) -> None:
    insert_staggered(store, 5)
    oldest = store.insert_task(run_at=later(-60))
    start(store, Rules(RUN, rate=1))
    with store.database() as database:
        with database.writing() as connection:
            connection.execute(
                text("SELECT 1 FROM scheduled_tasks WHERE task_id = :id FOR UPDATE"), {"id": oldest}
            )
            step(store, 1_000)
            assert store.count("missed_at IS NOT NULL") == 1
            row = current(store)
            assert row is not None
            assert row.finished_at is None
        step(store, 1_000)
    assert store.row(oldest)["missed_at"] is None


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_one_instance_at_a_time_releases(store: Backend) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, rate=1))
    with store.database() as database, database.writing() as connection:
        connection.execute(text("SELECT 1 FROM catch_up FOR UPDATE"))
        step(store)
        assert store.count("missed_at IS NOT NULL") == 5


def test_release_goes_on_at_its_rate_after_kill_9(store: Backend, tmp_path: Path) -> None:
    number, rate = 60, 20
    insert_staggered(store, number)
    environment = store.environment() | {"RECOVERY_RATE": str(rate)}
    with service_process(tmp_path, environment) as service:
        service.start()
        wait_until(lambda: store.count("status = 'done'") >= 5, 30, "some of them")
        service.kill()
        killed = store.count("status = 'done'")
        assert killed < number
        service.start()
        # One that ran when the process was killed is failed.
        ended = "status IN ('done', 'failed')"
        wait_until(lambda: store.count(ended) == number, 60, "all of them")
        service.stop()
    times = [retry_at for _, retry_at in releases(store)]
    assert len(times) == number
    gaps = [after - one for one, after in pairwise(times)]
    assert min(gaps) >= timedelta(seconds=1 / rate) - TICK
    assert store.count("attempt = 1") == number


# ------------------------------------------------------------------------- the hold


def test_hold_is_kept_on_every_instance_and_over_restarts_until_approved(
    backend: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    @registry.task("probe")
    def probe(label: str = "overdue") -> str:
        calls.append(label)
        return label

    store, options = backend, {"recovery_hold_above": 4}
    insert_staggered(store, 5)

    def is_idle(client: TestClient) -> bool:
        return bool(client.get("/health").json()["recovery"]["state"] == "idle")

    def waits(client: TestClient, number: int) -> None:
        health = client.get("/health")
        assert health.status_code == 200
        report = health.json()
        assert (report["status"], report["recovery"]["state"]) == ("degraded", "waiting")
        assert (report["recovery"]["status"], report["recovery"]["tasks"]) == ("degraded", number)
        assert "POST /recovery/approve" in report["recovery"]["action"]
        assert client.get("/readyz").status_code == 200

    with (
        running(store, registry, **options) as first,
        running(store, registry, **options) as second,
    ):
        for client in (first, second):
            waits(client, 5)
        fresh = post(second, run_at=later(0), payload={"label": "fresh"})
        finished(second, fresh["task_id"])
        row = current(store)
        assert row is not None
        assert row.held_at == row.missed_at
        [held, *_] = [one for one in first.get("/tasks").json() if one["missed_at"] is not None]
        assert parse_time(held["missed_at"]) == row.held_at
        assert (held["status"], held["result"], held["retry_at"]) == ("scheduled", None, None)
    log = capfd.readouterr().err
    assert log.count("recovery waits: 5 missed tasks are held since") == 2  # one an instance
    assert calls == ["fresh"]

    store.insert_task(run_at=later(-0.1))
    with (
        running(store, registry, **options) as first,
        running(store, registry, **options) as second,
    ):
        for client in (first, second):
            waits(client, 6)
        answer = second.post("/recovery/approve")
        assert answer.status_code == 200
        approved = answer.json()
        assert approved["tasks"] == 6
        assert "6" in approved["message"]
        until = parse_time(approved["until"]) - parse_time(approved["approved_at"])
        assert until == timedelta(seconds=6 / 1_000)
        assert first.post("/recovery/approve").json() == approved
        for task in first.get("/tasks").json():
            ended = finished(first, task["task_id"])
            assert (ended["status"], ended["missed_at"], ended["attempt"]) == ("done", None, 1)
        for client in (first, second):
            wait_until(partial(is_idle, client))
            assert client.get("/health").json()["status"] == "ok"
            assert client.post("/recovery/approve").json() == approved
    assert calls.count("overdue") == 6
    with running(store, registry, **options) as client:
        assert client.get("/health").json()["status"] == "ok"


def test_up_to_the_limit_nothing_is_held(store: Backend) -> None:
    insert_staggered(store, 4)
    start(store, Rules(RUN, hold_above=4))
    assert store.count("missed_at IS NULL") == 4
    assert current(store) is None


def test_approved_release_is_shown_by_health_and_keeps_the_rate(store: Backend) -> None:
    insert_staggered(store, 30)
    with running(store, recovery_hold_above=1, recovery_rate=1) as client:
        approved = client.post("/recovery/approve").json()
        until = parse_time(approved["until"]) - parse_time(approved["approved_at"])
        assert until == timedelta(seconds=30)
        report = wait_until(
            lambda: (
                (one := client.get("/health").json())["recovery"]["state"] == "releasing" and one
            )
        )
        assert report
        assert (report["status"], report["recovery"]["status"]) == ("ok", "ok")
        assert report["recovery"]["since"] == approved["approved_at"]
        wait_until(lambda: len(releases(store)) >= 5, what="the first ones")
        assert len(releases(store)) < 30
    times = [retry_at for _, retry_at in releases(store)]
    gaps = [after - one for one, after in pairwise(times)]
    assert min(gaps) >= timedelta(seconds=1) - TICK


def test_approvals_at_once_are_answered_the_same(store: Backend) -> None:
    insert_staggered(store, 20)
    with running(store, recovery_hold_above=1) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.post("/recovery/approve"), range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        assert answers[0].json()["tasks"] == 20
        for task in client.get("/tasks").json():
            assert finished(client, task["task_id"])["attempt"] == 1


def test_nothing_to_approve_is_409(store: Backend) -> None:
    with running(store) as client:
        problem = assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")
    assert "GET /recovery/plan" in problem["detail"]
    insert_staggered(store, 3)
    start(store, Rules(RUN, rate=1))  # released without anybody's approval
    with running(store, recovery_rate=1) as client:
        assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")


def test_skipped_tasks_are_not_approved_with_the_others(store: Backend) -> None:
    skipped = store.insert_task(run_at=later(-60))
    with running(store, recover_past_tasks="skip") as client:
        assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")
    before = store.row(skipped)
    insert_staggered(store, 3)
    with running(store, recovery_hold_above=1) as client:
        assert client.post("/recovery/approve").json()["tasks"] == 3
        wait_until(lambda: store.count("status = 'done'") == 3)
    assert store.row(skipped) == before


def test_held_task_can_be_cancelled(store: Backend) -> None:
    insert_staggered(store, 3)
    with running(store, recovery_hold_above=1) as client:
        for task in client.get("/tasks").json()[:2]:
            assert client.delete(f"/tasks/{task['task_id']}").status_code == 200
        assert client.post("/recovery/approve").json()["tasks"] == 1
        wait_until(lambda: store.count("status = 'done'") == 1)


def test_what_was_approved_is_not_held_again_but_many_new_ones_are(store: Backend) -> None:
    insert_staggered(store, 50)
    rules = Rules(RUN, rate=1, hold_above=3)
    start(store, rules)
    approve(store)
    step(store, 1)
    start(store, rules)
    row = current(store)
    assert row is not None
    assert not row.waits
    covered = row.covers_until
    for _ in range(4):
        store.insert_task(run_at=later(0))
    wait_until(lambda: (now := current(store)) is not None and now.now > covered + timedelta(1e-6))
    start(store, rules)
    row = current(store)
    assert row is not None
    assert row.waits
    step(store, 1)
    assert approve(store, 1).tasks == store.count("missed_at IS NOT NULL") > 40


def test_ended_catch_up_gives_way_to_a_new_hold(store: Backend) -> None:
    insert_staggered(store, 3)
    rules = Rules(RUN, rate=1_000_000, hold_above=2)
    start(store, rules)
    assert approve(store).tasks == 3
    step(store, 1_000_000)
    former = current(store)
    assert former is not None
    assert former.finished_at is not None
    wait_until(lambda: (now := current(store)) is not None and now.is_over)
    store.sql("UPDATE scheduled_tasks SET status = 'done'")
    for _ in range(3):
        store.insert_task(run_at=later(0))
    started = later(0.05)[:26]
    wait_until(lambda: later(0)[:26] > started)
    start(store, rules)
    row = current(store)
    assert row is not None
    assert row.waits
    assert row.missed_at > former.missed_at
    assert approve(store).tasks == 3


def test_ended_catch_up_is_forgotten_after_a_day(store: Backend) -> None:
    insert_staggered(store, 3)
    start(store, Rules(RUN, hold_above=1))
    answer = approve(store)
    step(store)
    assert approve(store) == answer
    store.sql("UPDATE catch_up SET finished_at = :ago", ago=later(-86_500)[:26])
    step(store)
    assert current(store) is None
    with running(store) as client:
        assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")


@pytest.mark.parametrize("held", [True, False], ids=["held", "releasing"])
def test_fail_applies_to_what_is_not_released_yet(store: Backend, held: bool) -> None:
    insert_staggered(store, 1_500)
    skipped = store.insert_task(run_at=later(-60), missed_at=later(-30))
    start(store, Rules(RUN, rate=1, hold_above=int(held)))
    overdue = store.insert_task(run_at=later(-1))
    with running(store, recover_past_tasks="fail") as client:
        assert client.get(f"/tasks/{overdue}").json()["status"] == "failed"
        assert client.get("/health").json()["status"] == "ok"
        assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")
    assert store.count("status = 'failed'") == 1_501
    [reason] = store.sql(
        "SELECT DISTINCT CAST(result AS text) AS result FROM scheduled_tasks "
        "WHERE status = 'failed' AND missed_at IS NOT NULL"
    )
    assert reason["result"].startswith('"missed: the service was down until ')
    assert store.row(skipped)["status"] == "scheduled"
    assert current(store) is None


def test_skip_closes_the_hold_and_leaves_its_tasks_aside(store: Backend) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, hold_above=1))
    row = current(store)
    assert row is not None
    for policy in ("skip", "run"):
        with running(store, recover_past_tasks=policy, recovery_hold_above=1) as client:
            assert client.get("/health").json()["status"] == "ok"
            assert_problem(client.post("/recovery/approve"), 409, "RECOVERY_409")
        assert {one["missed_at"] for one in (store.row(id_) for id_ in _ids(store))} == {
            row.missed_at
        }
    assert current(store) is None


def _ids(store: Backend) -> list[str]:
    rows = store.sql("SELECT CAST(task_id AS text) AS task_id FROM scheduled_tasks")
    return [row["task_id"] for row in rows]


def test_raised_limit_does_not_open_a_hold(store: Backend) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, hold_above=1))
    start(store, Rules(RUN))
    row = current(store)
    assert row is not None
    assert row.waits


def test_lateness_counts_from_the_time_that_was_asked_for(store: Backend) -> None:
    for _ in range(2):
        store.insert_task(run_at=later(-1_000))
    with running(store, recovery_hold_above=1) as client:
        client.post("/recovery/approve")
        for task in client.get("/tasks").json():
            ended = finished(client, task["task_id"])
            assert ended["retry_at"] is not None
            assert 1_000 <= ended["result"]["late_seconds"] < 1_200
            [run] = client.get(f"/tasks/{task['task_id']}/runs").json()
            assert 1_000 <= run["late"] < 1_200
        report = post(client, name="send_report", run_at=later(0))
        late = finished(client, report["task_id"])["result"]["lateness_seconds"]
    assert 1_000 <= late["worst"] < 1_200


# --------------------------------------------------------------- failures in the middle


@pytest.mark.parametrize("hold_above", [0, 1], ids=["release", "hold"])
def test_marking_that_breaks_off_is_continued_by_the_next_start(
    store: Backend, hold_above: int
) -> None:
    insert_staggered(store, 2_500)
    rules = Rules(RUN, hold_above=hold_above)
    with (
        store.database() as database,
        failing_at(database, "UPDATE scheduled_tasks", 2),
        pytest.raises(RuntimeError, match="broken by the test"),
    ):
        start(store, rules, database)
    assert store.count("missed_at IS NOT NULL") == 1_000
    opened = current(store)
    assert opened is not None
    start(store, rules)
    assert store.count("missed_at IS NOT NULL") == 2_500
    assert len(store.sql("SELECT DISTINCT missed_at FROM scheduled_tasks")) == 1
    row = current(store)
    assert row is not None
    assert row.missed_at == opened.missed_at
    assert row.waits is bool(hold_above)


@pytest.mark.parametrize("policy", [FAIL, SKIP])
def test_ending_that_breaks_off_is_continued_by_the_next_start(
    store: Backend, policy: RecoverPastTasks
) -> None:
    insert_staggered(store, 1_500)
    start(store, Rules(RUN, hold_above=1))
    with (
        store.database() as database,
        failing_at(database, "DELETE FROM catch_up", 1),
        pytest.raises(RuntimeError, match="broken by the test"),
    ):
        start(store, Rules(policy), database)
    assert current(store) is not None
    start(store, Rules(policy))
    assert current(store) is None
    assert store.count("status = 'failed'") == (1_500 if policy is FAIL else 0)


def test_batch_and_its_place_in_time_are_one_transaction(store: Backend) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, rate=1))
    with (
        store.database() as database,
        failing_at(database, "UPDATE catch_up SET released_until", 1),
        pytest.raises(RuntimeError, match="broken by the test"),
    ):
        asyncio.run(Release(database, 1_000).step())
    assert store.count("missed_at IS NOT NULL") == 5
    row = current(store)
    assert row is not None
    assert row.released_until is None


def looping(store: Backend, meanwhile: Callable[[], Any], **events: Any) -> None:
    """Run the loop while a function works in a thread."""

    async def scenario() -> None:
        with store.database() as database:
            release = Release(database, 1_000)
            loop = asyncio.create_task(release.run())
            with failing_at(database, **events):
                await asyncio.to_thread(meanwhile)
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    asyncio.run(scenario())


def test_loop_goes_on_after_a_failure(store: Backend, caplog: pytest.LogCaptureFixture) -> None:
    insert_staggered(store, 5)
    start(store, Rules(RUN, rate=1))
    looping(
        store,
        lambda: wait_until(lambda: "have been released" in caplog.text, 20, "the release"),
        statement="UPDATE catch_up SET released_until",
        number=1,
    )
    assert store.count("missed_at IS NULL") == 5
    assert caplog.text.count("missed tasks could not be released; the next try follows") == 1
    assert "broken by the test" in caplog.text
    assert "recovery: all missed tasks have been released" in caplog.text


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_loop_waits_out_an_outage_of_the_database(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "job_scheduler.core.release")
    insert_staggered(store, 5)
    start(store, Rules(RUN, rate=1))
    with Proxy.before(store.db_url) as proxy:
        proxy.cut()

        def meanwhile() -> None:
            wait_until(lambda: "the database is away" in caplog.text, 15, "the outage")
            proxy.heal()
            wait_until(lambda: store.count("missed_at IS NULL") == 5, 20, "the release")

        proxied = Backend(proxy.url_for(store.db_url))
        looping(proxied, meanwhile, statement="no such statement", number=1)
    assert "could not be released" not in caplog.text


def test_log_says_about_every_minute_that_a_hold_waits(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    insert_staggered(store, 3)
    start(store, Rules(RUN, hold_above=1))
    now = 1_000.0

    async def scenario() -> list[int]:
        nonlocal now
        counts = []
        with store.database() as database:
            release = Release(database, 1_000, lambda: now)
            for seconds in (0, 30, 31, 30):
                now += seconds
                await release.step()
                counts.append(caplog.text.count("recovery waits: 3 missed tasks are held since"))
        return counts

    assert asyncio.run(scenario()) == [1, 1, 2, 2]
    assert store.count("missed_at IS NOT NULL") == 3


@pytest.mark.parametrize("policy", [RUN, FAIL, SKIP])
def test_recovery_that_was_taken_for_dead_changes_nothing_any_more(
    store: Backend, policy: RecoverPastTasks
) -> None:
    insert_staggered(store, 1_500)
    with store.database() as database:
        member = Member(new_token(), own_identity())
        with database.writing() as connection:
            instances.register(connection, member, InstanceState.Recovering)

        def bury(*arguments: Any) -> None:
            if arguments[2].split()[:2] == ["UPDATE", "scheduled_tasks"]:
                # As if by another one, and in the same transaction, since SQLite has one writer.
                # By a cursor of its own: the other's rows are still to be read.
                beside = arguments[0].connection.cursor()
                beside.execute("UPDATE instances SET state = 'dead'")

        event.listen(database.engine, "after_cursor_execute", bury)
        with pytest.raises(StartError, match="took this one for dead"):
            asyncio.run(recover(database, member.instance_id, Rules(policy)))
    assert store.count("status = 'failed' OR missed_at IS NOT NULL") == 1_000
