"""Retention: what finished long ago is removed in small steps, and nothing else is."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.clock import SystemClock
from job_scheduler.constants import TaskStatus
from job_scheduler.core.retention import Bounds, Retention
from job_scheduler.database import Database
from job_scheduler.identifiers import new_claim_token
from job_scheduler.retention_days import parse_retention_days
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, later, post, running, statements
from tests.support.services import wait_until

DAY = 86_400.0
ONE_DAY = timedelta(days=1)
AGES = {TaskStatus.Done: ONE_DAY, TaskStatus.Failed: ONE_DAY}


class Rests:
    """What Retention rests with: it only writes down for how long."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        """Rest, as far as a test is concerned."""
        self.taken.append(seconds)
        await asyncio.sleep(0)


def finished_task(store: Backend, days: float, status: str = "done", **columns: Any) -> str:
    """Insert a task that finished so many days ago, with one attempt."""
    times = {"run_at": later(-days * DAY - 60), "finished_at": later(-days * DAY)}
    task_id = store.insert_task(**(times | {"status": status} | columns))
    store.sql(
        "INSERT INTO task_runs (task_id, claim_token, attempt, scheduled_for, started_at, outcome) "
        "VALUES (:task_id, :token, 1, :run_at, :run_at, 'done')",
        task_id=task_id,
        token=str(uuid4()),
        run_at=times["run_at"],
    )
    return task_id


def ids(store: Backend, table: str = "scheduled_tasks") -> set[str]:
    """The ids of the tasks that are there, or that have attempts there."""
    rows = store.sql(f"SELECT CAST(task_id AS text) AS task_id FROM {table}")  # noqa: S608
    return {row["task_id"] for row in rows}


def with_retention(
    store: Backend,
    work: Callable[[Retention], Coroutine[Any, Any, Any]],
    **arguments: Any,
) -> tuple[Any, list[str], Rests]:
    """Do something with a Retention; return what it returns, the statements, and the rests."""
    rests = Rests()

    async def scenario(database: Database) -> Any:
        options: dict[str, Any] = {"ages": AGES, "rest": rests} | arguments
        return await work(Retention(database, **options))

    with store.database() as database, statements(database.engine) as executed:
        result = asyncio.run(scenario(database))
    return result, executed, rests


def pruned(store: Backend, **arguments: Any) -> int:
    """How many tasks one pass removes."""
    return int(with_retention(store, Retention.prune, **arguments)[0])


@contextmanager
def renamed(store: Backend) -> Iterator[None]:
    """Take the table of tasks away for a while: every statement about it fails."""
    store.sql("ALTER TABLE scheduled_tasks RENAME TO elsewhere")
    try:
        yield
    finally:
        store.sql("ALTER TABLE elsewhere RENAME TO scheduled_tasks")


# ---------------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("30", (30, 30, None, 30)),
        (" 7 ", (7, 7, None, 7)),
        ("0.5", (0.5, 0.5, None, 0.5)),
        ("36500", (36_500, 36_500, None, 36_500)),
        ("0", (None, None, None, None)),
        ("0.0", (None, None, None, None)),
        ("done=7,failed=90", (7, 90, None, 30)),
        (" failed = 0.25 , done = 1 ", (1, 0.25, None, 30)),
        ("done=7", (7, 30, None, 30)),
        ("failed=0", (30, None, None, 30)),
        ("unknown=365", (30, 30, 365, 30)),
        ("unknown=0,done=0", (None, 30, None, 30)),
        ("cancelled=0", (30, 30, None, None)),
    ],
)
def test_setting_is_a_number_of_days_or_one_for_each_outcome(
    text: str, days: tuple[float | None, ...]
) -> None:
    outcomes = (TaskStatus.Done, TaskStatus.Failed, TaskStatus.Unknown, TaskStatus.Cancelled)
    assert parse_retention_days(text) == {
        outcome: timedelta(days=number)
        for outcome, number in zip(outcomes, days, strict=True)
        if number is not None
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "+1", "1e3", "nan", "inf", "36500.1", "36501", "99999", "100000", "1,5"),
        *("1.", ".5", "1_0", "٣", "30 days", "for ever", "done", "done=", "done=-1", "done=x"),
        *("done=7;failed=9", "done=7,", ",done=7", "done=7,done=7", "Done=7", "running=7"),
        *("scheduled=1", "done=7,30", "30,done=7", "done=7=8", "done==7", "1.0000000001"),
    ],
)
def test_bad_setting_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number of days from 0 to 36500") as refusal:
        parse_retention_days(text)
    assert "done=7,failed=90,unknown=0" in str(refusal.value)


# ------------------------------------------------------------------------- one pass


def test_what_finished_long_ago_is_removed_with_its_attempts(store: Backend) -> None:
    for status in ("done", "failed"):
        finished_task(store, 1.001, status)
        finished_task(store, 400, status)
    kept = {
        finished_task(store, 0.999),
        finished_task(store, 0.999, "failed"),
        finished_task(store, 400, "unknown"),
        # It was to run long ago, and ended just now.
        finished_task(store, 0, run_at=later(-400 * DAY)),
    }
    unfinished = {
        store.insert_task(),
        store.insert_task(run_at=later(-400 * DAY), missed_at=later(-DAY)),
        store.insert_task(run_at=later(-400 * DAY), status="running", started_at=later(-300 * DAY)),
    }
    removed, executed, _ = with_retention(store, Retention.prune)
    assert removed == 4
    assert ids(store) == kept | unfinished
    assert ids(store, "task_runs") == kept
    assert len([one for one in executed if one.startswith("DELETE")]) == 1


def attempt(store: Backend, task_id: str, days: float, claimed: float | None = None) -> str:
    """Enter an attempt that ended so many days ago, claimed then or before; return its token."""
    began = SystemClock().now() - timedelta(days=claimed or days)
    token = new_claim_token(began)
    store.sql(
        "INSERT INTO task_runs (task_id, claim_token, attempt, scheduled_for, started_at, "
        "finished_at, outcome) VALUES (:task_id, :token, 1, :at, :at, :finished, 'done')",
        task_id=task_id,
        token=token,
        at=later(-(claimed or days) * DAY),
        finished=later(-days * DAY),
    )
    return token


def tokens(store: Backend) -> set[str]:
    rows = store.sql("SELECT CAST(claim_token AS text) AS token FROM task_runs")
    return {row["token"] for row in rows}


def test_old_attempts_of_a_recurring_task_are_removed_but_for_its_last(store: Backend) -> None:
    daily, yearly = (store.insert_task(recurrence='{"interval_seconds": 60}') for _ in range(2))
    retried = store.insert_task(attempt=1, max_attempts=9)
    for days in (1.001, 2, 30):
        attempt(store, daily, days)
    attempt(store, yearly, 700)
    kept = {
        attempt(store, daily, 0.99),
        attempt(store, daily, 0.5),
        # It took long.
        attempt(store, daily, 0.99, claimed=9),
        attempt(store, yearly, 350),
        attempt(store, retried, 400),
    }
    removed, executed, _ = with_retention(store, Retention.prune)
    assert removed == 0
    assert tokens(store) == kept
    assert len([one for one in executed if one.startswith("DELETE")]) == 1
    assert pruned(store, ages={TaskStatus.Done: ONE_DAY / 4}) == 0
    assert tokens(store) == kept, "of those that fail, all are kept for ever"


def test_many_old_attempts_are_removed_in_small_transactions(store: Backend) -> None:
    task_id = store.insert_task(recurrence='{"interval_seconds": 60}')
    for number in range(12):
        attempt(store, task_id, 2 + number)
    rests = Rests()
    with store.database() as database, statements(database.engine) as executed:
        bounds = Bounds(removed=4)
        assert asyncio.run(Retention(database, AGES, bounds, rests).prune()) == 0
    assert len([one for one in executed if one.startswith("DELETE")]) == 3
    assert len(rests.taken) == 3
    assert len(tokens(store)) == 1


def test_each_outcome_has_an_age_of_its_own(store: Backend) -> None:
    ages = {TaskStatus.Failed: timedelta(days=9), TaskStatus.Unknown: timedelta(days=5)}
    for status, days in (("failed", 9.1), ("unknown", 5.1), ("unknown", 8)):
        finished_task(store, days, status)
    kept = {
        finished_task(store, 400, "done"),
        finished_task(store, 8.9, "failed"),
        finished_task(store, 4.9, "unknown"),
    }
    assert pruned(store, ages=ages) == 3
    assert ids(store) == kept


def test_nothing_old_is_nothing_to_do(store: Backend) -> None:
    kept = {finished_task(store, 0.5), store.insert_task()}
    work = Retention.prune
    removed, executed, rests = with_retention(store, work, bounds=Bounds(looked_at=1))
    assert (removed, ids(store), rests.taken) == (0, kept, [])
    # Rows so young that they cannot be expired are not even looked at.
    assert len([one for one in executed if "ORDER BY scheduled_tasks.run_at" in one]) == 1
    assert [one for one in executed if one.startswith("DELETE")] == []


def test_many_are_removed_in_small_transactions_with_rests_between(store: Backend) -> None:
    for _ in range(11):
        finished_task(store, 2)
    deleted: list[int] = []
    rests = Rests()

    def count(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE"):
            deleted.append(arguments[1].rowcount)

    with store.database() as database, statements(database.engine) as executed:
        event.listen(database.engine, "after_cursor_execute", count)
        bounds = Bounds(looked_at=7, removed=3)
        assert asyncio.run(Retention(database, AGES, bounds, rests).prune()) == 11
    assert ids(store) == set()
    # Of 7 rows that are looked at 3, 3 and 1 are removed, of the 4 that follow 3 and 1.
    assert deleted == [3, 3, 1, 3, 1]
    assert len(rests.taken) == 5
    assert all(seconds >= 0.05 for seconds in rests.taken)
    looks = [one for one in executed if "ORDER BY scheduled_tasks.run_at" in one]
    assert len(looks) == 2


def test_rest_is_as_long_as_the_removal_took(store: Backend) -> None:
    finished_task(store, 2)
    rests = Rests()

    def delay(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE"):
            threading.Event().wait(0.2)

    with store.database() as database:
        event.listen(database.engine, "before_cursor_execute", delay)
        assert asyncio.run(Retention(database, AGES, rest=rests).prune()) == 1
    assert rests.taken[0] >= 0.2


def test_rows_that_stay_are_passed_by_place_for_place(store: Backend) -> None:
    """Also where many bear the same run_at, and however few are looked at."""
    run_at = later(-400 * DAY)
    for _ in range(6):
        finished_task(store, 2, run_at=run_at)
        finished_task(store, 2, "unknown", run_at=run_at)
    assert pruned(store, bounds=Bounds(looked_at=1)) == 6
    assert store.count("status = 'unknown'") == store.count() == 6


def test_pass_ends_after_so_many_rows_that_stay_and_the_next_goes_on(store: Backend) -> None:
    for _ in range(4):
        finished_task(store, 400, "unknown")
    finished_task(store, 300)
    for _ in range(4):
        finished_task(store, 200, "unknown")
    last = finished_task(store, 100)

    async def passes(retention: Retention) -> None:
        assert await retention.prune() == 0
        oldest = finished_task(store, 500)
        assert await retention.prune() == 2
        assert last not in ids(store)
        assert oldest in ids(store)
        assert await retention.prune() == 0  # The end is reached, and it begins anew.
        assert await retention.prune() == 1
        assert oldest not in ids(store)

    bounds = Bounds(looked_at=2, passed_over=4)
    with_retention(store, passes, bounds=bounds)


def test_task_that_is_taken_back_at_this_very_moment_stays(store: Backend) -> None:
    ages = {TaskStatus.Unknown: ONE_DAY}
    finished_task(store, 2, "unknown")
    taken_back = finished_task(store, 3, "unknown")

    def take_back(*arguments: Any) -> None:
        if "ORDER BY scheduled_tasks.run_at" in arguments[2]:
            store.sql(
                "UPDATE scheduled_tasks SET status = 'scheduled' WHERE task_id = :task_id",
                task_id=taken_back,
            )

    with store.database() as database:
        event.listen(database.engine, "after_cursor_execute", take_back)
        assert asyncio.run(Retention(database, ages, rest=Rests()).prune()) == 1
    assert ids(store) == {taken_back}


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_task_that_another_transaction_holds_is_left_to_a_later_pass(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = finished_task(store, 2)
    others = [finished_task(store, 3), finished_task(store, 1.5)]

    with store.database() as other, other.writing() as connection:
        connection.exec_driver_sql(
            "SELECT 1 FROM scheduled_tasks WHERE task_id = %(id)s FOR KEY SHARE", {"id": held}
        )
        removed, executed, _ = with_retention(store, Retention.prune)
        assert removed == len(others)
    [lock] = [one for one in executed if "FOR UPDATE" in one]
    assert lock.endswith("ORDER BY scheduled_tasks.task_id FOR UPDATE SKIP LOCKED")
    assert ids(store) == {held}
    assert "retention: 2 tasks removed, 1 left" in caplog.messages
    assert pruned(store) == 1
    assert "retention: 1 tasks removed, 0 left" in caplog.messages


def test_two_instances_remove_each_task_once(store: Backend) -> None:
    for _ in range(40):
        finished_task(store, 2)

    async def both(database: Database, other: Database) -> list[int]:
        bounds = Bounds(looked_at=8, removed=4)
        passes = [
            Retention(one, AGES, bounds, Rests()).prune() for one in (database, other, database)
        ]
        return await asyncio.gather(*passes)

    with store.database() as database, store.database() as other:
        removed = asyncio.run(both(database, other))
    while pruned(store):  # what one had locked, the others left
        continue
    assert sum(removed) <= 40
    assert ids(store) == set()


def test_task_to_which_another_table_refers_holds_up_no_other(store: Backend) -> None:
    wanted = {finished_task(store, 2), finished_task(store, 4)}
    for days in (1.5, 3, 5, 6):
        finished_task(store, days)
    kind = "uuid" if store.dialect == "postgresql" else "varchar(36)"
    store.sql(f"CREATE TABLE orders (task_id {kind} REFERENCES scheduled_tasks)")
    try:
        for task_id in wanted:
            store.sql("INSERT INTO orders VALUES (:task_id)", task_id=task_id)
        assert pruned(store, bounds=Bounds(removed=4)) == 4
        assert ids(store) == ids(store, "task_runs") == wanted
        assert pruned(store) == 0
    finally:
        store.sql("DROP TABLE orders")


# ------------------------------------------------------------------------- the loop


def looping(store: Backend, meanwhile: Callable[[], None], **arguments: Any) -> None:
    """Let the loop run while the test does something."""

    async def scenario(retention: Retention) -> None:
        loop = asyncio.ensure_future(retention.run())
        await asyncio.to_thread(meanwhile)
        assert not loop.done()
        loop.cancel()

    with_retention(store, scenario, **({"interval": 0.01} | arguments))


def test_loop_prunes_again_and_again_whatever_happens(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    finished_task(store, 2)

    def meanwhile() -> None:
        wait_until(lambda: store.count() == 0, 15, "the first pass")
        with renamed(store):
            wait_until(lambda: "retention failed" in caplog.text, 15, "a pass that fails")
        store.insert_task(status="done", run_at=later(-3 * DAY), finished_at=later(-2 * DAY))
        wait_until(lambda: store.count() == 0, 15, "a later pass")

    looping(store, meanwhile)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_loop_waits_out_an_outage_of_the_database(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "job_scheduler.core.retention")
    finished_task(store, 2)
    with Proxy.before(store.db_url) as proxy:
        proxy.cut()

        def meanwhile() -> None:
            wait_until(lambda: "the database is away" in caplog.text, 15, "the outage")
            proxy.heal()
            wait_until(lambda: store.count() == 0, 15, "a pass after it")

        looping(Backend(proxy.url_for(store.db_url)), meanwhile)
    assert "retention failed" not in caplog.text


def test_loop_ends_at_once_where_everything_is_kept_for_ever(store: Backend) -> None:
    kept = finished_task(store, 36_000)
    _, executed, _ = with_retention(store, Retention.run, ages={})
    assert (ids(store), executed) == ({kept}, [])


# ---------------------------------------------------------------------- the service


@pytest.mark.parametrize(
    ("setting", "removed"),
    [
        (None, ["done 31", "failed 31"]),
        ("20", ["done 31", "failed 31", "done 21"]),
        ("done=20", ["done 31", "failed 31", "done 21"]),
        ("failed=0,unknown=30", ["done 31", "unknown 31"]),
    ],
    ids=str,
)
def test_service_removes_what_its_setting_says(
    store: Backend, setting: str | None, removed: list[str]
) -> None:
    options: dict[str, Any] = {} if setting is None else {"retention_days": setting}
    names = ["done 31", "failed 31", "unknown 31", "done 21", "failed 10"]
    for name in names:
        status, days = name.split()
        finished_task(store, float(days), status, name=name)
    with running(store, **options) as client:
        post(client, name="to come")

        def left() -> set[str]:
            return {task["name"] for task in client.get("/tasks").json()}

        expected = {*names, "to come"} - set(removed)
        wait_until(lambda: left() == expected, 15, f"the removal of {removed}")
        assert client.get("/health").json()["status"] == "ok"


def test_service_that_keeps_for_ever_removes_nothing(store: Backend) -> None:
    kept = finished_task(store, 36_000)
    with running(store, retention_days="0") as client:
        assert client.get(f"/tasks/{kept}").status_code == 200
        assert len(client.get(f"/tasks/{kept}/runs").json()) == 1
    assert ids(store) == {kept}
