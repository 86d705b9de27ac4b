"""The protocol under random interleavings, held against a simple model.

Several virtual instances with the real statements: they claim, start, record, crash, stop, are
paused (nothing is called on them), lose the database, look at each other, bury, rescue, come up
and recover, in any order that Hypothesis thinks of. After each step the database is compared
with what the world outside knows.

`PROTOCOL_EXAMPLES=2000 pytest tests/test_protocol_model.py` searches for longer.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select, text

from job_scheduler.constants import TRANSITIONS, RecoverPastTasks, TaskStatus
from job_scheduler.core import store as statements
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.instances import instances
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.outcomes import CutOff, Failed
from job_scheduler.core.records import task_runs
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.store import tasks
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import TaskNotDeletable, TaskNotFound
from job_scheduler.identifiers import new_token
from tests.support.app import Backend, later, parse_time
from tests.support.model import LEASE, Known, Virtual, World

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "20"))
STEPS = 40
NUMBER = 3
MANY = 4
"""Few tasks, so that the instances get in each other's way."""
FINAL = {TaskStatus.Done, TaskStatus.Failed, TaskStatus.Unknown}
ON_CRASH = [None, "fail", "retry", "hold"]

numbers = st.integers(0, NUMBER - 1)
some = st.integers(0, 1_000_000)


def reachable(former: TaskStatus) -> set[TaskStatus]:
    """The states that a task may be in, later."""
    found = {former}
    while more := {after for state in found for after in TRANSITIONS[state]} - found:
        found |= more
    return found


class Protocol(RuleBasedStateMachine):
    """Rules are what may happen; invariants are what must hold."""

    made = Bundle("made")

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.world = World(database)
        self.all = [Virtual(self.world, number) for number in range(NUMBER)]
        self.former: dict[str, dict[str, Any]] = {}
        with database.writing() as connection:
            for table in ("task_runs", "catch_up", "scheduled_tasks", "instances"):
                connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608

    # ----------------------------------------------------------------------- the caller

    @precondition(lambda self: len(self.world.tasks) < MANY)
    @rule(
        target=made,
        overdue=st.booleans(),
        max_attempts=st.integers(1, 3),
        on_crash=st.sampled_from(ON_CRASH),
    )
    def create(self, overdue: bool, max_attempts: int, on_crash: str | None) -> str:
        """A caller creates a task: due already, or only in an hour."""
        task_id = new_token()
        run_at = parse_time(later(-60 if overdue else 3600).replace("+00:00", "Z"))
        wanted = NewTask(
            task_id,
            TaskCreate(
                name="probe",
                run_at=run_at.isoformat(),
                max_attempts=max_attempts,
                on_crash=on_crash,
            ),
            run_at,
        )
        with self.world.database.writing() as connection:
            create_tasks(connection, [wanted])
        self.world.tasks[task_id] = Known(max_attempts, on_crash)
        return task_id

    @rule(task_id=made)
    def time_comes(self, task_id: str) -> None:
        """The hour passes."""
        with self.world.database.writing() as connection:
            connection.execute(
                tasks.update()
                .where(tasks.c.task_id == task_id, tasks.c.status == "scheduled")
                .values(run_at=parse_time(later(-60).replace("+00:00", "Z")))
            )

    @rule(task_id=made)
    def cancel(self, task_id: str) -> None:
        """A caller cancels a task; 200 means that it never starts from now on."""
        known = self.world.tasks[task_id]
        try:
            with self.world.database.writing() as connection:
                statements.delete_task(connection, task_id)
        except TaskNotFound:
            assert known.is_deleted
        except TaskNotDeletable:
            assert not known.is_deleted
        else:
            assert self.former[task_id]["status"] == "scheduled", "it had begun, or ended"
            known.is_deleted = True
            known.started.append("deleted")

    # -------------------------------------------------------------------- the instances

    @initialize(target=made, max_attempts=st.integers(1, 3), on_crash=st.sampled_from(ON_CRASH))
    def first_start(self, max_attempts: int, on_crash: str | None) -> str:
        """The service is up with two of three instances, and something is due."""
        for number in (0, 1):
            self.come_up(number, RecoverPastTasks.Run, looks=2)
        assert self.can_work(0)
        assert self.can_work(1)
        created: str = self.create(True, max_attempts, on_crash)  # type: ignore[assignment]
        return created

    @rule(number=numbers, policy=st.sampled_from(RecoverPastTasks), looks=st.integers(0, 2))
    def come_up(self, number: int, policy: RecoverPastTasks, looks: int) -> None:
        """A process starts, and looks at the others, whose hearts beat, to draw its conclusion."""
        one = self.all[number]
        if not one.is_up:
            one.boot()
        for _ in range(looks):
            if one.is_up and not one.is_alive and not one.is_away:
                one.decide(policy)
                for other in range(NUMBER):
                    self.beat(other)

    @rule()
    def all_come_up(self) -> None:
        """Whoever is down starts, and the database is there for all."""
        for number, one in enumerate(self.all):
            one.is_away = False
            self.come_up(number, RecoverPastTasks.Run, looks=2)

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        """`kill -9`."""
        self.all[number].crash()

    @rule(number=numbers)
    def stop(self, number: int) -> None:
        """SIGTERM, and no grace."""
        if self.can_work(number):
            self.all[number].stop()

    @rule(number=numbers)
    def database_goes_or_comes(self, number: int) -> None:
        """An instance loses the database, or finds it again."""
        self.all[number].is_away = not self.all[number].is_away

    @rule(seconds=st.sampled_from([0.4, 1.0, 5.0]), asleep=st.integers(0, NUMBER))
    def time_passes(self, seconds: float, asleep: int) -> None:
        """Time passes; all beat and look but one, which is paused."""
        for _ in range(18):
            self.world.now += seconds
            for number in range(NUMBER):
                if self.can_work(number) and number != asleep:
                    self.all[number].heart.beat()
                    self.look(number)

    @rule(number=numbers)
    def beat(self, number: int) -> None:
        """A heart beats."""
        if self.can_work(number):
            self.all[number].heart.beat()

    @rule(number=numbers)
    def look(self, number: int) -> None:
        """An instance looks at the others, buries the dead, and rescues their runs."""
        if not self.all[number].is_up or not self.all[number].is_alive:
            return
        silent = {one.heart.instance_id: one.heart.silent_for() for one in self.all if one.is_up}
        alive = self.not_dead()
        self.all[number].look()
        for buried in alive - self.not_dead():
            assert silent.get(buried, LEASE) >= LEASE, "a living instance was buried"

    @rule(number=numbers, picks=st.lists(some, min_size=1, max_size=3))
    def claim(self, number: int, picks: list[int]) -> None:
        """An instance claims some tasks."""
        if self.can_work(number) and self.world.tasks:
            one = self.all[number]
            before = set(one.runs)
            one.claim(one.ask(self.pick_tasks(picks)))
            got = one.runs.keys() - before
            assert not got or one.heart.instance_id in self.not_dead(), "the dead have claimed"

    @rule(number=numbers, picks=st.lists(some, min_size=1, max_size=2), happened=st.booleans())
    def claim_with_unknown_outcome(self, number: int, picks: list[int], happened: bool) -> None:
        """The connection breaks during the COMMIT of a claim, which is repeated."""
        if self.can_work(number) and self.world.tasks:
            one = self.all[number]
            chosen = self.pick_tasks(picks)
            for task_id in chosen:
                self.time_comes(task_id)
            requests = one.ask(chosen)
            if happened:
                one.claim(requests)
            one.claim(requests, repeated=True)

    @rule(number=numbers, picks=st.lists(some, min_size=1, max_size=1))
    def claim_that_is_given_up(self, number: int, picks: list[int]) -> None:
        """The database carries out a claim that nobody waits for any more."""
        if self.can_work(number) and self.world.tasks:
            one = self.all[number]
            one.claim_unnoticed(one.ask(self.pick_tasks(picks)))

    @rule(number=numbers)
    def start(self, number: int) -> None:
        """The handlers of an instance's claimed tasks are called."""
        one = self.all[number]
        for run in [run for run in one.runs.values() if not one.has_started(run)]:
            if self.can_work(number):
                one.start(run)

    @rule(number=numbers, other=numbers)
    def paused_too_long(self, number: int, other: int) -> None:
        """One claims and starts all that is due, and is paused while another takes it over."""
        if number == other or not self.world.tasks:
            return
        everything = list(range(MANY))
        self.claim(number, everything)
        self.start(number)
        self.time_passes(1.0, asleep=number)
        for task_id in self.world.tasks:
            self.time_comes(task_id)
        self.claim(number, everything)
        self.claim(other, everything)
        self.start(other)

    @rule(
        number=numbers,
        pick=some,
        how=st.sampled_from(["done", "done", "failed", "cut off"]),
        times=st.integers(1, 2),
    )
    def end(self, number: int, pick: int, how: str, times: int) -> None:
        """A handler ends, and that is recorded, perhaps twice."""
        one = self.all[number]
        running = [run for run in one.runs.values() if one.has_started(run)]
        if not running or not self.can_work(number):
            return
        run = running[pick % len(running)]
        if how == "done":
            stands = one.finish(run, times)
        else:
            outcome = Failed("why") if how == "failed" else CutOff("why")
            stands = one.end(run, outcome, times)
        assert len(set(stands)) == 1, "a repetition answers as the first time"

    @rule(number=numbers)
    def reconcile(self, number: int) -> None:
        """An instance gives back what it does not know of."""
        if self.can_work(number):
            one = self.all[number]
            for _ in range(2):
                self.world.do(one.rescue.reconcile())

    # -------------------------------------------------------------------------- helpers

    def can_work(self, number: int) -> bool:
        """Whether an instance runs, takes part, and reaches the database."""
        one = self.all[number]
        return one.is_up and one.is_alive and not one.is_away

    def pick_tasks(self, picks: list[int]) -> list[str]:
        """Some tasks, gone ones among them."""
        known = list(self.world.tasks)
        return sorted({known[pick % len(known)] for pick in picks})

    def not_dead(self) -> set[str]:
        """The ids of all instances that are not dead."""
        with self.world.database.reading() as connection:
            return set(
                connection.scalars(
                    select(instances.c.instance_id).where(instances.c.state != "dead")
                )
            )

    # ----------------------------------------------------------------------- invariants

    @invariant()
    def database_agrees_with_the_world(self) -> None:
        """Compare every row, and the history, with what was answered and started."""
        with self.world.database.reading() as connection:
            rows = {row.task_id: dict(row._mapping) for row in connection.execute(select(tasks))}
            entries = [dict(row._mapping) for row in connection.execute(select(task_runs))]
        living = self.not_dead()
        for task_id, known in self.world.tasks.items():
            assert (task_id in rows) is not known.is_deleted, "a task is lost"
            starts = [token for token in known.started if token != "deleted"]
            assert len(set(starts)) == len(starts) <= known.max_attempts
            assert not known.is_deleted or known.started[-1] == "deleted", "ran after its DELETE"
        for task_id, row in rows.items():
            self.check_row(row, self.world.tasks[task_id], self.former.get(task_id))
        for entry in entries:
            known = self.world.tasks[entry["task_id"]]
            if entry["outcome"] == "done":
                assert entry["claim_token"] in known.started
                assert entry["result"] == entry["claim_token"]
                row = rows[entry["task_id"]]
                assert (row["status"], row["claim_token"]) == ("done", entry["claim_token"])
            if entry["outcome"] in ("crashed", "interrupted") and known.on_crash == "hold":
                assert rows[entry["task_id"]]["status"] == "unknown", "nobody was asked"
            if entry["outcome"] == "crashed":
                assert entry["instance_id"] not in living, "a living instance's run was rescued"
        self.former = rows

    def check_row(self, row: dict[str, Any], known: Known, former: dict[str, Any] | None) -> None:
        """Check one task."""
        status = TaskStatus(row["status"])
        if former is not None:
            before = TaskStatus(former["status"])
            assert status in reachable(before), f"{before} became {status}"
            if before in FINAL:
                assert row == former, "what was final has changed"
        assert row["attempt"] <= known.max_attempts
        started_at = row["started_at"]
        assert started_at is None or started_at >= row["run_at"], "it started before its time"
        assert len(known.started) <= row["attempt"], "a start that was not counted"
        if status is TaskStatus.Done:
            assert row["result"] == row["claim_token"] == known.started[-1]
        if status is TaskStatus.Unknown:
            assert known.on_crash == "hold"
        if status is TaskStatus.Scheduled:
            assert row["claim_token"] is None
        if row["missed_at"] is not None:
            assert status is TaskStatus.Scheduled, "what was set aside has been run"

    def teardown(self) -> None:
        """All is mended: nothing stays running, and what is due gets done."""
        self.settle()
        self.database_agrees_with_the_world()
        with self.world.database.reading() as connection:
            statuses = list(connection.execute(select(tasks.c.status, tasks.c.missed_at)))
        assert all(status != "running" for status, _ in statuses)
        assert all(missed for status, missed in statuses if status == "scheduled")
        self.world.close()

    def settle(self) -> None:
        """Heal everything, let all runs end, and run what is left."""
        self.all_come_up()
        for _ in range(60):
            self.world.now += 1.0
            for number in range(NUMBER):
                if self.can_work(number):
                    self.all[number].heart.beat()
                    self.look(number)
                else:
                    self.come_up(number, RecoverPastTasks.Run, looks=1)
        for one in self.all:
            self.end_all(one)
        for task_id in self.world.tasks:
            self.time_comes(task_id)
        one = self.all[0]
        for _ in range(3):
            one.claim(one.ask(sorted(self.world.tasks)))
            self.end_all(one)

    def end_all(self, one: Virtual) -> None:
        """Let an instance end what it has claimed."""
        for run in list(one.runs.values()):
            if not one.has_started(run):
                one.start(run)
            if one.has_started(run):
                one.finish(run)


@pytest.fixture
def quick(store: Backend) -> Iterator[Database]:
    """The database, without waiting for the disk: nobody pulls its plug here."""
    engine = build_engine(store.settings().database, pool_size=2)

    @event.listens_for(engine, "connect")
    def hurry(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        if store.dialect == "sqlite":
            cursor.execute("PRAGMA synchronous = OFF")
        else:
            cursor.execute("SET synchronous_commit = off")
            connection.commit()
        cursor.close()

    database = Database(engine)
    yield database
    database.close()


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_protocol_holds_under_any_interleaving(quick: Database) -> None:
    run_state_machine_as_test(
        lambda: Protocol(quick),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="PROTOCOL_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
