"""Transactions that PostgreSQL rolls back for the sake of others are repeated unseen."""

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import ExceptionContext, make_url

from job_scheduler.constants import InstanceState
from job_scheduler.core import claims, instances, selection
from job_scheduler.core.claims import Claim, ClaimRequest
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.instances import Member
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.outcomes import Succeeded, decide
from job_scheduler.core.records import Record, record
from job_scheduler.core.rescue import rescue_orphans
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.store import TaskRow, delete_task
from job_scheduler.database import Database
from job_scheduler.exceptions import (
    CommitOutcomeUnknown,
    DatabaseUnavailable,
    TaskNotDeletable,
    TaskNotFound,
)
from job_scheduler.identifiers import new_token
from job_scheduler.process import own_identity
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, no_lock

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
pytestmark = only_postgresql

ROUNDS = 60
TASKS = 12


def add_to(connection: Connection, task_id: str) -> None:
    """Change a task, which locks it until the commit."""
    connection.execute(
        text("UPDATE scheduled_tasks SET attempt = attempt + 1 WHERE task_id = :task_id"),
        {"task_id": task_id},
    )


def test_deadlock_is_resolved_and_both_transactions_are_done_once(store: Backend) -> None:
    first, second = store.insert_task(), store.insert_task()
    both_hold_one = threading.Barrier(2)
    begun: list[str] = []

    def cross(connection: Connection, one: str, other: str) -> str:
        begun.append(one)
        connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        add_to(connection, one)
        if begun.count(one) == 1:
            both_hold_one.wait(30)
        add_to(connection, other)
        return one

    async def scenario(database: Database) -> tuple[str, str]:
        return await asyncio.gather(
            database.write(cross, first, second), database.write(cross, second, first)
        )

    with store.database() as database:
        assert tuple(asyncio.run(scenario(database))) == (first, second)
    assert len(begun) == 3
    assert [store.row(task_id)["attempt"] for task_id in (first, second)] == [2, 2]


def fail_with(code: str, times: int) -> Callable[[Connection], int]:
    """Make a piece of work that PostgreSQL itself ends with an error code, `times` times."""
    calls: list[int] = []

    def work(connection: Connection) -> int:
        calls.append(1)
        add_to(connection, str(connection.scalar(text("SELECT task_id FROM scheduled_tasks"))))
        if len(calls) <= times:
            connection.execute(
                text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$")
            )
        return len(calls)

    return work


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_what_the_server_rolls_back_is_repeated_a_few_times(store: Backend, code: str) -> None:
    task_id = store.insert_task()

    async def scenario(database: Database) -> None:
        assert await database.write(fail_with(code, 5)) == 6
        assert store.row(task_id)["attempt"] == 1
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.write(fail_with(code, 6))
        assert not isinstance(caught.value, CommitOutcomeUnknown)
        assert store.row(task_id)["attempt"] == 1

    with store.database() as database:
        asyncio.run(scenario(database))


def test_other_errors_are_not_repeated(store: Backend) -> None:
    store.insert_task()
    calls: list[int] = []

    def out_of_memory(connection: Connection) -> None:
        calls.append(1)
        fail_with("53200", 1)(connection)

    async def scenario(database: Database) -> None:
        with pytest.raises(DatabaseUnavailable):
            await database.write(out_of_memory)

    with store.database() as database:
        asyncio.run(scenario(database))
    assert len(calls) == 1


@pytest.mark.parametrize("refusals", [2, 6])
def test_failure_of_the_commit_itself_is_repeated_too(store: Backend, refusals: int) -> None:
    store.sql(
        "CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('refusals') <= {refusals} THEN RAISE 'no' USING ERRCODE = '40001'; END IF; "
        "RETURN NULL; END $$"
    )
    store.sql("CREATE SEQUENCE refusals")
    store.sql(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON scheduled_tasks "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_once()"
    )
    task_id = store.insert_task()

    async def scenario(database: Database) -> None:
        if refusals < 6:
            await database.write(add_to, task_id)
            return
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.write(add_to, task_id)
        assert not isinstance(caught.value, CommitOutcomeUnknown)

    try:
        with store.database() as database:
            asyncio.run(scenario(database))
    finally:
        store.sql("DROP FUNCTION refuse_once CASCADE")
        store.sql("DROP SEQUENCE refusals")
    assert store.row(task_id)["attempt"] == (refusals < 6)


# ------------------------------------------------- everything at once, over the same rows


def new_task(task_id: str) -> NewTask:
    """A task that has been due for long."""
    wanted = TaskCreate(name="probe", run_at="2026-01-01T00:00:00Z", max_attempts=1_000)
    assert wanted.run_at is not None
    return NewTask(task_id, wanted, wanted.run_at)


class Storm:
    """One of several instances that do everything to the same tasks, each in an order of its own.

    It claims under an id that a colleague may bury at any moment, and comes back under another.
    """

    def __init__(self, database: Database, task_ids: list[str], seed: int) -> None:
        self._database = database
        self._task_ids = task_ids
        self._random = random.Random(seed)  # noqa: S311 (a test that can be repeated)
        self.instance_id = ""
        self.claimed = 0

    def some(self) -> list[str]:
        """Some of the tasks, in some order."""
        return self._random.sample(self._task_ids, len(self._task_ids) // 2)

    async def create(self) -> None:
        """Create tasks again, those of others included."""
        stored = await self._database.write(create_tasks, [new_task(one) for one in self.some()])
        assert all(isinstance(row, dict) for row in stored)

    async def run_some(self) -> None:
        """Claim, and record the results in another order."""
        requests = [ClaimRequest(task_id, new_token()) for task_id in self.some()]
        answers = await self._database.write(claims.claim, self.instance_id, requests)
        mine = [answer for answer in answers if isinstance(answer, Claim)]
        self.claimed += len(mine)
        self._random.shuffle(mine)
        records = [
            Record(one, decide(Succeeded("x"), one.attempt, one.max_attempts, one.on_crash))
            for one in mine
        ]
        if self._random.random() < 0.7:  # else it forgets them: the rescue's work
            await self._database.write(record, records)

    async def rescue(self) -> None:
        """Rescue what the dead have left."""
        await rescue_orphans(self._database, no_lock)

    async def revive(self) -> None:
        """Bury whoever there is, itself included, and take part again under a new id."""
        others = await self._database.read(instances.others, new_token())
        await self._database.write(instances.bury, self._random.sample(others, len(others)))
        await self.register()

    async def register(self) -> None:
        """Take part."""
        self.instance_id = new_token()
        member = Member(self.instance_id, own_identity())
        await self._database.write(instances.register, member, InstanceState.Alive)

    async def cancel(self) -> None:
        """Cancel some tasks, in one transaction."""

        def cancel_some(connection: Connection, task_ids: list[str]) -> None:
            for task_id in task_ids:
                try:
                    delete_task(connection, task_id)
                except (TaskNotFound, TaskNotDeletable):
                    continue

        await self._database.write(cancel_some, self.some()[:5])

    async def select(self) -> None:
        """Change many by a filter, and remove many."""
        database, wanted = self._database, TaskFilter(name=["probe"])
        same: dict[str, Any] = {"missed_at": None}
        await database.write(
            selection.change_tasks,
            self.some(),
            wanted,
            lambda rows: {row["task_id"]: same for row in rows},
        )
        await database.write(selection.delete_tasks, self.some()[:5], wanted)

    async def change_all(self) -> None:
        """Change rows in whatever order the statement meets them, as a person may by hand."""

        def change(connection: Connection, task_ids: list[str]) -> None:
            for task_id in task_ids:
                connection.execute(
                    text(
                        "UPDATE scheduled_tasks SET status = 'scheduled', result = NULL, "
                        "claim_token = NULL, instance_id = NULL, started_at = NULL, "
                        "finished_at = NULL WHERE task_id = :id AND status = 'done'"
                    ),
                    {"id": task_id},
                )

        await self._database.write(change, self.some()[:8])

    async def rage(self, rounds: int) -> None:
        """Do all of it, at once, again and again."""
        await self.register()
        for _ in range(rounds):
            steps: list[Callable[[], Coroutine[Any, Any, None]]] = [
                self.create, self.run_some, self.rescue, self.cancel, self.select, self.change_all,
                self.revive,
            ]  # fmt: skip
            self._random.shuffle(steps)
            await asyncio.gather(*(step() for step in steps))


@pytest.mark.timeout(300)
def test_everything_at_once_in_opposite_orders_surfaces_no_deadlock(store: Backend) -> None:
    task_ids = [new_token() for _ in range(TASKS)]
    deadlocks: list[str] = []
    # Deadlocks are found sooner than after a second, so that there can be many.
    url = make_url(store.db_url).update_query_dict({"options": "-c deadlock_timeout=20ms"})
    impatient = Backend(url.render_as_string(hide_password=False))

    def note(context: ExceptionContext) -> None:
        deadlocks.append(str(getattr(context.original_exception, "pgcode", None)))

    async def scenario(databases: list[Database]) -> list[TaskRow]:
        storms = [Storm(database, task_ids, seed) for seed, database in enumerate(databases)]
        await asyncio.gather(*(storm.rage(ROUNDS) for storm in storms))
        assert all(storm.claimed for storm in storms)
        await storms[0].revive()
        await storms[0].rescue()
        await storms[0].create()
        return store.sql("SELECT * FROM scheduled_tasks")

    with ExitStack() as stack:
        databases = [stack.enter_context(impatient.database()) for _ in range(3)]
        for database in databases:
            event.listen(database.engine, "handle_error", note)
        rows = asyncio.run(scenario(databases))
    assert set(deadlocks) <= {"40P01"}  # and nothing else
    assert {row["status"] for row in rows} <= {"scheduled", "done"}
    assert not store.sql(
        "SELECT 1 FROM task_runs GROUP BY task_id, claim_token HAVING count(*) > 1"
    )
    # Each row that is done bears the token under which its result is in the history.
    assert not store.sql(
        "SELECT 1 FROM scheduled_tasks AS task WHERE status = 'done' AND NOT EXISTS (SELECT 1 "
        "FROM task_runs AS run WHERE run.task_id = task.task_id "
        "AND run.claim_token = task.claim_token AND run.outcome = 'done')"
    )
