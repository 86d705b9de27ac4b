"""The chaos command: its plan, its checks on hand-made histories, and short runs for real."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from job_scheduler.chaos import ledger
from job_scheduler.chaos.checks import examine
from job_scheduler.chaos.cluster import cluster
from job_scheduler.chaos.command import until_ready
from job_scheduler.chaos.faults import Saboteur
from job_scheduler.chaos.history import (
    Answer,
    Asked,
    Deletion,
    Fault,
    History,
    Row,
    Run,
    Sighting,
    TaskHistory,
)
from job_scheduler.chaos.ledger import Entry, Event
from job_scheduler.chaos.plan import (
    FaultKind,
    HandlerKind,
    Plan,
    PlannedFault,
    PlannedTask,
    make_plan,
)
from job_scheduler.chaos.progress import Progress
from job_scheduler.chaos.report import figures, kills_hit, verdict, violation_lines
from job_scheduler.chaos.storage import Storage, own_database
from job_scheduler.chaos.workload import Workload
from job_scheduler.constants import OnCrash, RunOutcome, TaskStatus
from job_scheduler.exceptions import StartError
from job_scheduler.process import process_started
from tests.support.app import ROOT, Backend
from tests.support.services import Service, skip_or_fail, wait_until

BEGIN = 1_000_000.0  # when hand-made histories begin
PID, OTHER_PID = 41, 42

# --------------------------------------------------------------------------- the plan


def plan(seed: int, **wanted: Any) -> Plan:
    """A plan of a minute with everything."""
    options: dict[str, Any] = {
        "tasks": 500,
        "seconds": 60.0,
        "instances": 3,
        "postgresql": True,
        "redis": True,
    }
    return make_plan(seed, **(options | wanted))


def test_plan_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)


def test_plan_has_every_kind_of_task_and_fault() -> None:
    made = plan(3)
    assert {fault.kind for track in made.tracks for fault in track} == set(FaultKind) - {
        FaultKind.Cancel,
        FaultKind.Stop,
    }
    assert {task.handler for task in made.tasks} == set(HandlerKind)
    assert {task.on_crash for task in made.tasks} == {None, *OnCrash}
    for wanted in ("by_sql", "fails", "cancel_at"):
        assert any(getattr(task, wanted) for task in made.tasks), wanted
    assert [task.post_at for task in made.tasks] == sorted(task.post_at for task in made.tasks)


def test_faults_of_a_track_do_not_overlap_and_end_in_time() -> None:
    for seed in range(20):
        for track in plan(seed).tracks:
            for former, later in pairwise(track):
                assert former.at + former.lasts < later.at
            assert all(fault.at < 60.0 for fault in track)


def test_somebody_is_paused_alone_while_the_database_lets_the_others_judge() -> None:
    for seed in range(20):
        made = plan(seed)
        pauses = [
            fault for track in made.tracks for fault in track if fault.kind is FaultKind.Pause
        ]
        # Nothing that the database suffers may fall within seven seconds before.
        hindrances = pauses + [replace(fault, lasts=fault.lasts + 7.0) for fault in made.tracks[3]]
        assert any(
            not any(
                fault.at < pause.at + pause.lasts and pause.at < fault.at + fault.lasts
                for fault in hindrances
                if fault is not pause
            )
            for pause in pauses
        )


def test_some_runs_stall_the_database_for_longer_than_any_timeout_and_short_ones_never() -> None:
    def longest(seconds: float) -> list[float]:
        plans = [plan(seed, tasks=0, seconds=seconds) for seed in range(20)]
        return [
            max(fault.lasts for fault in made.tracks[3] if fault.kind is FaultKind.StallDatabase)
            for made in plans
        ]

    assert len({lasts > 20.0 for lasts in longest(60.0)}) == 2
    assert max(longest(30.0)) < 20.0


def test_faults_are_for_what_there_is() -> None:
    made = plan(1, postgresql=False, redis=False)
    assert {fault.kind for track in made.tracks for fault in track} == {
        FaultKind.Kill,
        FaultKind.Pause,
        FaultKind.Restart,
    }


# -------------------------------------------------------------------------- the ledger


def test_ledger_keeps_what_was_appended_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert ledger.read(path) == []
    entries = [start(1), end(1), start(2, pid=OTHER_PID)]
    for entry in entries:
        ledger.append(str(path), entry)
    assert ledger.read(path) == entries


# -------------------------------------------------------------------------- the checks


def planned(**members: Any) -> PlannedTask:
    """A task that is due a second after the begin and takes a second."""
    given: dict[str, Any] = {
        "post_at": 0.0,
        "due_at": 1.0,
        "handler": HandlerKind.Async,
        "seconds": 1.0,
        "fails": False,
        "max_attempts": 3,
        "on_crash": None,
        "by_sql": False,
        "cancel_at": None,
    }
    return PlannedTask(**(given | members))


def start(attempt: int, at: float = 1.1, pid: int = PID, token: str | None = None) -> Entry:
    """The begin of an attempt, in seconds after the begin; its token is its number."""
    return Entry(Event.Start, BEGIN + at, "task", attempt, token or f"t{attempt}", pid)


def end(attempt: int, at: float = 2.1, pid: int = PID) -> Entry:
    """The end of an attempt."""
    return Entry(Event.End, BEGIN + at, "task", attempt, f"t{attempt}", pid)


def run(
    attempt: int,
    outcome: RunOutcome = RunOutcome.Done,
    at: float = 1.1,
    until: float = 2.2,
    pid: int = PID,
) -> Run:
    """The history's entry of an attempt."""
    return Run(f"t{attempt}", attempt, outcome, BEGIN + 1.0, BEGIN + at, BEGIN + until, pid)


def row(status: TaskStatus, attempt: int = 1, **members: Any) -> Row:
    """The row of a task that is due a second after the begin."""
    ended = status is TaskStatus.Done
    given: dict[str, Any] = {
        "token": f"t{attempt}",
        "due": BEGIN + 1.0,
        "created_at": BEGIN,
        "result": {"token": f"t{attempt}", "attempt": attempt} if ended else None,
    }
    return Row(status=status, attempt=attempt, **(given | members))


def seen(status: TaskStatus, attempt: int, token: str | None = None) -> Sighting:
    """What the observer saw."""
    return Sighting(BEGIN + 1.5, status, attempt, token)


def done_once(**changes: Any) -> TaskHistory:
    """A task that was posted, started, and is done."""
    history = TaskHistory(
        asked=Asked("task", planned(), BEGIN + 1.0, accepted_at=BEGIN + 0.1),
        row=row(TaskStatus.Done),
        entries=[start(1), end(1)],
        runs=[run(1)],
        sightings=[
            seen(TaskStatus.Scheduled, 0),
            seen(TaskStatus.Running, 1, "t1"),
            seen(TaskStatus.Done, 1, "t1"),
        ],
    )
    for name, value in changes.items():
        setattr(history, name, value)
    return history


def asked(**members: Any) -> Asked:
    """What a caller asked for; members of the plan are told from its own."""
    own = {"accepted_at", "deletion", "deleted_at"}
    of_plan = {name: value for name, value in members.items() if name not in own}
    given = {"accepted_at": BEGIN + 0.1} | {
        name: value for name, value in members.items() if name in own
    }
    return Asked("task", planned(**of_plan), BEGIN + 1.0, **given)


def crashed_and_done(**changes: Any) -> TaskHistory:
    """A task whose first run was killed at 1.5, and whose second is done."""
    return done_once(
        **{
            "row": row(TaskStatus.Done, 2),
            "entries": [start(1), start(2, 1.7, OTHER_PID), end(2, 2.7, OTHER_PID)],
            "runs": [run(1, RunOutcome.Crashed, until=1.6), run(2, at=1.7, until=2.8)],
            "sightings": [seen(TaskStatus.Running, 1, "t1"), seen(TaskStatus.Scheduled, 1)],
        }
        | changes
    )


def history(*tasks: TaskHistory, incidents: list[str] | None = None) -> History:
    """A run in which process 41 was killed at 1.5."""
    kill = Fault(FaultKind.Kill, BEGIN + 1.5, BEGIN + 1.5, PID)
    return History(list(tasks), [kill], BEGIN + 60.0, 0.01, incidents or [])


def broken(task: TaskHistory) -> list[str]:
    """What the checks say of one task."""
    return [violation.text for violation in examine(history(task))]


@pytest.mark.parametrize(
    "task",
    [
        done_once(),
        crashed_and_done(),
        # still due
        done_once(
            row=row(TaskStatus.Scheduled, 0, due=BEGIN + 3600.0),
            entries=[],
            runs=[],
            sightings=[seen(TaskStatus.Scheduled, 0)],
        ),
        # deleted in time
        done_once(
            asked=asked(deletion=Deletion.Done, deleted_at=BEGIN + 0.5),
            row=None,
            entries=[],
            runs=[],
            sightings=[],
        ),
        # never stored
        done_once(asked=asked(accepted_at=None), row=None, entries=[], runs=[], sightings=[]),
        # deleted between two attempts
        done_once(
            asked=asked(deletion=Deletion.Done, deleted_at=BEGIN + 1.65),
            row=None,
            entries=[start(1)],
            runs=[],
        ),
        # claimed, and given back
        done_once(
            sightings=[seen(TaskStatus.Running, 1, "t0"), seen(TaskStatus.Scheduled, 0)],
        ),
        # cut off as its plan says
        *(
            done_once(
                asked=asked(on_crash=on_crash, max_attempts=max_attempts),
                row=row(status),
                entries=[start(1)],
                runs=[run(1, RunOutcome.Crashed, until=1.6)],
                sightings=[],
            )
            for on_crash, max_attempts, status in [
                (OnCrash.Hold, 3, TaskStatus.Unknown),
                (OnCrash.Fail, 3, TaskStatus.Failed),
                (None, 1, TaskStatus.Failed),
                (OnCrash.Retry, 1, TaskStatus.Failed),
            ]
        ),
        # failed by itself
        done_once(
            asked=asked(fails=True),
            row=row(TaskStatus.Failed),
            runs=[run(1, RunOutcome.Failed)],
            sightings=[],
        ),
    ],
)
def test_what_is_promised_is_no_violation(task: TaskHistory) -> None:
    assert broken(task) == []


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (done_once(row=None), "its row is gone"),
        (
            done_once(asked=asked(deletion=Deletion.Done, deleted_at=BEGIN + 0.5)),
            "deleted, and its row is there",
        ),
        (done_once(row=row(TaskStatus.Running)), "stuck in running"),
        (
            done_once(row=row(TaskStatus.Scheduled, 0), entries=[], runs=[], sightings=[]),
            "it is due since 59.0 s, and was not run",
        ),
        (
            crashed_and_done(asked=asked(max_attempts=1)),
            "it was started 2 times, and may be 1 times",
        ),
        (
            done_once(entries=[start(1), start(1, token="x"), end(1)]),
            "attempt 1 was started 2 times",
        ),
        (
            done_once(entries=[start(1), start(2, token="t1"), end(1)]),
            "token t1 was started 2 times",
        ),
        (
            done_once(
                asked=asked(max_attempts=1, deletion=Deletion.Unknown),
                row=None,
                runs=[],
            ),
            "its row is gone, and attempt 1 of it was started",
        ),
        (
            done_once(
                asked=asked(deletion=Deletion.Done, deleted_at=BEGIN + 0.5),
                row=None,
                runs=[],
            ),
            "its row is gone, and attempt 1 of it was started",
        ),
        (done_once(entries=[start(1, 0.9), end(1)]), "attempt 1 began 0.1000 s before its time"),
        (done_once(runs=[run(1, at=0.99)]), "attempt 1 was claimed before its time"),
        (done_once(entries=[start(1)]), "the ledger shows no run that ended"),
        (
            crashed_and_done(row=row(TaskStatus.Done, 1)),
            "done under another token or attempt than the last run that ended",
        ),
        (
            crashed_and_done(
                row=row(TaskStatus.Done, 2, result={"token": "t1", "attempt": 1}),
            ),
            "its result is of a stale token",
        ),
        (
            done_once(
                sightings=[seen(TaskStatus.Failed, 1, "t1"), seen(TaskStatus.Running, 2, "t2")]
            ),
            "it moved from failed (attempt 1) to running (attempt 2)",
        ),
        (
            done_once(sightings=[seen(TaskStatus.Done, 1, "t0")]),
            "it moved from done (attempt 1) to done (attempt 1)",
        ),
        (
            done_once(sightings=[seen(TaskStatus.Scheduled, 2)]),
            "it moved from scheduled (attempt 2) to done (attempt 1)",
        ),
        (crashed_and_done(runs=[run(2, at=1.7, until=2.8)]), "its history knows nothing of it"),
        (done_once(entries=[]), "the ledger shows no end of it"),
        (
            crashed_and_done(
                runs=[run(1), run(2, at=1.7, until=2.8)],
            ),
            "2 of its attempts came to an end by themselves",
        ),
        (done_once(row=row(TaskStatus.Failed)), "attempt 1 is done, and the task is failed"),
        (
            crashed_and_done(
                runs=[run(1, RunOutcome.Crashed, at=1.9, until=2.0), run(2, at=1.7)],
            ),
            "its attempts are numbered [2, 1] in the order of their start",
        ),
        (
            done_once(row=row(TaskStatus.Failed), entries=[], runs=[], sightings=[]),
            "it is failed without a run",
        ),
        (
            done_once(
                row=row(TaskStatus.Failed),
                entries=[start(1)],
                runs=[run(1, RunOutcome.Crashed)],
                sightings=[],
            ),
            "attempt 1 of 3 was cut off, and with on_crash None it is failed",
        ),
        (
            crashed_and_done(
                runs=[run(1, RunOutcome.Crashed, pid=OTHER_PID), run(2, at=1.7)],
            ),
            "attempt 1 is crashed, and its process had met with no fault",
        ),
        (
            crashed_and_done(
                entries=[start(1, 10.0), start(2, 12.0), end(2, 13.0)],
                runs=[
                    run(1, RunOutcome.Crashed, at=10.0, until=11.0),
                    run(2, at=12.0, until=13.0),
                ],
            ),
            "attempt 1 is crashed, and its process had met with no fault",
        ),
    ],
)
def test_each_broken_promise_is_found(task: TaskHistory, complaint: str) -> None:
    assert any(complaint in text for text in broken(task)), broken(task)


def test_database_outage_explains_an_interruption_and_no_crash() -> None:
    outage = Fault(FaultKind.StallDatabase, BEGIN + 1.2, BEGIN + 6.0)
    for outcome, violations in ((RunOutcome.Interrupted, 0), (RunOutcome.Crashed, 1)):
        task = crashed_and_done(runs=[run(1, outcome), run(2, at=1.7)])
        found = examine(History([task], [outage], BEGIN + 60.0, 0.01))
        assert len(found) == violations


def test_incident_of_the_service_is_a_violation() -> None:
    (found,) = examine(history(incidents=["instance 1 ended by itself"]))
    assert (found.text, found.task) == ("instance 1 ended by itself", None)


# -------------------------------------------------------------------------- the report


def test_figures_count_tasks_runs_lateness_and_what_faults_hit() -> None:
    told = [Answer(BEGIN + 0.1, "POST 201"), Answer(BEGIN + 1.4, "DELETE 409")]
    refused = asked(deletion=Deletion.Refused, deleted_at=BEGIN + 1.4)
    refused.answers = told
    calm = [
        done_once(
            asked=Asked("calm", planned(), BEGIN + 9.0, accepted_at=BEGIN),
            entries=[start(1, 9.01), end(1, 9.5)],
        )
        for _ in range(2)
    ]
    held_up = done_once(entries=[start(1, 1.6), end(1, 2.6)])
    whole = history(crashed_and_done(asked=refused), *calm, held_up, done_once(row=None))
    lines = "\n".join(figures(whole))
    assert "5 created of 5 asked for, 0 deleted; in the end 4 done" in lines
    assert "6 started, 5 came to their end; recorded 1 crashed, 5 done" in lines
    assert "p50 55 ms, p99 585 ms, worst 600 ms (4 tasks)" in lines
    assert "p50 10 ms, p99 98 ms, worst 100 ms (3 tasks) where no fault was near" in lines
    assert "1 SIGKILL and restart        hit 2 running tasks" in lines
    assert "1 cancels                    hit 1 running tasks" in lines
    assert "of too few tasks" in "\n".join(figures(history()))


@pytest.mark.parametrize(("came_at", "late"), [(1.6, 0), (1.8, 1), (2.9, 0)])
def test_figures_count_results_that_the_token_kept_off_a_newer_run(
    came_at: float, late: int
) -> None:
    """The newer run is under way from 1.7 to 2.8."""
    lost = run(1, RunOutcome.Lost, until=came_at)
    task = crashed_and_done(runs=[lost, run(2, at=1.7, until=2.8)])
    assert f"{late} results came while a newer run was" in "\n".join(figures(history(task)))


def test_lateness_of_seconds_is_told_in_seconds() -> None:
    late = [done_once(entries=[start(1, 4.25), end(1, 5.0)]) for _ in range(2)]
    assert "worst 3.25 s" in "\n".join(figures(history(*late)))


def test_verdict_tells_violations_vacuity_and_success() -> None:
    hit = history(*[crashed_and_done()] * 20)
    assert kills_hit(hit) == 20
    assert verdict(hit, []) == ("no violations; the kills hit 20 running tasks", 0)
    line, status = verdict(history(done_once()), [])
    assert line.startswith("vacuous: the kills hit 1 running tasks, and 20 are wanted")
    assert status == 2
    violations = examine(history(incidents=["instance 1 ended by itself"]))
    assert verdict(hit, violations) == ("1 violations", 1)


def test_violation_is_told_with_the_whole_history_of_its_task() -> None:
    task = crashed_and_done(asked=asked(max_attempts=1, fails=True))
    task.asked.answers = [Answer(BEGIN + 0.1, "POST 201")]
    whole = history(task, done_once(row=None), incidents=["instance 1 ended by itself"])
    whole.faults += [
        Fault(FaultKind.Pause, BEGIN + 1.0, BEGIN + 5.0, 99),
        Fault(FaultKind.StallRedis, BEGIN + 1.0, BEGIN + 2.0),
    ]
    lines = list(violation_lines(examine(whole), whole, BEGIN))
    told = "\n".join(lines)
    assert lines[0] == "VIOLATION: instance 1 ended by itself"
    assert "VIOLATION: task task: it was started 2 times, and may be 1 times" in told
    for expected in (
        "chaos_async, due 1.000, takes 1 s and fails, max_attempts 1, on_crash None",
        "0.100  POST 201",
        "1.100  ledger: start of attempt 1, token t1, process 41",
        "1.500  fault: SIGKILL and restart (process 41), at once",
        "1.000  fault: Redis stalled, for 1.000 s",
        "1.500  row: running, attempt 1, token t1",
        "1.600  history: attempt 1, token t1, is crashed: due 1.000, started 1.100, process 41",
        "in the end: done, attempt 2, token t2, due 1.000, result",
        "in the end it has no row",
    ):
        assert expected in told, expected
    assert "process 99" not in told


def test_only_the_first_violations_are_told_in_full() -> None:
    whole = history(*(done_once(row=row(TaskStatus.Running), runs=[]) for _ in range(25)))
    lines = list(violation_lines(examine(whole), whole, BEGIN))
    assert sum(line.startswith("VIOLATION") for line in lines) == 50
    assert sum("in the end" in line for line in lines) == 20


def test_progress_is_one_line_on_a_terminal_and_many_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def two_steps(progress: Progress) -> None:
        showing = asyncio.create_task(progress.run())
        await asyncio.sleep(0)
        showing.cancel()
        progress.end()

    for terminal, expected in ((True, "\rhere\x1b[K\rhere\x1b[K\n"), (False, "here\nhere\n")):
        asyncio.run(two_steps(Progress(lambda: "here", terminal=terminal)))
        assert capsys.readouterr().err == expected


# ------------------------------------------------------------------------- the callers


@asynccontextmanager
async def told_what_to_answer(answers: dict[str, list[int]]) -> AsyncIterator[str]:
    """An HTTP server that answers each method's requests with these statuses, one by one.

    At status 0 it hangs up.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length.group(1)) if length else 0)
        status = answers[head.split()[0]].pop(0)
        if status:
            writer.write(f"HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def call(tmp_path: Path, answers: dict[str, list[int]], **members: Any) -> Workload:
    """Let a caller ask a server that answers so."""
    storage = Storage(make_url(f"sqlite:///{tmp_path / 'unused.db'}"))
    async with told_what_to_answer(answers) as url:
        ready = iter([[], [url]])  # at the first look, no instance is ready
        workload = Workload(storage, lambda: next(ready, [url]), BEGIN)
        await workload.run([planned(**members)])
    await storage.close()
    assert not any(answers.values()), "all was asked"
    return workload


@pytest.mark.parametrize(
    ("answers", "deletion", "incident"),
    [
        ({"POST": [201], "DELETE": [200]}, Deletion.Done, None),
        ({"POST": [201], "DELETE": [503, 409]}, Deletion.Refused, None),
        # asked again after no answer: the first request had done it
        ({"POST": [201], "DELETE": [0, 404]}, Deletion.Done, None),
        ({"POST": [201], "DELETE": [404]}, Deletion.Done, "nobody had deleted it"),
        # of a request without an answer nobody knows when it is carried out
        ({"POST": [0, 201]}, Deletion.NeverAsked, None),
        ({"POST": [503, 201]}, Deletion.NeverAsked, None),
        ({"POST": [500, 201]}, Deletion.NeverAsked, "POST /tasks was answered 500"),
    ],
)
def test_caller_asks_until_it_is_answered_and_notes_what_it_was_told(
    tmp_path: Path, answers: dict[str, list[int]], deletion: Deletion, incident: str | None
) -> None:
    told = [f"{method} {status or 'no'}" for method in answers for status in answers[method]]
    workload = asyncio.run(call(tmp_path, answers, cancel_at=0.0))
    (task,) = workload.asked.values()
    assert workload.accepted == 1
    assert task.deletion is deletion
    assert [" ".join(answer.text.split()[:2]) for answer in task.answers] == told
    assert [incident in text for text in workload.incidents if incident] == [True] * bool(incident)


# ----------------------------------------------------------------------- the instances


def test_instance_that_ends_by_itself_is_an_incident_and_is_followed_by_another(
    tmp_path: Path,
) -> None:
    async def scenario() -> tuple[int, int, list[str]]:
        environment = {"DB_URL": f"sqlite:///{tmp_path / 'tasks.db'}"}
        async with cluster(1, tmp_path, environment) as running:
            await until_ready(running)
            (instance,) = running.instances
            first = instance.pid
            os.kill(first, signal.SIGKILL)
            while instance.pid == first:  # noqa: ASYNC110 (nobody tells of a process)
                await asyncio.sleep(0.01)
            await until_ready(running)
        return first, instance.pid, running.incidents

    first, second, (incident,) = asyncio.run(scenario())
    assert (process_started(first), process_started(second)) == (None, None)
    assert incident.startswith("instance 0 ended by itself with status -9:\n  ")


def test_instance_that_does_not_stop_is_an_incident(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, list[str]]:
        environment = {"DB_URL": f"sqlite:///{tmp_path / 'tasks.db'}"}
        async with cluster(1, tmp_path, environment, stop_patience=0.2) as running:
            await until_ready(running)
            (instance,) = running.instances
            os.kill(instance.pid, signal.SIGSTOP)
            await running.stop()
            return instance.pid, running.incidents

    pid, (incident,) = asyncio.run(scenario())
    assert process_started(pid) is None
    assert "had not stopped 0.2 s after SIGTERM" in incident


@pytest.mark.parametrize(("held_for", "stalled"), [(1.2, True), (0.5, False)])
def test_database_that_nobody_can_write_during_a_pause_is_noted_as_stalled(
    tmp_path: Path, held_for: float, stalled: bool
) -> None:
    """As when the paused process was at a COMMIT; here another one holds SQLite's lock for it."""
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    pause = PlannedFault(0.0, FaultKind.Pause, 1.0, instance=0)

    async def scenario() -> tuple[list[Fault], int]:
        storage = Storage(make_url(url))
        async with cluster(1, tmp_path, {"DB_URL": url}) as running:
            await until_ready(running)
            saboteur = Saboteur(running.instances, storage, {}, BEGIN)
            with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                done = asyncio.create_task(saboteur.run([[pause]]))
                await asyncio.sleep(held_for)
            await done
            await storage.close()
            return saboteur.done, running.instances[0].pid

    (paused, *stalls), pid = asyncio.run(scenario())
    assert (paused.kind, paused.pid) == (FaultKind.Pause, pid)
    assert stalls == [Fault(FaultKind.StallDatabase, paused.begin, paused.end)] * stalled


def test_instances_that_do_not_start_are_said_to(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        async with cluster(1, tmp_path, {"THREADS": "none"}) as running:
            with pytest.raises(StartError, match="do not start: Configuration error: THREADS"):
                await until_ready(running, 4.0)
        return running.incidents

    assert asyncio.run(scenario()) == []


def test_cluster_that_is_left_at_once_has_started_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(2, tmp_path, {}):
            pass

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------- the command


def chaos(
    directory: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end; what it makes for a while, it makes in `directory`."""
    return subprocess.run(
        [sys.executable, "-m", "job_scheduler", "chaos", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(directory)} | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.redis
def test_run_on_postgresql_and_redis_finds_nothing_and_leaves_nothing(
    postgresql_database: str, redis_service: Service, tmp_path: Path
) -> None:
    if redis_service.url is None:
        skip_or_fail(f"no Redis: {redis_service.reason}")
    urls = ("--db-url", postgresql_database, "--redis-url", redis_service.url)
    ended = chaos(tmp_path, *urls, "--tasks=600", "--seconds=15", "--seed=1")
    assert_nothing_was_found(ended)
    for kind in ("SIGKILL", "SIGSTOP", "SIGTERM", "Redis flushed", "connections cut", "cancels"):
        assert kind in ended.stdout
    assert "15 s to go: 0 of 600 tasks created" in ended.stderr
    assert list(tmp_path.iterdir()) == []
    left = "SELECT datname FROM pg_database WHERE datname LIKE :name"
    name = f"{make_url(postgresql_database).database}"[:40] + "_chaos_%"
    assert Backend(postgresql_database).sql(left, name=name) == []


def assert_nothing_was_found(ended: "subprocess.CompletedProcess[str]") -> None:
    """Check the verdict; so short a run may hit few running tasks on a machine under load."""
    last = ended.stdout.splitlines()[-1]
    found_nothing = r"seed \d+: (no violations; the kills hit \d+|vacuous: the kills hit \d+) .+"
    assert re.fullmatch(found_nothing, last), ended.stdout
    assert ended.returncode == (2 if "vacuous" in last else 0)


@pytest.mark.slow
def test_run_on_sqlite_with_several_processes_finds_nothing(tmp_path: Path) -> None:
    users_own = tmp_path / "users.db"
    ended = chaos(
        tmp_path, f"--db-url=sqlite:///{users_own}", "--tasks=600", "--seconds=12", "--seed=2"
    )
    assert_nothing_was_found(ended)
    assert "Redis" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_short_run_is_vacuous_and_what_it_made_can_be_kept(tmp_path: Path) -> None:
    ended = chaos(tmp_path, "--db-url=sqlite:///x.db", "--tasks=5", "--seconds=1", "--keep")
    assert ended.returncode == 2, ended.stdout
    assert re.fullmatch(
        r"seed \d+: vacuous: the kills hit 0 running tasks, .+", ended.stdout.splitlines()[-1]
    )
    (directory,) = tmp_path.iterdir()
    assert f"kept: the ledger and logs in {directory}, and sqlite:///{directory}/" in ended.stdout
    assert {"chaos.db", "instance-0-1.log"} <= {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    made = tmp_path / "made"
    made.mkdir()
    arguments = ("--db-url=sqlite:///x.db", "--tasks=100", "--instances=2")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "job_scheduler", "chaos", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(made)},
            stderr=output,
        ) as process,
    ):
        wait_until(lambda: "to go" in log.read_text(), 60, "the begin of the run")
        logs = [*made.glob("*/instance-*.log")]
        pids = [int(re.findall(r"process \[(\d+)\]", path.read_text())[0]) for path in logs]
        process.send_signal(number)
        assert process.wait(60) == 130, log.read_text()
    assert len(pids) == 2
    assert [process_started(pid) for pid in pids] == [None, None]
    assert "interrupted: all that was started is stopped again" in log.read_text()
    assert list(made.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--db-url=nonsense"], "Configuration error: DB_URL: "),
        (
            ["--db-url=postgresql://nobody@127.0.0.1:1/none"],
            "cannot be created. Check --db-url",
        ),
        (
            ["--db-url=sqlite:///x.db", "--redis-url=redis://127.0.0.1:1/0"],
            "Redis does not answer",
        ),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    ended = chaos(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


def test_missing_development_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text("raise ModuleNotFoundError(name='httpx')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = chaos(tmp_path, "--db-url=sqlite:///x.db", PYTHONPATH=path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("This command needs the package httpx")
    assert "pip install -r requirements.txt" in ended.stderr


@pytest.mark.postgresql
def test_database_can_be_kept(postgresql_database: str, tmp_path: Path) -> None:
    backend = Backend(postgresql_database)
    with own_database(make_url(postgresql_database), tmp_path, keep=True) as url:
        pass
    own = Backend(url.render_as_string(hide_password=False))
    assert own.count() == 0
    with backend.database() as database:
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {url.database} WITH (FORCE)")
