"""Instances: the heartbeat, who takes part, and who a process is."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from job_scheduler import process
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import TRANSITIONS, InstanceState, TaskStatus
from job_scheduler.core import claims, instances
from job_scheduler.core.claims import ClaimRequest
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.core.shares import Share
from job_scheduler.core.store import DueTask
from job_scheduler.database import Database, build_engine
from job_scheduler.identifiers import new_token
from job_scheduler.process import (
    ProcessIdentity,
    is_gone,
    is_running,
    own_identity,
    process_started,
)
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, bench, finished, later, post, running, services_of
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def build_heartbeat(store: Backend, lease: float = 2.0) -> Heartbeat:
    """The heartbeat of one more instance, which is alive."""
    database = Database(build_engine(store.settings().database, pool_size=1))
    member = Member(new_token(), own_identity())
    with database.writing() as connection:
        instances.register(connection, member, InstanceState.Alive)
    heartbeat = Heartbeat(database, member, lease, new_token, lambda: None)
    heartbeat.note_joined()
    return heartbeat


def row_of(store: Backend, instance_id: str) -> dict[str, Any]:
    """An instance as it stands in the database."""
    [row] = store.sql("SELECT * FROM instances WHERE instance_id = :id", id=instance_id)
    return row


# ------------------------------------------------------------------- the heartbeat


def test_heart_beats_several_times_a_lease_until_it_is_stopped(store: Backend) -> None:
    heartbeat = build_heartbeat(store, lease=0.5)
    me = heartbeat.instance_id
    before = row_of(store, me)
    heartbeat.start()
    wait_until(lambda: row_of(store, me)["heartbeat_seq"] >= 5)
    beaten = row_of(store, me)
    assert beaten["state"] == "alive"
    assert beaten["heartbeat_at"] > before["heartbeat_at"]
    heartbeat.stop()
    stopped = row_of(store, me)
    assert stopped["state"] == "dead"
    assert stopped["heartbeat_at"] >= beaten["heartbeat_at"]


def test_each_beat_tells_the_share_of_the_work(store: Backend) -> None:
    first, second = sorted(
        (build_heartbeat(store) for _ in range(2)), key=lambda one: one.instance_id
    )
    assert first.share == second.share == Share(0, 1), "nothing is known before the first beat"
    first.beat()
    second.beat()
    assert (first.share, second.share) == (Share(0, 2), Share(1, 2))
    store.sql(
        "UPDATE instances SET state = 'starting' WHERE instance_id = :id", id=first.instance_id
    )
    first.beat()
    second.beat()
    assert (first.share, second.share) == (Share(0, 2), Share(0, 1)), "it does not run tasks yet"
    store.sql("UPDATE instances SET state = 'dead'")
    second.beat()
    assert second.share == Share(0, 1), "under its new id"
    for heartbeat in (first, second):
        heartbeat._database.close()


def test_heart_beats_while_the_loop_is_held_up(store: Backend, registry: HandlerRegistry) -> None:
    begun = threading.Event()

    @registry.task("probe")
    async def probe() -> int:
        begun.set()
        before = row_of(store, me)["heartbeat_seq"]
        wait_until(lambda: row_of(store, me)["heartbeat_seq"] >= before + 3)
        return 3

    with running(store, registry) as client:
        me = services_of(client).heartbeat.instance_id
        task_id = store.insert_task(run_at=later(0))
        assert begun.wait(10)
        assert finished(client, task_id)["result"] == 3


def test_instance_that_was_declared_dead_takes_part_again_under_a_new_id(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    @registry.task("probe")
    async def probe() -> str:
        return "run"

    with running(store, registry) as client:
        former = services_of(client).heartbeat.instance_id
        assert client.get("/health").json()["instance_id"] == former
        store.sql("UPDATE instances SET state = 'dead'")
        wait_until(lambda: services_of(client).heartbeat.instance_id != former)
        present = services_of(client).heartbeat.instance_id
        assert client.get("/health").json()["instance_id"] == present
        ended = finished(client, post(client, run_at=later(0))["task_id"])
        assert (ended["status"], ended["instance_id"]) == ("done", present)
        assert row_of(store, former)["state"] == "dead"
        assert row_of(store, present)["state"] == "alive"
    assert f"declared dead as {former}: it takes part again as {present}" in capfd.readouterr().err


def test_task_due_while_the_instance_counts_as_dead_runs_when_it_is_back(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []
    registry.task("probe")(lambda: calls.append("called"))
    heartbeat = build_heartbeat(store)
    task_id = store.insert_task(run_at=later(-1))

    async def scenario() -> None:
        async with bench(store, registry, state=InstanceState.Dead) as one:
            await one.runner.run_task(task_id)
            assert [task.task_id for task in one.put_back] == [task_id]
            assert calls == []

    asyncio.run(scenario())
    store.sql("UPDATE instances SET state = 'dead'")
    former = heartbeat.instance_id
    heartbeat.beat()
    with store.database() as database, database.writing() as connection:
        refused = claims.claim(connection, former, [ClaimRequest(task_id, new_token())])
        taken = claims.claim(
            connection, heartbeat.instance_id, [ClaimRequest(task_id, new_token())]
        )
    assert isinstance(refused[0], DueTask)
    assert isinstance(taken[0], claims.Claim)
    heartbeat.start()
    heartbeat.stop()


def test_heartbeat_outlives_outages_and_mistakes(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    failures: list[Exception] = []

    def fail(*_: Any) -> None:
        if failures:
            raise failures[-1]

    with running(store, registry):
        pass  # for its logging alone
    heartbeat = build_heartbeat(store, lease=0.25)
    engine = heartbeat._database.engine
    raised = threading.Semaphore(0)
    event.listen(engine, "begin", lambda *_: raised.release())
    event.listen(engine, "begin", fail)
    failures.append(OperationalError("BEGIN", {}, OSError("no route to host")))
    heartbeat.start()
    for failure in (failures[0], RuntimeError("a mistake of ours")):
        failures.append(failure)
        for _ in range(3):
            assert raised.acquire(timeout=10)
    failures.clear()
    before = row_of(store, heartbeat.instance_id)["heartbeat_seq"]
    wait_until(lambda: row_of(store, heartbeat.instance_id)["heartbeat_seq"] > before)
    heartbeat.stop()
    log = capfd.readouterr().err
    assert "a heartbeat failed" in log
    assert "RuntimeError: a mistake of ours" in log
    assert "no route to host" not in log


@only_postgresql
def test_heart_that_stops_during_an_outage_leaves_it_to_the_others(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:
        heartbeat = build_heartbeat(Backend(proxy.url_for(store.db_url)))
        heartbeat.start()
        proxy.cut()
        heartbeat.stop()
    assert row_of(store, heartbeat.instance_id)["state"] == "alive"


@only_postgresql
def test_claim_under_way_holds_up_the_burial_and_none_begins_after_it(store: Backend) -> None:
    first, second = (store.insert_task(run_at=later(-1)) for _ in range(2))
    heartbeat = build_heartbeat(store)
    me = heartbeat.instance_id
    buried = threading.Event()

    def bury() -> None:
        with other.writing() as connection:
            instances.bury(connection, [last])
        buried.set()

    with store.database() as database, store.database() as other:
        with database.reading() as connection:
            seen = {one.instance_id: one for one in instances.others(connection, new_token())}
        # Its heart beats while the burial waits: as if that beat had been the last.
        last = replace(seen[me], heartbeat_seq=seen[me].heartbeat_seq + 1)
        burial = threading.Thread(target=bury)
        with database.writing() as connection:
            [claim] = claims.claim(connection, me, [ClaimRequest(first, new_token())])
            assert isinstance(claim, claims.Claim)
            burial.start()
            # The heartbeat does not wait for the claim, the burial does.
            heartbeat.beat()
            assert not buried.wait(0.3)
        assert buried.wait(10)
        burial.join()
        with database.writing() as connection:
            [refused] = claims.claim(connection, me, [ClaimRequest(second, new_token())])
        assert isinstance(refused, DueTask)
    heartbeat.start()
    heartbeat.stop()


# ------------------------------------------------------------------ who a process is


def test_own_process_runs_and_is_told_from_an_earlier_one_of_the_same_number() -> None:
    me = own_identity()
    assert me == own_identity()
    assert me.pid == os.getpid()
    assert is_running(me, me)
    assert not is_gone(me, me)
    earlier = ProcessIdentity(me.host, me.pid, "an earlier start")
    assert is_gone(earlier, me)
    assert not is_running(earlier, me)


def test_nothing_is_known_of_a_process_of_another_host() -> None:
    me = own_identity()
    elsewhere = ProcessIdentity("another-host", me.pid, me.started)
    assert not is_gone(elsewhere, me)
    assert not is_running(elsewhere, me)


def test_process_is_gone_when_it_has_ended_and_even_before_its_parent_has_noticed() -> None:
    me = own_identity()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_started(child.pid)
        assert started is not None
        other = ProcessIdentity(me.host, child.pid, started)
        assert is_running(other, me)
        child.kill()
        wait_until(lambda: is_gone(other, me))
        child.wait()
    assert is_gone(other, me)
    assert process_started(child.pid) is None


def write_stat(proc: Path, pid: int, name: bytes, state: str = "S") -> None:
    """A process as Linux shows it, started 4711 ticks after the boot."""
    (proc / str(pid)).mkdir(parents=True)
    fields = " ".join(["1"] * 18)
    line = b"%d (%s) %s %s 4711 0 0\n" % (pid, name, state.encode(), fields.encode())
    (proc / str(pid) / "stat").write_bytes(line)


@pytest.mark.parametrize("name", [b"python", b"a) S 1 (b", b"with space", b"gr\xf6\xdfe"])
def test_start_is_read_whatever_the_program_is_called(tmp_path: Path, name: bytes) -> None:
    write_stat(tmp_path, 7, name)
    assert process_started(7, tmp_path) == "4711"
    assert process_started(8, tmp_path) is None


@pytest.mark.parametrize("state", ["Z", "X"])
def test_corpse_does_not_count_as_a_process(tmp_path: Path, state: str) -> None:
    write_stat(tmp_path, 7, b"python", state)
    assert process_started(7, tmp_path) is None


def test_start_is_asked_of_ps_where_there_is_no_proc(tmp_path: Path) -> None:
    nowhere = tmp_path / "proc"
    started = process_started(os.getpid(), nowhere)
    assert started
    assert started == process_started(os.getpid(), nowhere)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert process_started(child.pid, nowhere) is None


def test_host_is_a_name_alone_where_there_is_no_proc(tmp_path: Path) -> None:
    here = process._host(Path("/proc"))
    bare = process._host(tmp_path)
    assert here.startswith(bare)
    assert bare


# ------------------------------------------------------------------ the state machine


def test_state_machine_agrees_with_its_drawing() -> None:
    drawn = sys.modules[TaskStatus.__module__].__doc__ or ""
    lines = drawn.split("\n")
    [main] = [line for line in lines if "POST" in line]
    path = [part.strip(" ─▶") for part in main.split("─▶")]
    ends = [end.strip() for end in path[-1].split("│")]
    states = {status.value for status in TaskStatus}
    stations = [part.split("──")[0].strip() for part in path[1:-1]]
    edges = set()
    for index, station in enumerate(stations):
        following = stations[index + 1 : index + 2] or ends
        edges |= {(station, target) for target in following}
    # A branch hangs below the state in whose column its corner stands.
    for line in lines:
        if match := re.search("[├└]──", line):
            corner = match.start()
            [origin] = [s for s in stations if main.index(s) <= corner <= main.index(s) + len(s)]
            targets = line.rsplit("─▶", 1)[1].split("│")
            edges |= {(origin, target.strip()) for target in targets}
    for line in lines:
        if match := re.fullmatch(r" *(\w+(?: │ \w+)*) ──[^─]+──▶ (\w+)", line):
            edges |= {(origin, match[2]) for origin in match[1].split(" │ ")}
    in_code = {
        (former.value, target.value)
        for former, targets in TRANSITIONS.items()
        for target in targets
    }
    assert edges == in_code
    assert {state for edge in edges for state in edge} == states == {s.value for s in TRANSITIONS}
