"""Start-up after a time of absence: what becomes of missed tasks and of runs that were cut off."""

import asyncio
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import event

from job_scheduler.constants import InstanceState, RecoverPastTasks, TaskStatus
from job_scheduler.core import instances
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.core.overdue import BATCH
from job_scheduler.core.recovery import Rules, elect, recover, start_up
from job_scheduler.core.rescue import rescue_orphans
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.exceptions import StartError
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from job_scheduler.process import ProcessIdentity, own_identity
from tests.support.app import (
    Backend,
    finished,
    later,
    no_lock,
    post,
    running,
    service_process,
    statements,
)
from tests.support.services import wait_until

POLICIES = list(RecoverPastTasks)
ELSEWHERE = ProcessIdentity("another-host", 1, "long ago")
GONE = ProcessIdentity(own_identity().host, own_identity().pid, "before this one")

HANDLERS = """
import time
from job_scheduler import task

@task("hang")
def hang() -> None:
    time.sleep(600)

@task("note")
def note(file: str) -> str:
    with open(file, "a") as notes:
        notes.write("ran\\n")
    return "ran"
"""


def add_instance(
    database: Database, process: ProcessIdentity, state: InstanceState = InstanceState.Alive
) -> str:
    """Register an instance."""
    instance_id = str(uuid4())
    with database.writing() as connection:
        instances.register(connection, Member(instance_id, process), state)
    return instance_id


def state_of(store: Backend, instance_id: str) -> str:
    """The state of an instance."""
    [row] = store.sql("SELECT state FROM instances WHERE instance_id = :id", id=instance_id)
    return str(row["state"])


def untouched(row: dict[str, Any]) -> bool:
    """Whether a task is as it was created."""
    return (row["status"], row["result"], row["missed_at"], row["attempt"]) == (
        "scheduled",
        None,
        None,
        0,
    )


# -------------------------------------------------------------------- the policy


def test_fail_marks_past_due_tasks_failed_and_says_why(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []
    registry.task("probe")(lambda: calls.append("called"))
    with store.database() as database:
        former = add_instance(database, GONE)
    store.sql("UPDATE instances SET heartbeat_at = :at", at=later(-7200)[:19])
    task_id = store.insert_task(run_at=later(-3600))
    upcoming = store.insert_task(run_at=later(3600))

    with running(store, registry, recover_past_tasks="fail") as client:
        task = client.get(f"/tasks/{task_id}").json()
    reason = re.fullmatch(
        r"missed: the service was down from (\S+Z) to (\S+Z)", str(task["result"])
    )
    assert task["status"] == "failed"
    assert reason, task["result"]
    begin, end = (datetime.fromisoformat(instant) for instant in reason.groups())
    assert 7190 < (end - begin).total_seconds() < 7260
    assert task["finished_at"] is not None
    assert task["started_at"] is None
    assert untouched(store.row(upcoming))
    assert state_of(store, former) == "dead"
    assert calls == []


def test_fail_without_a_former_instance_names_the_start_alone(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-3600))
    with running(store, recover_past_tasks="fail") as client:
        task = client.get(f"/tasks/{task_id}").json()
    assert task["status"] == "failed"
    assert re.fullmatch(r"missed: the service was down until \S+Z", task["result"])
    assert "from" not in task["result"]


def test_skip_sets_past_due_tasks_aside_unchanged_and_never_runs_them(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []

    @registry.task("probe")
    def probe(label: str = "overdue") -> None:
        calls.append(label)

    task_id = store.insert_task(run_at=later(-3600))
    upcoming = store.insert_task(run_at=later(3600))
    for _ in range(2):  # a second start finds it set aside already
        with running(store, registry, recover_past_tasks="skip") as client:
            task = client.get(f"/tasks/{task_id}").json()
            assert (task["status"], task["result"], task["attempt"]) == ("scheduled", None, 0)
            assert task["missed_at"] is not None
            fresh = post(client, run_at=later(0), payload={"label": "fresh"})
            finished(client, fresh["task_id"])
    with running(store, registry, recover_past_tasks="run") as client:
        assert client.get(f"/tasks/{task_id}").json()["missed_at"] == task["missed_at"]
        fresh = post(client, run_at=later(0), payload={"label": "fresh"})
        finished(client, fresh["task_id"])
    assert untouched(store.row(upcoming))
    assert calls == ["fresh"] * 3


def test_run_schedules_past_due_tasks_again(backend: Backend, registry: HandlerRegistry) -> None:
    calls = 0

    @registry.task("probe")
    async def probe() -> str:
        nonlocal calls
        calls += 1
        return "late, but run"

    overdue = [backend.insert_task(run_at=later(-seconds)) for seconds in (1, 60, 86_400)]
    upcoming = backend.insert_task(run_at=later(3600))
    with running(backend, registry, recover_past_tasks="run") as client:
        tasks = [finished(client, task_id) for task_id in overdue]
    assert {(task["status"], task["result"]) for task in tasks} == {("done", "late, but run")}
    assert untouched(backend.row(upcoming))
    assert calls == len(overdue)


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_to_do_is_fine(backend: Backend, policy: RecoverPastTasks) -> None:
    with running(backend, recover_past_tasks=policy) as client:
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/tasks").json() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_leaves_what_is_no_longer_scheduled_alone(
    store: Backend, policy: RecoverPastTasks
) -> None:
    ended = [
        store.insert_task(run_at=later(-60), status=status, result='"as it was"')
        for status in ("done", "failed")
    ]
    before = [store.row(task_id) for task_id in ended]
    with running(store, recover_past_tasks=policy):
        pass
    assert [store.row(task_id) for task_id in ended] == before


@pytest.mark.parametrize("policy", POLICIES)
def test_retry_time_decides_whether_a_task_was_missed(
    store: Backend, policy: RecoverPastTasks
) -> None:
    task_id = store.insert_task(run_at=later(-60), retry_at=later(3600))
    with running(store, recover_past_tasks=policy):
        pass
    assert untouched(store.row(task_id))


@pytest.mark.parametrize("policy", POLICIES)
def test_recovery_of_many_tasks_is_set_based(
    store: Backend, policy: RecoverPastTasks, capfd: pytest.CaptureFixture[str]
) -> None:
    number = 5_000
    store.insert_tasks(number, run_at=later(-60))
    store.insert_tasks(10, run_at=later(3600))
    loaded = 0

    def count_rows(_connection: Any, cursor: Any, *_: Any) -> None:
        nonlocal loaded
        loaded += cursor.description is not None and "task_id" in str(cursor.description)

    configure_logging("INFO")
    with store.database() as database:
        instance_id = add_instance(database, own_identity(), InstanceState.Recovering)
        event.listen(database.engine, "after_cursor_execute", count_rows)
        with statements(database.engine) as executed:
            treated = asyncio.run(recover(database, instance_id, Rules(policy)))
    changed = store.count("status = 'failed' OR missed_at IS NOT NULL")
    assert treated == number
    assert changed == number  # under `run` they are set aside to be released at a bounded rate
    assert len(executed) < 40
    # One looks for recurring tasks. What has failed is asked for its hooks, a batch at a time.
    assert loaded == 1 + (number / BATCH + 1 if policy is RecoverPastTasks.Fail else 0)
    log = capfd.readouterr().err
    assert f"recovery ({policy.value}): {number} tasks were overdue at the start" in log
    assert "overdue tasks so far" in log


class StubbornScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """Refuses the jobs of one instant."""

    refused: datetime

    def add_job(self, func: Callable[..., Any], trigger: Any, **options: Any) -> Any:
        """Raise for the instant (the trigger's own time is by this machine's clock)."""
        if options["args"] == [self.refused]:
            raise RuntimeError("this job is not wanted")
        return super().add_job(func, trigger, **options)


@pytest.mark.parametrize("policy", POLICIES)
def test_scheduler_failure_on_one_task_does_not_stop_the_others(
    store: Backend,
    registry: HandlerRegistry,
    policy: RecoverPastTasks,
    capfd: pytest.CaptureFixture[str],
) -> None:
    @registry.task("probe")
    async def probe() -> str:
        return "run"

    upcoming = [store.insert_task(run_at=later(5 + number / 10)) for number in range(5)]
    bad = upcoming[2]
    overdue = store.insert_task(run_at=later(-60))
    due = store.row(bad)["run_at"]

    class Scheduler(StubbornScheduler):
        refused = due.replace(microsecond=0) + (
            datetime.resolution * (-(-due.microsecond // 1000) * 1000)
        )

    with running(store, registry, scheduler=Scheduler, recover_past_tasks=policy) as client:
        ended = [finished(client, task_id) for task_id in upcoming if task_id != bad]
        assert {task["status"] for task in ended} == {"done"}
        # Its instant past, a sweep hands it over without APScheduler.
        assert finished(client, bad)["status"] == "done"
        if policy is RecoverPastTasks.Run:
            assert finished(client, overdue)["status"] == "done"
    assert f"task {bad} could not be registered" in capfd.readouterr().err
    expected = {"run": "done", "fail": "failed", "skip": "scheduled"}[policy.value]
    assert store.row(overdue)["status"] == expected


# ------------------------------------------------------------------ who recovers


def test_newcomer_joins_living_instances_and_recovers_nothing(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(store, registry) as first:
        # Overdue, and still not missed: whoever lives is about to run it.
        task_id = store.insert_task(run_at=later(-0.1))
        with running(store, registry, recover_past_tasks="fail") as second:
            assert "joined other instances: nothing to recover" in capfd.readouterr().err
            assert finished(second, task_id)["status"] == "done"
        assert first.get("/health").json()["status"] == "ok"
    assert {row["state"] for row in store.sql("SELECT state FROM instances")} == {"dead"}


def test_instance_of_another_host_whose_heartbeat_advances_is_joined(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-60))

    async def scenario() -> bool:
        with store.database() as database:
            former = add_instance(database, ELSEWHERE)
            mine = Member(add_instance(database, own_identity(), InstanceState.Starting), GONE)
            rules = Rules(RecoverPastTasks.Fail)
            starting = asyncio.create_task(start_up(database, mine, rules, 30))
            await asyncio.sleep(0.3)
            assert not starting.done()
            with database.writing() as connection:
                instances.beat(connection, former)
            await asyncio.wait_for(starting, 10)
            return state_of(store, mine.instance_id) == state_of(store, former) == "alive"

    assert asyncio.run(scenario())
    assert untouched(store.row(task_id))


def test_instance_that_is_taken_for_dead_while_it_starts_decides_nothing(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-60))
    with store.database() as database, store.database() as own:
        mine = Member(add_instance(database, own_identity(), InstanceState.Starting), GONE)
        heartbeat = Heartbeat(own, mine, 15, new_token, lambda: None)
        heartbeat.beat()
        store.sql("UPDATE instances SET state = 'dead'")
        heartbeat.beat()
        assert state_of(store, heartbeat.instance_id) == "starting"
        with pytest.raises(StartError, match="Start it again"):
            asyncio.run(start_up(database, mine, Rules(RecoverPastTasks.Fail), 2))
        assert state_of(store, heartbeat.instance_id) != "alive"
    assert untouched(store.row(task_id))


def test_instance_that_is_silent_for_a_lease_is_dead(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(-60))
    with store.database() as database:
        former = add_instance(database, ELSEWHERE)
    with running(store, lease_seconds=2, recover_past_tasks="fail") as client:
        task = client.get(f"/tasks/{task_id}").json()
    assert task["status"] == "failed"
    assert state_of(store, former) == "dead"


@pytest.mark.parametrize("policy", [RecoverPastTasks.Fail, RecoverPastTasks.Skip])
def test_of_several_that_start_at_once_one_recovers(
    store: Backend, policy: RecoverPastTasks, capfd: pytest.CaptureFixture[str]
) -> None:
    store.insert_tasks(2_500, run_at=later(-60))

    async def scenario() -> None:
        with store.database() as database:
            newcomers = [
                Member(add_instance(database, own_identity(), InstanceState.Starting), process)
                for process in [own_identity()] * 4
            ]
            starts = (start_up(database, newcomer, Rules(policy), 2) for newcomer in newcomers)
            await asyncio.wait_for(asyncio.gather(*starts), 30)
            assert {state_of(store, one.instance_id) for one in newcomers} == {"alive"}

    configure_logging("INFO")
    asyncio.run(scenario())
    assert store.count("status = 'failed' OR missed_at IS NOT NULL") == 2_500
    log = capfd.readouterr().err
    assert log.count(f"recovery ({policy.value}): 2500 tasks were overdue") == 1
    assert log.count("joined other instances") == 3


def test_nobody_joins_an_instance_that_is_still_recovering(store: Backend) -> None:
    with store.database() as database:
        recovering = add_instance(database, own_identity(), InstanceState.Recovering)
        mine = Member(
            add_instance(database, own_identity(), InstanceState.Starting), own_identity()
        )
        watch = Watch(own_identity(), 2, lambda: 0.0)
        with database.writing() as connection:
            assert elect(connection, mine, watch) is InstanceState.Starting
        with database.writing() as connection:
            former, state = [InstanceState.Recovering], InstanceState.Alive
            assert instances.move(connection, recovering, former, state)
            assert not instances.move(connection, recovering, former, state)
        with database.writing() as connection:
            assert elect(connection, mine, watch) is InstanceState.Alive
    assert state_of(store, mine.instance_id) == "alive"


def test_start_forgets_instances_that_died_long_ago(store: Backend) -> None:
    with store.database() as database:
        recent, old = (add_instance(database, GONE, InstanceState.Dead) for _ in range(2))
    day = 86_400
    store.sql(
        "UPDATE instances SET heartbeat_at = :at WHERE instance_id = :id",
        at=later(-8 * day)[:26],
        id=old,
    )
    with running(store):
        kept = {str(row["instance_id"]) for row in store.sql("SELECT instance_id FROM instances")}
    assert recent in kept
    assert old not in kept


# ------------------------------------------------------------ runs that were cut off


def test_running_tasks_of_dead_instances_fail_and_those_of_living_ones_go_on(
    store: Backend,
) -> None:
    with store.database() as database:
        dead = add_instance(database, GONE, InstanceState.Dead)
        alive = add_instance(database, own_identity())
        cut_off = [
            store.insert_task(run_at=later(-60), status="running", instance_id=dead)
            for _ in range(3)
        ]
        cut_off.append(store.insert_task(run_at=later(-60), status="running"))
        others = [
            store.insert_task(run_at=later(-60), status="running", instance_id=alive),
            store.insert_task(run_at=later(-60), instance_id=dead),
        ]
        before = [store.row(task_id) for task_id in others]
        assert asyncio.run(rescue_orphans(database, no_lock)) == 4
        assert asyncio.run(rescue_orphans(database, no_lock)) == 0
    for task_id in cut_off:
        row = store.row(task_id)
        assert row["status"] == TaskStatus.Failed
        assert row["result"].startswith("interrupted: the process that ran it ended")
        assert row["finished_at"] is not None
    assert [store.row(task_id) for task_id in others] == before


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_restart_after_kill_applies_the_policy_at_once(
    store: Backend, policy: RecoverPastTasks, tmp_path: Path
) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    environment = store.environment() | {
        "TASK_MODULES": "handlers",
        "RECOVER_PAST_TASKS": policy.value,
        # Whoever waited for the lease to end would not be ready in time.
        "LEASE_SECONDS": "600",
    }

    def payload(name: str) -> dict[str, str]:
        return {"file": str(tmp_path / name)}

    with service_process(tmp_path, environment) as service:
        with service.start() as client:
            cut_off = post(client, name="hang", run_at=later(0))["task_id"]
            wait_until(lambda: store.row(cut_off)["status"] == "running")
            overdue = post(client, name="note", run_at=later(0.8), payload=payload("overdue"))
            # Far enough ahead for the slowest restart.
            pending = post(client, name="note", run_at=later(10), payload=payload("pending"))
            service.kill()
        wait_until(lambda: later(0) > later_than(overdue["run_at"]))
        with service.start() as client:
            task = client.get(f"/tasks/{cut_off}").json()
            assert task["status"] == "failed"
            assert task["result"].startswith("interrupted: the process that ran it ended")

            task = client.get(f"/tasks/{overdue['task_id']}").json()
            if policy is RecoverPastTasks.Fail:
                assert task["status"] == "failed"
                assert task["result"].startswith("missed: the service was down from ")
            elif policy is RecoverPastTasks.Skip:
                assert (task["status"], task["result"]) == ("scheduled", None)
                assert task["missed_at"] is not None
            else:
                assert finished(client, overdue["task_id"])["status"] == "done"

            ended = finished(client, pending["task_id"], timeout=30)
            assert (ended["status"], ended["attempt"]) == ("done", 1)
            assert ended["started_at"] >= ended["run_at"]
        assert (tmp_path / "pending").read_text() == "ran\n"
        assert (tmp_path / "overdue").exists() is (policy is RecoverPastTasks.Run)


def later_than(instant: str) -> str:
    """An instant of the API in the form of `later`."""
    return instant.replace("T", " ").replace("Z", "+00:00")
