"""The runs of instances that died, were paused or stopped, and runs that nobody knows of."""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from job_scheduler import RunContext
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import InstanceState, OnCrash, RunOutcome, TaskStatus
from job_scheduler.core import instances
from job_scheduler.core.claims import Claim, ClaimRequest, claim
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import InstanceRow, Member
from job_scheduler.core.outcomes import (
    Cancelled,
    CutOff,
    Decision,
    Failed,
    NotStarted,
    Outcome,
    Parked,
    RetryIn,
    Succeeded,
    TooLate,
    decide,
)
from job_scheduler.core.records import Record, record, task_runs
from job_scheduler.core.rescue import Rescue, rescue_orphans
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from job_scheduler.process import ProcessIdentity, own_identity
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    Bench,
    ServiceProcess,
    bench,
    finished,
    later,
    no_lock,
    post,
    refused,
    running,
    service_process,
    services_of,
)
from tests.support.logs import logged
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)

CRASHED = RunOutcome.Crashed
AWAY = OperationalError("SELECT", {}, OSError("no route to host"))
ELSEWHERE = ProcessIdentity("another host", 1, "long ago")


# ------------------------------------------------------------ what a run's end makes of a task

DECISIONS: list[tuple[Outcome, int, int, OnCrash | None, TaskStatus, RunOutcome | None]] = [
    (Succeeded("fine"), 1, 3, None, TaskStatus.Done, RunOutcome.Done),
    (Failed("why"), 1, 1, None, TaskStatus.Failed, RunOutcome.Failed),
    (Failed("why"), 1, 3, OnCrash.Hold, TaskStatus.Failed, RunOutcome.Failed),
    (NotStarted(), 1, 1, OnCrash.Fail, TaskStatus.Scheduled, None),
    (CutOff("why", CRASHED), 1, 1, None, TaskStatus.Failed, CRASHED),
    (CutOff("why", CRASHED), 2, 3, None, TaskStatus.Scheduled, CRASHED),
    (CutOff("why", CRASHED), 3, 3, None, TaskStatus.Failed, CRASHED),
    (CutOff("why", CRASHED), 1, 3, OnCrash.Fail, TaskStatus.Failed, CRASHED),
    (CutOff("why", CRASHED), 1, 3, OnCrash.Retry, TaskStatus.Scheduled, CRASHED),
    (CutOff("why", CRASHED), 3, 3, OnCrash.Retry, TaskStatus.Failed, CRASHED),
    (CutOff("why", CRASHED), 1, 3, OnCrash.Hold, TaskStatus.Unknown, CRASHED),
    (CutOff("why", CRASHED), 1, 1, OnCrash.Hold, TaskStatus.Unknown, CRASHED),
    (CutOff("why"), 1, 3, None, TaskStatus.Scheduled, RunOutcome.Interrupted),
    (CutOff("why"), 1, 1, None, TaskStatus.Failed, RunOutcome.Interrupted),
]


AGAIN = (TaskStatus.Scheduled, "why", RunOutcome.Failed)
FAILED = (TaskStatus.Failed, "why", RunOutcome.Failed)


@pytest.mark.parametrize(
    ("outcome", "attempt", "decision"),
    [
        (RetryIn("why", 7.5), 1, Decision(*AGAIN, 7.5)),
        (RetryIn("why", 7.5), 3, Decision(*FAILED)),
        (RetryIn("why", 7.5, "where"), 1, Decision(*AGAIN, 7.5, "where")),
        (RetryIn("why", 7.5, "where"), 3, Decision(*FAILED, traceback="where")),
        (Failed("why", "where"), 1, Decision(*FAILED, traceback="where")),
        (TooLate("why"), 1, Decision(TaskStatus.Failed, "why", None)),
        (Parked("why", 60.0), 1, Decision(TaskStatus.Scheduled, "why", None, 60.0)),
        (Cancelled("all"), 1, Decision(TaskStatus.Cancelled, "all", RunOutcome.Cancelled)),
    ],
)
def test_failed_run_is_repeated_while_attempts_are_left(
    outcome: Outcome, attempt: int, decision: Decision
) -> None:
    for on_crash in (None, *OnCrash):
        assert decide(outcome, attempt, 3, on_crash) == decision


@pytest.mark.parametrize(
    ("outcome", "attempt", "max_attempts", "on_crash", "status", "entry"), DECISIONS
)
def test_choice_of_the_task_decides_what_a_run_makes_of_it(
    outcome: Outcome,
    attempt: int,
    max_attempts: int,
    on_crash: OnCrash | None,
    status: TaskStatus,
    entry: RunOutcome | None,
) -> None:
    result = {Succeeded: "fine", NotStarted: None}.get(type(outcome), "why")
    # What was cut off is due at once, what never began is due as it was.
    delay = 0.0 if isinstance(outcome, CutOff) else None
    decision = Decision(status, result, entry, delay)
    assert decide(outcome, attempt, max_attempts, on_crash) == decision


# ------------------------------------------------------------------- who counts as dead


class Observed:
    """A watch over one instance on another host, on a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = Watch(own_identity(), 15, lambda: self.now)
        heard = datetime(2027, 1, 1, tzinfo=UTC)
        self.other = InstanceRow("other", ELSEWHERE, InstanceState.Alive, 7, heard)

    def look(self, after: float = 0.0, *, beats: int = 0) -> bool | None:
        """Let time pass, in steps of a second, and the heart beat; then look."""
        while after > 1:
            self.now += 1
            after -= 1
            self.watch.look([self.other])
        self.now += after
        self.other = replace(self.other, heartbeat_seq=self.other.heartbeat_seq + beats)
        view = self.watch.look([self.other])
        found = {True: view.living, None: view.undecided, False: view.dead}
        [verdict] = [verdict for verdict, ones in found.items() if ones == [self.other]]
        return verdict


def test_silence_of_a_whole_lease_is_death_and_a_beat_is_life() -> None:
    seen = Observed()
    assert seen.look() is None
    assert seen.look(14.5) is None
    assert seen.look(0.4, beats=1) is True
    assert seen.look(14.5) is True
    assert seen.look(0.5) is False
    assert seen.look(0.1, beats=1) is True


def test_only_time_spent_looking_counts() -> None:
    seen = Observed()
    seen.look(beats=1)
    # This process was paused for an hour, and the other one perhaps too.
    seen.now += 3600
    assert seen.look() is None
    assert seen.look(13) is None
    assert seen.look(1) is False


def test_watch_starts_again_after_an_outage_and_gives_time_to_reconnect() -> None:
    seen = Observed()
    seen.look(beats=1)
    seen.look(14)
    seen.watch.start_again()
    assert seen.look() is None
    assert seen.look(20.5) is None
    assert seen.look(0.5) is False


def test_instance_that_comes_back_is_watched_anew() -> None:
    seen = Observed()
    seen.look()
    seen.look(14)
    seen.watch.look([])
    assert seen.look(1) is None


def test_process_that_is_gone_from_this_host_is_dead_at_once() -> None:
    seen = Observed()
    seen.other = replace(seen.other, process=replace(own_identity(), started="never"))
    assert seen.look() is False
    seen.other = replace(seen.other, process=own_identity())
    assert seen.look() is None


def test_heart_that_has_beaten_since_the_look_is_not_buried(store: Backend) -> None:
    with store.database() as database:
        member = Member(new_token(), ELSEWHERE)
        with database.writing() as connection:
            instances.register(connection, member, InstanceState.Alive)
            [seen] = instances.others(connection, new_token())
            instances.beat(connection, member.instance_id)
        with database.writing() as connection:
            assert instances.bury(connection, [seen]) == []
            [now] = instances.others(connection, new_token())
            assert now.state is InstanceState.Alive
            assert instances.bury(connection, [now]) == [member.instance_id]
            assert instances.others(connection, new_token()) == []
            assert instances.bury(connection, [now]) == []


# ------------------------------------------------------------------------- real processes

HANDLERS = """
import os, time
from pathlib import Path
from job_scheduler import RunContext, task

HERE = Path(os.environ["HERE"])

@task("wait")
def wait(context: RunContext) -> dict:
    "The first attempt waits for the gate."
    with (HERE / "ledger").open("a") as ledger:
        ledger.write(f"{context.task_id} {context.attempt}\\n")
    while context.attempt == 1 and not (HERE / "gate").exists():
        time.sleep(0.01)
    return {"attempt": context.attempt}

@task("stoppable")
def stoppable(context: RunContext) -> str:
    (HERE / "begun").touch()
    while not context.should_stop:
        time.sleep(0.01)
    return "stopped in order"

@task("stubborn")
async def stubborn() -> None:
    import asyncio
    (HERE / "begun").touch()
    await asyncio.sleep(600)

@task("block")
async def block() -> None:
    time.sleep(600)
"""


class Stage:
    """A directory in which service processes on one backend run the handlers above."""

    def __init__(self, backend: Backend, directory: Path, stack: ExitStack) -> None:
        self._backend = backend
        self._directory = directory
        self._stack = stack

    def process(self, name: str, **environment: str) -> ServiceProcess:
        """A service process, not started yet."""
        directory = self._directory / name
        directory.mkdir()
        (directory / "handlers.py").write_text(HANDLERS)
        environment |= self._backend.environment()
        environment |= {"TASK_MODULES": "handlers", "HERE": str(self._directory)}
        return self._stack.enter_context(service_process(directory, environment))

    def client(self, service: ServiceProcess) -> httpx.Client:
        """Start a service process."""
        return self._stack.enter_context(service.start())

    def has_begun(self, task: dict[str, Any], attempt: int = 1) -> bool:
        """Tell whether an attempt has begun."""
        ledger = self._directory / "ledger"
        return ledger.exists() and f"{task['task_id']} {attempt}\n" in ledger.read_text()

    def open_gate(self) -> None:
        """Let first attempts end."""
        (self._directory / "gate").touch()


@pytest.fixture
def stage(backend: Backend, tmp_path: Path) -> Iterator[Stage]:
    """Where service processes run together."""
    with ExitStack() as stack:
        yield Stage(backend, tmp_path, stack)


def history(store: Backend, task_id: str) -> list[tuple[int, str, Any]]:
    """The attempts at a task that have ended: number, outcome, result."""
    with store.database() as database, database.reading() as connection:
        rows = connection.execute(
            select(task_runs)
            .where(task_runs.c.task_id == task_id)
            .order_by(task_runs.c.attempt, task_runs.c.outcome)
        ).all()
    return [(row.attempt, row.outcome, row.result) for row in rows]


@pytest.mark.slow
def test_runs_of_a_killed_instance_go_where_on_crash_says(stage: Stage, backend: Backend) -> None:
    doomed, other = stage.process("doomed"), stage.process("other")
    client = stage.client(doomed)
    wishes: list[dict[str, Any]] = [
        {},
        {"max_attempts": 2},
        {"max_attempts": 2, "on_crash": "fail"},
        {"max_attempts": 2, "on_crash": "hold"},
    ]
    tasks = [post(client, name="wait", run_at=later(0), **wish) for wish in wishes]
    wait_until(lambda: all(stage.has_begun(task) for task in tasks))
    living = stage.client(other)
    doomed.kill()
    ended = [finished(living, task["task_id"]) for task in tasks]
    assert [task["status"] for task in ended] == ["failed", "done", "failed", "unknown"]
    assert [task["attempt"] for task in ended] == [1, 2, 1, 1]
    assert ended[1]["result"] == {"attempt": 2}
    assert all(ended[place]["result"].startswith("interrupted: ") for place in (0, 2, 3))
    for task in ended:
        entries = [outcome for _, outcome, _ in history(backend, task["task_id"])]
        assert entries == (["crashed", "done"] if task["attempt"] == 2 else ["crashed"])


@pytest.mark.slow
def test_instance_that_was_paused_beyond_its_lease_writes_nothing_over_the_newer_run(
    stage: Stage, backend: Backend
) -> None:
    paused, other = stage.process("paused"), stage.process("other")
    client = stage.client(paused)
    repeated = post(client, name="wait", run_at=later(0), max_attempts=2)
    once = post(client, name="wait", run_at=later(0))
    wait_until(lambda: stage.has_begun(repeated) and stage.has_begun(once))
    living = stage.client(other)
    paused.process.send_signal(signal.SIGSTOP)
    ended = [finished(living, task["task_id"]) for task in (repeated, once)]
    assert [task["status"] for task in ended] == ["done", "failed"]
    assert ended[0]["result"] == {"attempt": 2}
    stage.open_gate()
    paused.process.send_signal(signal.SIGCONT)
    lost = "outcome = 'lost' AND attempt = 1"
    wait_until(lambda: len(backend.sql(f"SELECT 1 FROM task_runs WHERE {lost}")) == 2)  # noqa: S608
    for task in ended:
        assert living.get(f"/tasks/{task['task_id']}").json() == task
    assert history(backend, once["task_id"]) == [(1, "lost", {"attempt": 1})]
    wait_until(lambda: "this instance was declared dead as" in paused.output())
    # It takes part again.
    again = post(client, name="wait", run_at=later(0))
    other.stop()
    assert finished(client, again["task_id"])["status"] == "done"


@pytest.mark.slow
def test_handlers_are_asked_to_stop_when_the_signal_arrives(
    stage: Stage, backend: Backend, tmp_path: Path
) -> None:
    service = stage.process("one", SHUTDOWN_GRACE="60")
    client = stage.client(service)
    task = post(client, name="stoppable", run_at=later(0))
    wait_until((tmp_path / "begun").exists)
    assert service.stop() == 0 or service.process.returncode == -signal.SIGTERM
    row = backend.row(task["task_id"])
    assert (row["status"], row["result"]) == ("done", "stopped in order")
    assert "stopping: waiting up to 60 s for 1 running tasks" in service.output()


@pytest.mark.slow
@only_postgresql
def test_second_signal_ends_the_grace_period(
    stage: Stage, backend: Backend, tmp_path: Path
) -> None:
    service = stage.process("one", SHUTDOWN_GRACE="600")
    client = stage.client(service)
    once = post(client, name="stubborn", run_at=later(0))
    repeated = post(client, name="stubborn", run_at=later(0), max_attempts=2)
    wait_until(lambda: backend.count("status = 'running'") == 2)
    wait_until((tmp_path / "begun").exists)
    service.process.terminate()
    wait_until(lambda: "stopping: waiting up to 600 s" in service.output())
    service.process.terminate()
    service.process.wait(timeout=20)
    rows = [backend.row(task["task_id"]) for task in (once, repeated)]
    assert [(row["status"], row["attempt"]) for row in rows] == [("failed", 1), ("scheduled", 1)]
    reason = "interrupted: the service stopped before it finished"
    for row in rows:
        assert history(backend, row["task_id"]) == [(1, "interrupted", reason)]
    assert "Traceback" not in service.output()


@pytest.mark.slow
@only_postgresql
def test_process_whose_loop_hangs_ends_itself_and_says_where(
    stage: Stage, backend: Backend
) -> None:
    service, other = stage.process("hanging", LOOP_STALL_SECONDS="1"), stage.process("other")
    task = post(stage.client(service), name="block", run_at=later(0))
    wait_until(lambda: backend.row(task["task_id"])["status"] == "running")
    assert service.process.wait(timeout=20) == 70
    assert "the event loop has not turned for" in service.output()
    assert "time.sleep(600)" in service.output()
    assert finished(stage.client(other), task["task_id"])["status"] == "failed"


# ------------------------------------------------------------------------- step by step


def test_row_that_cannot_be_rescued_does_not_hold_up_the_others(
    store: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    names = ["sound", "cursed", "sound", "sound"]
    tasks = [store.insert_task(name, status="running") for name in names]
    with store.database() as database:
        hopeless: set[str] = set()
        with refused(store, "NEW.name = 'cursed'"):
            assert asyncio.run(rescue_orphans(database, no_lock, hopeless)) == 3
            assert asyncio.run(rescue_orphans(database, no_lock, hopeless)) == 0
        statuses = [store.row(task_id)["status"] for task_id in tasks]
        assert statuses == ["failed", "running", "failed", "failed"]
        assert capfd.readouterr().err.count(f"task {tasks[1]} cannot be rescued") == 1
        assert asyncio.run(rescue_orphans(database, no_lock, hopeless)) == 1


@only_postgresql
def test_row_that_somebody_holds_locked_is_left_for_later(store: Backend) -> None:
    held, free = (store.insert_task(status="running") for _ in range(2))
    with store.database() as database, store.database() as other:
        with other.writing() as connection:
            connection.execute(
                text("SELECT 1 FROM scheduled_tasks WHERE task_id = :id FOR UPDATE"), {"id": held}
            )
            assert asyncio.run(rescue_orphans(database, no_lock)) == 1
        assert [store.row(one)["status"] for one in (held, free)] == ["running", "failed"]
        assert asyncio.run(rescue_orphans(database, no_lock)) == 1


def test_more_runs_than_one_statement_takes_are_rescued_once_by_two(store: Backend) -> None:
    store.insert_tasks(1_200)
    store.sql(
        "UPDATE scheduled_tasks SET status = 'running', attempt = 1, claim_token = task_id, "
        "started_at = run_at, max_attempts = 2"
    )

    async def scenario() -> None:
        with store.database() as one, store.database() as two:
            assert (
                sum(
                    await asyncio.gather(rescue_orphans(one, no_lock), rescue_orphans(two, no_lock))
                )
                == 1_200
            )

    asyncio.run(scenario())
    assert store.count("status = 'scheduled' AND attempt = 1 AND claim_token IS NULL") == 1_200
    [entries] = store.sql("SELECT count(*) AS n FROM task_runs WHERE outcome = 'crashed'")
    assert entries["n"] == 1_200


class Rescuer:
    """A rescue whose steps the test calls, beside a bench."""

    def __init__(self, one: Bench) -> None:
        self.now = 0.0
        self.released: list[tuple[str, str]] = []
        database = Database(one.database.engine)
        self.member = Member(one.instance_id, own_identity())
        self.heartbeat = Heartbeat(database, self.member, 15, new_token, lambda: None)
        self.rescue = Rescue(
            one.database,
            self.heartbeat,
            one.runner.under_way,
            15,
            lambda: self.now,
            one.caller.cut_off,
            lambda *lock: self.released.append(lock),
        )


def on_bench(
    store: Backend,
    registry: HandlerRegistry,
    scenario: Callable[[Bench, Rescuer], Coroutine[Any, Any, None]],
) -> None:
    """Run a scenario with `run_task` and a rescue that nobody else starts."""

    async def run() -> None:
        async with bench(store, registry) as one:
            await scenario(one, Rescuer(one))

    asyncio.run(run())


def test_claim_that_nobody_knows_of_is_given_back_after_two_looks(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe")(lambda: "fine")
    task_id = store.insert_task(run_at=later(-60))
    before = store.row(task_id)

    async def scenario(one: Bench, rescuer: Rescuer) -> None:
        # Carried out by the database long after whoever asked had given up.
        request = ClaimRequest(task_id, new_token())
        await one.database.write(claim, one.instance_id, [request])
        assert await rescuer.rescue.reconcile() == 0
        assert store.row(task_id)["status"] == "running"
        rescuer.now = 6.0
        assert rescuer.released == []
        await rescuer.rescue.step()
        assert rescuer.released == [(task_id, request.token)]
        row = store.row(task_id)
        assert row | {"updated_at": None} == before | {"updated_at": None}
        assert history(store, task_id) == []
        await one.runner.run_task(task_id)

    on_bench(store, registry, scenario)
    assert (store.row(task_id)["status"], store.row(task_id)["attempt"]) == ("done", 1)


def test_claim_that_is_carried_out_again_after_its_record_is_rescued(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-60), max_attempts=3)
    member = Member(new_token(), ELSEWHERE)
    requests = [ClaimRequest(task_id, new_token())]
    with store.database() as database:
        with database.writing() as connection:
            instances.register(connection, member, InstanceState.Alive)
        # The answer to the first one was lost; its repetition came through.
        with database.writing() as connection:
            [run] = claim(connection, member.instance_id, requests, repeated=True)
        assert isinstance(run, Claim)
        with database.writing() as connection:
            cut_off = decide(CutOff("why"), run.attempt, run.max_attempts, run.on_crash)
            assert record(connection, [Record(run, cut_off)]) == [True]
        # Only now does the database come round to the first one, and the instance dies.
        with database.writing() as connection:
            claim(connection, member.instance_id, requests)
            instances.leave(connection, member.instance_id)
        assert store.row(task_id)["status"] == "running"
        freed: list[tuple[str, str]] = []
        assert asyncio.run(rescue_orphans(database, lambda *lock: freed.append(lock))) == 1
    assert store.row(task_id)["status"] == "scheduled"
    assert history(store, task_id) == [(1, "interrupted", "why")]
    # The lock is the dead one's: nobody need wait for it to expire.
    assert freed == [(task_id, requests[0].token)]


def test_run_that_is_under_way_is_known(store: Backend, registry: HandlerRegistry) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    @registry.task("probe")
    async def probe() -> str:
        begun.set()
        await gate.wait()
        return "fine"

    task_id = store.insert_task(run_at=later(-60))

    async def scenario(one: Bench, rescuer: Rescuer) -> None:
        run = asyncio.ensure_future(one.runner.run_task(task_id))
        await begun.wait()
        for _ in range(3):
            assert await rescuer.rescue.reconcile() == 0
        gate.set()
        await run

    on_bench(store, registry, scenario)
    assert store.row(task_id)["result"] == "fine"


def test_result_that_cannot_be_stored_fails_the_task(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    registry.task("probe")(lambda: "fine")
    task_id = store.insert_task(run_at=later(-60))

    async def scenario(one: Bench, _: Rescuer) -> None:
        with refused(store, "NEW.status = 'done'"):
            await one.runner.run_task(task_id)

    on_bench(store, registry, scenario)
    row = store.row(task_id)
    assert row["status"] == "failed"
    assert row["result"].startswith("it ended, but its result could not be stored")
    assert f"task {task_id}: its result could not be stored" in capfd.readouterr().err


def test_run_whose_end_could_not_be_stored_at_all_does_not_look_as_if_it_ran_for_ever(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe")(lambda: "fine")
    task_id = store.insert_task(run_at=later(-60), max_attempts=2, on_crash="hold")

    async def scenario(one: Bench, rescuer: Rescuer) -> None:
        with refused(store, "NEW.status IN ('done', 'failed')"), pytest.raises(DBAPIError):
            await one.runner.run_task(task_id)
        assert await rescuer.rescue.reconcile() == 0
        assert await rescuer.rescue.reconcile() == 1
        assert await rescuer.rescue.reconcile() == 0

    on_bench(store, registry, scenario)
    row = store.row(task_id)
    assert row["status"] == "unknown"
    assert row["result"].startswith("interrupted: how it ended could not be stored")


def test_claim_of_an_instance_that_may_count_as_dead_is_given_back_unused(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []
    registry.task("probe")(lambda: calls.append("called"))
    task_id = store.insert_task(run_at=later(-60))

    async def scenario() -> None:
        async with bench(store, registry, holds_lease=lambda _: False) as one:
            await one.runner.run_task(task_id)

    asyncio.run(scenario())
    assert (store.row(task_id)["status"], store.row(task_id)["attempt"]) == ("scheduled", 0)
    assert calls == []


def test_lease_ends_with_the_time_since_the_last_beat_was_sent(store: Backend) -> None:
    now = 100.0

    def slowly(*_: Any) -> None:
        nonlocal now
        now += 5

    with store.database() as database:
        member = Member(new_token(), own_identity())
        with database.writing() as connection:
            instances.register(connection, member, InstanceState.Alive)
        heart = Heartbeat(database, member, 15, new_token, lambda: None, lambda: now)
        now = 111.9
        assert heart.holds_lease(member.instance_id)
        now = 112.0
        assert not heart.holds_lease(member.instance_id)
        event.listen(database.engine, "commit", slowly)
        heart.beat()
        event.remove(database.engine, "commit", slowly)
        assert heart.silent_for() == 5
        assert heart.holds_lease(member.instance_id)
        now = 130.0
        assert not heart.holds_lease(member.instance_id)
        store.sql("UPDATE instances SET state = 'dead'")
        heart.beat()
        assert heart.holds_lease(heart.instance_id)
        assert not heart.holds_lease(member.instance_id)


def test_call_that_is_cut_off_before_its_thread_is_free_is_given_back(
    store: Backend, registry: HandlerRegistry
) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    @registry.task("probe")
    def probe() -> None:
        begun.release()
        gate.wait(20)

    threads = 16
    task_ids = [store.insert_task(run_at=later(-60)) for _ in range(threads + 1)]

    async def scenario(one: Bench, _: Rescuer) -> None:
        runs = [asyncio.ensure_future(one.runner.run_task(task_id)) for task_id in task_ids]
        for _number in range(threads):
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        one.caller.cut_off("why")
        gate.set()
        await asyncio.gather(*runs)

    on_bench(store, registry, scenario)
    rows = [store.row(task_id) for task_id in task_ids]
    assert sorted((row["status"], row["attempt"]) for row in rows) == (
        [("failed", 1)] * threads + [("scheduled", 0)]
    )
    assert not begun.acquire(timeout=0.2), "what was given back was called all the same"


@pytest.mark.parametrize("errors", [[AWAY], [RuntimeError("a mistake of ours"), AWAY]])
def test_rescue_stops_at_an_outage_wherever_it_comes(
    store: Backend, errors: list[Exception]
) -> None:
    task_ids = [store.insert_task(status="running") for _ in range(2)]
    coming = list(errors)

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if coming and "JOIN scheduled_tasks AS task" in statement:
            raise coming.pop(0)

    with store.database() as database:
        event.listen(database.engine, "before_cursor_execute", fail)
        with pytest.raises(DatabaseUnavailable):
            asyncio.run(rescue_orphans(database, no_lock))
        assert {store.row(task_id)["status"] for task_id in task_ids} == {"running"}
        assert asyncio.run(rescue_orphans(database, no_lock)) == 2


def test_late_result_of_a_task_that_is_gone_is_forgotten(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe")
    def probe() -> str:
        store.sql("DELETE FROM scheduled_tasks")
        return "too late"

    task_id = store.insert_task(run_at=later(-60))

    async def scenario(one: Bench, _: Rescuer) -> None:
        await one.runner.run_task(task_id)

    on_bench(store, registry, scenario)
    assert history(store, task_id) == []


def test_instance_that_was_declared_dead_cuts_off_what_may_be_repeated(
    store: Backend, registry: HandlerRegistry
) -> None:
    gate = asyncio.Event()
    begun: asyncio.Queue[str] = asyncio.Queue()

    @registry.task("probe")
    async def probe(context: RunContext) -> str:
        begun.put_nowait(context.task_id)
        await gate.wait()
        return "fine"

    async def scenario(one: Bench, rescuer: Rescuer) -> None:
        async def claim_and_begin(task_id: str) -> asyncio.Future[None]:
            run = asyncio.ensure_future(one.runner.run_task(task_id))
            assert await begun.get() == task_id
            return run

        once, repeated, fresh = (
            store.insert_task(run_at=later(-60), max_attempts=number) for number in (1, 2, 2)
        )
        runs = [await claim_and_begin(task_id) for task_id in (once, repeated)]
        rescuer.rescue.look_at_own_lease()
        store.sql("UPDATE instances SET state = 'dead'")
        rescuer.heartbeat.note_joined()
        rescuer.heartbeat.beat()
        one.instance_id = rescuer.heartbeat.instance_id
        runs.append(await claim_and_begin(fresh))
        rescuer.rescue.look_at_own_lease()
        rescuer.rescue.look_at_own_lease()
        await runs[1]
        gate.set()
        await asyncio.gather(*runs)
        reason = "interrupted: the other instances had taken this one for dead"
        assert history(store, repeated) == [(1, "interrupted", reason)]
        assert history(store, once) == [(1, "done", "fine")]
        assert history(store, fresh) == [(1, "done", "fine")]

    on_bench(store, registry, scenario)


# ------------------------------------------------------------------------------- outages


@pytest.mark.slow
@only_postgresql
def test_outage_longer_than_the_lease_cuts_off_what_may_be_repeated_and_kills_nobody(
    store: Backend, registry: HandlerRegistry
) -> None:
    begun, gate = threading.Semaphore(0), asyncio.Event()

    @registry.task("probe")
    async def probe(context: RunContext) -> str:
        begun.release()
        if context.attempt == 1:
            await gate.wait()
        return f"attempt {context.attempt}"

    with (
        Proxy.before(store.db_url) as proxy,
        running(Backend(proxy.url_for(store.db_url)), registry) as client,
    ):
        former = services_of(client).heartbeat.instance_id
        once = post(client, run_at=later(0))
        repeated = post(client, run_at=later(0), max_attempts=2)
        assert begun.acquire(timeout=10)
        assert begun.acquire(timeout=10)
        with running(store, registry) as observer:
            # The whole database is away, for both.
            with failing(services_of(observer).database.engine, AWAY):
                proxy.cut()
                wait_until(lambda: services_of(client).heartbeat.silent_for() > 2.6)
                proxy.heal()
                wait_until(lambda: services_of(client).heartbeat.silent_for() < 1)
            ended = finished(client, repeated["task_id"])
            assert (ended["status"], ended["result"]) == ("done", "attempt 2")
            assert [entry[:2] for entry in history(store, repeated["task_id"])] == [
                (1, "interrupted"),
                (2, "done"),
            ]
        client.portal.call(gate.set)  # type: ignore[union-attr]
        assert finished(client, once["task_id"])["result"] == "attempt 1"
        assert services_of(client).heartbeat.instance_id == former


@contextmanager
def failing(engine: Engine, error: Exception) -> Iterator[None]:
    """Let every statement of an engine fail."""

    def fail(*_: Any) -> None:
        raise error

    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", fail)


def test_rescue_outlives_outages_and_mistakes(store: Backend) -> None:
    with running(store) as client, logged() as log:
        engine = services_of(client).database.engine
        with failing(engine, AWAY):
            wait_until(lambda: log.count("the database is away"))
        task_id = store.insert_task(status="running")
        wait_until(lambda: store.row(task_id)["status"] == "failed")
        with failing(engine, RuntimeError("a mistake of ours")):
            wait_until(lambda: log.count("a look at the other instances failed"))
        task_id = store.insert_task(status="running")
        wait_until(lambda: store.row(task_id)["status"] == "failed")


# --------------------------------------------------------------------- the stop in order


def test_health_says_at_once_that_the_service_stops(
    store: Backend, registry: HandlerRegistry
) -> None:
    with running(store, registry) as client:
        assert client.get("/readyz").status_code == 200
        shutdown = services_of(client).shutdown
        client.portal.call(shutdown.note_signal)  # type: ignore[union-attr]
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["scheduler"]["stopping"]) == (503, True)
        assert client.get("/readyz").status_code == 503
        # What is still accepted is kept for whoever comes after.
        task = post(client, run_at=later(0))
        client.portal.call(shutdown.note_signal)  # type: ignore[union-attr]
    assert store.row(task["task_id"])["status"] == "scheduled"
