"""Worker processes: what is run in them, and that they neither harm nor outlive the service."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from job_scheduler.core.handlers.context import Progress
from job_scheduler.core.handlers.processes.cancelling import to_the_end
from job_scheduler.core.handlers.processes.frames import Stop, next_request, request
from job_scheduler.core.handlers.processes.group import ProcessGroup, how_it_ended
from job_scheduler.core.handlers.processes.importable import importable
from job_scheduler.core.handlers.processes.marked import kill_marked
from job_scheduler.core.handlers.processes.pool import Workers
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.strict_json import as_result, dumps
from tests.support import isolated
from tests.support.app import ROOT
from tests.support.isolated import FOR_EVER, OnPurpose, Size
from tests.support.processes import (
    NewLoop,
    both_loops,
    children,
    few_descriptors,
    gone,
    no_child_left,
    noted,
    run,
    run_context,
    until,
    words_on_standard_input,
)
from tests.support.services import wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it looks for processes, and for files, in /proc"
)

LIMIT = 512 * 1024 * 1024


@asynccontextmanager
async def workers(size: int = 1, **options: Any) -> AsyncIterator[Workers]:
    """Worker processes, which are ended with the block."""
    pool = Workers(size, [], **options)
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each process that a test starts has ended, and is collected."""
    with no_child_left():
        yield


# ------------------------------------------------------------------------- what is run


@both_loops
def test_arguments_go_there_as_they_are_and_the_result_comes_back_as_json(
    new_loop: NewLoop,
) -> None:
    async def scenario() -> Any:
        async with workers() as pool:
            given = {"size": Size(3), "day": date(2027, 7, 1), "others": {"a": [None, 1.5]}}
            return await pool.call(isolated.describe, given, run_context())

    assert run(scenario(), new_loop) == {
        "size": {"width": 3},
        "day": "2027-07-01",
        "others": {"a": [None, 1.5]},
    }


def test_handler_gets_the_context_of_its_run(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> Any:
        async with workers() as pool:
            return await pool.call(isolated.tell, {"number": 5}, run_context(), "run")

    assert run(scenario()) == [
        *("01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61", "probe", 2, "a token", False),
        *("2027-07-01T10:00:00Z", "2027-07-01T11:00:00Z", 5),
    ]
    [line] = capfd.readouterr().err.splitlines()
    told = (
        "INFO    job_scheduler.task: task 01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61: a word in the log"
    )
    assert line.endswith(told)


def test_worker_stands_where_the_service_does_and_has_little_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    (tmp_path / "handlers_of_a_user.py").touch()
    opened = [(tmp_path / str(number)).open("w") for number in range(20)]

    async def scenario(memory: int | None) -> Any:
        pool = Workers(1, ["handlers_of_a_user"], memory, "DEBUG")
        try:
            return await pool.call(isolated.surroundings, {}, run_context())
        finally:
            await pool.close()

    with words_on_standard_input():
        found, limited = run(scenario(None)), run(scenario(LIMIT))
    for file in opened:
        file.close()
    assert found["directory"] == str(tmp_path)
    assert found["path"] == [str(entry) for entry in sys.path]
    assert found["arguments"] == ["-c"]
    assert found["input"] == ""
    assert found["session"]
    assert found["default signals"] or "COVERAGE_PROCESS_CONFIG" in os.environ
    assert found["core"] == [0, 0]
    assert found["oom_score_adj"] == 1000
    assert found["log level"] == 10
    assert "handlers_of_a_user" in found["modules"]
    assert found["descriptors"] < 20
    assert found["address space"] == list(resource.getrlimit(resource.RLIMIT_AS))
    assert limited["address space"] == [LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]]
    assert (found["arenas"], limited["arenas"]) == (None, "1")


def test_limit_of_memory_stays_below_the_systems_own() -> None:
    program = f"""
import asyncio, resource
from job_scheduler.core.handlers.processes.pool import Workers
from tests.support.isolated import surroundings
from tests.support.processes import run_context
async def main():
    workers = Workers(1, [], 2 * {LIMIT})
    print((await workers.call(surroundings, {{}}, run_context()))["address space"])
    await workers.close()
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (f"[{LIMIT}, {LIMIT}]\n", 0), done.stderr


def test_what_a_handler_prints_goes_to_the_services_error_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> Any:
        async with workers() as pool:
            return await pool.call(isolated.talk, {}, run_context())

    assert run(scenario()) == "said"
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "printed\ncomplained\nwritten\n")


def test_result_without_json_form_or_of_great_size_is_kept_as_that() -> None:
    async def scenario() -> list[Any]:
        async with workers() as pool:
            large = [
                await pool.call(isolated.echo, {"text": "ä" + "x" * length}, run_context())
                for length in (1_000_000, 2_000_000)
            ]
            others = [
                await pool.call(each, {}, run_context())
                for each in (isolated.unserializable, isolated.odd)
            ]
            return large + others

    fits, large, lock, odd = run(scenario())
    assert fits == "ä" + "x" * 1_000_000
    assert lock["unserializable"].startswith("<unlocked _thread.lock")
    assert large == {"truncated": True, "bytes": 2_000_008, "head": '"\\u00e4' + "x" * 993}
    assert odd == [2**70, "NaN", "half \ufffd", {"a": [[[]]]}, 1e22]


# --------------------------------------------------------------- which worker, and how many


def test_worker_is_used_again_until_it_has_had_its_calls() -> None:
    async def scenario() -> list[int]:
        async with workers(max_calls=3) as pool:
            pids = [await pool.call(isolated.own_pid, {}, run_context()) for _ in range(4)]
            await until(lambda: gone(pids[0]), "the end of the first worker")
            assert not gone(pids[3])
        return pids

    first, second, third, fourth = run(scenario())
    assert first == second == third != fourth
    assert gone(fourth)


def test_worker_that_has_nothing_to_do_is_ended() -> None:
    async def scenario() -> None:
        async with workers(idle_seconds=0.5) as pool:
            first = await pool.call(isolated.own_pid, {}, run_context())
            assert await pool.call(isolated.own_pid, {}, run_context()) == first
            await until(lambda: gone(first), "the end of the idle worker")
            assert await pool.call(isolated.own_pid, {}, run_context()) != first

    run(scenario())


def test_no_more_calls_than_workers_run_at_once() -> None:
    async def scenario() -> None:
        begun: list[list[Progress]] = [[], [], []]
        contexts = [run_context(reports) for reports in begun]
        before = children()
        async with workers(size=2) as pool:
            calls = [
                asyncio.create_task(pool.call(isolated.until_asked, {}, context, "context"))
                for context in contexts
            ]
            await until(lambda: begun[0] and begun[1], "the first two")
            await asyncio.sleep(0.3)
            assert not begun[2]
            assert len(children() - before) == 2
            contexts[1].ask_to_stop()
            await calls[1]
            await until(lambda: begun[2], "the third")
            assert len(children() - before) == 2
            assert not calls[0].done()
            for context in contexts:
                context.ask_to_stop()
            await asyncio.gather(*calls)

    run(scenario())


def test_worker_that_died_with_nothing_to_do_is_replaced() -> None:
    async def scenario() -> None:
        async with workers() as pool:
            first = await pool.call(isolated.own_pid, {}, run_context())
            os.kill(first, signal.SIGKILL)
            names = [f"process-{first}"]
            await until(lambda: names[0] not in [each.name for each in threading.enumerate()])
            await asyncio.sleep(0)
            assert await pool.call(isolated.own_pid, {}, run_context()) != first

    run(scenario())


def test_closing_ends_workers_that_are_at_work_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with workers(size=3) as pool:
            idle = await pool.call(isolated.own_pid, {}, run_context())
            hanging = asyncio.create_task(
                pool.call(isolated.hang, {"file": str(tmp_path / "pids")}, run_context())
            )
            pids = await noted(tmp_path / "pids")
            await pool.call(isolated.own_pid, {}, run_context())
            await pool.close()
            assert gone(idle, *pids)
            with pytest.raises(RetryLater, match="ended by signal SIGTERM before the handler"):
                await hanging
            with pytest.raises(RetryLater, match="the service is stopping"):
                await pool.call(isolated.own_pid, {}, run_context())

    run(scenario())


# ------------------------------------------------------------------------ what it raises


@pytest.mark.parametrize(
    ("kind", "error", "words", "after"),
    [
        ("fail", Fail, "never again", None),
        ("later", RetryLater, "the bank is busy", 7.0),
        ("some time", RetryLater, "the handler asked for a retry", None),
        ("purpose", Fail, "tests.support.isolated.OnPurpose: I meant it", None),
        ("exit", RetryLater, "SystemExit: 3", None),
        ("long", RetryLater, "ValueError: " + "y" * 9_988, None),
        ("other", RetryLater, "ValueError: half \ufffd", None),
    ],
)
def test_error_is_raised_here_as_the_verdict_that_it_is(
    kind: str, error: type[Fail | RetryLater], words: str, after: float | None
) -> None:
    async def scenario() -> Any:
        async with workers() as pool:
            first = await pool.call(isolated.own_pid, {}, run_context())
            with pytest.raises((Fail, RetryLater)) as raised:
                await pool.call(
                    isolated.raise_one,
                    {"kind": kind},
                    run_context(),
                    no_retry_for=(OnPurpose, KeyError),
                )
            assert await pool.call(isolated.own_pid, {}, run_context()) == first
            return raised.value

    found = run(scenario())
    assert type(found) is error
    assert str(found) == words
    assert getattr(found, "after", None) == after
    assert len(found.details) <= 50_000
    if kind != "long":
        assert found.details.startswith("Traceback (most recent call last)")
        assert "in raise_one" in found.details


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (isolated.asynchronous, "coroutine"),
        (isolated.generator, "generator"),
        (isolated.hands_over, "async_generator"),
    ],
)
def test_work_that_was_only_announced_is_not_done(function: Any, kind: str) -> None:
    async def scenario() -> None:
        async with workers() as pool:
            with pytest.raises(Fail, match=f"returned a {kind} instead of doing its work"):
                await pool.call(function, {}, run_context())

    run(scenario())


def test_call_that_cannot_travel_fails_and_says_why() -> None:
    def local() -> None: ...

    async def scenario() -> None:
        async with workers() as pool:
            with pytest.raises(Fail, match=r"handed to a worker process: .*local"):
                await pool.call(local, {}, run_context())
            with pytest.raises(Fail, match="cannot be handed to a worker process"):
                await pool.call(isolated.describe, {"size": threading.Lock()}, run_context())

    run(scenario())


def test_function_that_the_worker_cannot_find_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fleeting.py").write_text("def handler(): ...\n")
    fleeting = __import__("fleeting")
    (tmp_path / "fleeting.py").unlink()

    async def scenario() -> None:
        async with workers() as pool:
            with pytest.raises(RetryLater, match="ModuleNotFoundError: No module named 'fleet"):
                await pool.call(fleeting.handler, {}, run_context())

    run(scenario())


# -------------------------------------------------------------------- when a worker ends


@pytest.mark.parametrize(
    ("function", "arguments", "how"),
    [
        (isolated.end_process, {"status": 3}, "ended with exit status 3"),
        (isolated.end_process, {"status": 0}, "ended with exit status 0"),
        (isolated.signal_process, {"number": signal.SIGKILL}, "ended by signal SIGKILL"),
        (isolated.signal_process, {"number": signal.SIGSEGV}, "ended by signal SIGSEGV"),
        (isolated.fork_and_end, {}, "ended with exit status 4"),
        (isolated.write_to_the_service, {"content": "0000000568656c6c6f"}, "lost its connection"),
        (isolated.write_to_the_service, {"content": "ffffffff"}, "lost its connection"),
    ],
)
def test_worker_that_ends_under_its_handler_is_replaced(
    function: Any, arguments: dict[str, Any], how: str
) -> None:
    async def scenario() -> None:
        async with workers() as pool:
            first = await pool.call(isolated.own_pid, {}, run_context())
            with pytest.raises(RetryLater) as raised:
                await pool.call(function, arguments, run_context())
            words = f"its worker process {how} before the handler had finished"
            assert (str(raised.value), raised.value.after) == (words, None)
            assert gone(first)
            assert await pool.call(isolated.own_pid, {}, run_context()) != first

    run(scenario())


def test_crash_of_the_interpreter_is_told_with_its_place(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        async with workers() as pool:
            with pytest.raises(RetryLater):
                await pool.call(isolated.signal_process, {"number": signal.SIGSEGV}, run_context())

    run(scenario())
    assert "in signal_process" in capfd.readouterr().err


def test_module_that_cannot_be_imported_ends_the_worker(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_handlers.py").write_text("raise RuntimeError('broken on purpose')")

    async def scenario() -> None:
        pool = Workers(1, ["broken_handlers"])
        with pytest.raises(RetryLater, match="ended with exit status 1 before"):
            await pool.call(isolated.own_pid, {}, run_context())
        await pool.close()

    run(scenario())
    assert "broken on purpose" in capfd.readouterr().err


def test_handler_that_eats_all_memory_fails_alone() -> None:
    async def scenario() -> None:
        async with workers(memory_bytes=LIMIT) as pool:
            first = await pool.call(isolated.own_pid, {}, run_context())
            with pytest.raises(RetryLater, match=r"^MemoryError$") as raised:
                await pool.call(isolated.eat, {}, run_context())
            # Its very line: there is memory again by the time that it is told.
            assert "in eat\n    raise MemoryError" in raised.value.details
            # It is not used again: nobody knows what else has failed there.
            assert await pool.call(isolated.own_pid, {}, run_context()) != first
            await until(lambda: gone(first), "the end of the exhausted worker")

    run(scenario())


@pytest.mark.parametrize("allowed", [0, 2, 4, 5])
def test_worker_that_cannot_be_started_is_tried_again(allowed: int) -> None:
    async def scenario() -> int:
        async with workers() as pool:
            with few_descriptors(allowed), pytest.raises(RetryLater) as raised:
                await pool.call(isolated.own_pid, {}, run_context())
            assert str(raised.value) == ("no worker process could be started: Too many open files")
            return int(await pool.call(isolated.own_pid, {}, run_context()))

    assert run(scenario()) > 0


# ------------------------------------------------------------------------ when it is cut off


@both_loops
def test_cancelling_a_call_kills_the_worker_and_whatever_it_has_started(
    new_loop: NewLoop, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with workers() as pool:
            given = {"file": str(tmp_path / "pids"), "astray": True}
            hanging = asyncio.create_task(pool.call(isolated.hang, given, run_context()))
            worker, child, stray = await noted(tmp_path / "pids")
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            # By then, not just some time.
            assert worker not in children()
            await until(lambda: gone(worker, child, stray), "the end of all three")
            assert await pool.call(isolated.own_pid, {}, run_context()) != worker

    run(scenario(), new_loop)


def test_call_that_is_cancelled_as_its_worker_starts_leaves_none() -> None:
    async def scenario() -> None:
        async with workers() as pool:
            before = children()
            call = asyncio.create_task(pool.call(isolated.own_pid, {}, run_context()))
            await until(lambda: children() - before, "the worker")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert children() <= before
            starting = asyncio.create_task(pool.call(isolated.own_pid, {}, run_context()))
            await asyncio.sleep(0)
            assert children() - before
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert children() <= before

    run(scenario())


def test_child_that_a_handler_sets_free_outlives_the_worker_that_leaves_in_order(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with workers(max_calls=1) as pool:
            file = tmp_path / "pids"
            await pool.call(isolated.leave_behind, {"file": str(file)}, run_context())
            worker, child = await noted(file)
            await until(lambda: gone(worker), "the end of the worker")
        assert not gone(child)
        os.kill(child, signal.SIGKILL)
        await until(lambda: gone(child), "the end of the child")

    run(scenario())


PARENT = """
import asyncio, sys
from job_scheduler.core.handlers.processes.pool import Workers
from tests.support.isolated import hang
from tests.support.processes import run_context
async def main():
    await Workers(1, []).call(hang, {"file": sys.argv[1]}, run_context())
asyncio.run(main())
"""


def test_worker_and_its_children_do_not_outlive_a_service_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "pids")], cwd=ROOT
    ) as service:
        pids: list[int] = asyncio.run(noted(tmp_path / "pids"))
        assert not any(gone(pid) for pid in pids)
        service.kill()
    wait_until(lambda: gone(*pids), 10, "the end of worker and child")


# ------------------------------------------------------------------------ across the pipe


@both_loops
def test_handler_is_asked_to_stop_and_reports_its_progress(new_loop: NewLoop) -> None:
    async def scenario() -> None:
        reports: list[Progress] = []
        former, context = run_context(token="the one before"), run_context(reports)
        async with workers() as pool:
            await pool.call(isolated.own_pid, {}, former)
            call = asyncio.create_task(
                pool.call(isolated.until_asked, {"number": 3}, context, "context")
            )
            await until(lambda: reports, "the progress")
            assert reports == [Progress(0.5, None)]
            former.ask_to_stop()  # That run has ended: this is nobody's any more.
            await asyncio.sleep(0.2)
            assert not call.done()
            context.ask_to_stop()
            assert await call == "as asked 3"
            # Asked before it began.
            assert await pool.call(isolated.until_asked, {}, context, "context") == "as asked 0"
            context.ask_to_stop()  # Nothing is under way.
            assert await pool.call(isolated.tell, {"number": 1}, run_context(), "run")
        context.ask_to_stop()  # Nobody is there any more.

    run(scenario(), new_loop)


def test_only_the_latest_progress_crosses_however_often_it_is_reported() -> None:
    async def scenario() -> list[Progress]:
        reports: list[Progress] = []
        context = run_context(reports)
        async with workers() as pool:
            call = asyncio.create_task(
                pool.call(isolated.report_often, {"times": 100_000}, context, "context")
            )
            await until(lambda: reports and reports[-1].fraction == 1, "the last progress")
            context.ask_to_stop()
            await call
        return reports

    reports = run(scenario())
    assert len(reports) < 1_000
    fractions = [each.fraction for each in reports]
    assert fractions == sorted(fractions)
    assert all(isinstance(each.message, str) for each in reports)
    assert reports[-1] == Progress(1.0, "half \ufffd" + "x" * 9_994)


def test_late_progress_is_not_taken_for_that_of_the_next_run() -> None:
    async def scenario() -> list[Progress]:
        reports: list[Progress] = []
        context, following = run_context(), run_context(reports, token="the next")
        context.ask_to_stop()
        async with workers() as pool:
            # It ends with a word on its progress still to be sent.
            for _ in range(5):
                await pool.call(isolated.report_often, {"times": 3}, context, "context")
            await pool.call(isolated.nap, {"seconds": 0.2}, following)
        return reports

    assert run(scenario()) == []


def test_what_is_said_of_another_run_is_not_taken_for_the_answer() -> None:
    async def scenario() -> Any:
        async with workers() as pool:
            return await pool.call(isolated.speak_of_another, {}, run_context())

    assert run(scenario()) == "its own result"


@pytest.mark.parametrize("cut", [0, 3, 4, 10])
def test_worker_takes_a_message_that_breaks_off_for_the_end(cut: int) -> None:
    whole = request(Stop("a token"))
    assert next_request(BytesIO(whole)) == Stop("a token")
    assert next_request(BytesIO(whole[:cut])) is None


def test_worker_takes_a_broken_connection_for_the_end() -> None:
    class Broken(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError(size)

    assert next_request(Broken()) is None


# ------------------------------------------------------------------------ which functions


class Telling:
    """Something that is called like a function."""

    def __call__(self) -> None:
        """Do nothing."""

    @classmethod
    def make(cls) -> None:
        """Do nothing."""


def test_function_of_a_module_can_be_found() -> None:
    assert importable(isolated.own_pid) is None
    assert importable(Size) is None


def inside() -> Any:
    """Return a function of this function's own."""

    def local() -> None: ...

    return local


def of_main() -> None:
    """Pass for a function of the program that was started."""


of_main.__module__ = "__main__"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: None, "a lambda"),
        (inside(), "inside another function"),
        (of_main, "__main__"),
        (partial(isolated.own_pid), "an object"),
        (Telling(), "an object"),
        (Telling().__call__, "an object"),
        ([].append, "an object"),
    ],
)
def test_function_that_no_other_process_can_find_is_told(function: Any, reason: str) -> None:
    assert reason in (importable(function) or "")


# ------------------------------------------------------------------------------ groups


@asynccontextmanager
async def group(*arguments: str, **options: Any) -> AsyncIterator[ProcessGroup]:
    """A program, which is ended with the block."""
    started = ProcessGroup(arguments, os.environ, subprocess.DEVNULL, None, **options)
    try:
        yield started
    finally:
        await started.end()


def test_program_that_does_not_end_in_time_is_left_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with group(*FOR_EVER, patience=0.0) as program:
            await program.end(strays=False)
            await asyncio.wait([program.ended])
        await program.end()

    run(scenario())
    assert "has not ended 0 s after SIGKILL" in caplog.text


def test_program_may_end_by_itself_in_its_time() -> None:
    async def scenario() -> None:
        async with group("sleep", "0.2") as program:
            await program.end(20)
            assert program.ended.result() == 0
            assert program.pid not in children()
            program.send(signal.SIGKILL)  # There is nobody left to get it.

    run(scenario())


def test_corpse_is_kept_until_its_children_are_seen_to() -> None:
    async def scenario() -> None:
        async with group("true") as program:
            await asyncio.wait([program.ended])
            assert program.pid in children()
            assert gone(program.pid)

    run(scenario())


def test_status_that_someone_else_has_collected_is_not_known() -> None:
    async def scenario() -> int | None:
        async with group("true") as program:
            await asyncio.wait([program.ended])
        return program.ended.result()

    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run(scenario()) is None
    finally:
        signal.signal(signal.SIGCHLD, former)


def test_status_is_known_without_waitid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> int | None:
        async with group("sh", "-c", "exit 5") as program:
            await asyncio.wait([program.ended])
        return program.ended.result()

    monkeypatch.delattr(os, "waitid")
    assert run(scenario()) == 5


def test_watch_over_a_program_ends_with_the_loop() -> None:
    async def scenario() -> ProcessGroup:
        return ProcessGroup(FOR_EVER, os.environ, subprocess.DEVNULL, None)

    program = run(scenario())
    program.send(signal.SIGKILL)
    names = [f"process-{program.pid}"]
    wait_until(lambda: names[0] not in [each.name for each in threading.enumerate()])
    program._collect(None)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with exit status 0"),
        (3, "ended with exit status 3"),
        (-9, "ended by signal SIGKILL"),
        (-40, "ended by signal 40"),
        (None, "ended, but how was told to another part of this process"),
    ],
)
def test_end_of_a_program_in_words(status: int | None, words: str) -> None:
    assert how_it_ended(status) == words


def test_marked_processes_are_found_among_others(tmp_path: Path) -> None:
    for number, content in (
        ("999999999", b"A=1\0MARK=1\0B=2\0"),  # gone, when it is to be killed
        ("999999998", b"MARK=12\0"),
        ("999999997", b""),
    ):
        (tmp_path / number).mkdir()
        (tmp_path / number / "environ").write_bytes(content)
    (tmp_path / "999999996").mkdir()  # gone, when it is looked at
    (tmp_path / "self").mkdir()
    assert kill_marked(b"MARK=1", tmp_path) == 1
    assert kill_marked(b"MARK=2", tmp_path) == 0


def test_work_goes_to_its_end_through_any_number_of_cancellations() -> None:
    async def scenario() -> None:
        begun, goes_on, ended = asyncio.Event(), asyncio.Event(), []

        async def work() -> None:
            begun.set()
            await goes_on.wait()
            ended.append(True)

        task = asyncio.create_task(to_the_end(work()))
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    run(scenario())


def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(to_the_end(work()))


def test_child_that_comes_back_from_the_handler_as_well_does_not_answer() -> None:
    async def scenario() -> list[Any]:
        async with workers() as pool:
            forked = await pool.call(isolated.fork, {}, run_context())
            return [forked] + [
                await pool.call(isolated.echo, {"text": str(number)}, run_context())
                for number in range(20)
            ]

    assert run(scenario()) == ["forked", *map(str, range(20))]


def test_handler_that_closes_what_it_does_not_know_ends_its_worker() -> None:
    async def scenario() -> None:
        async with workers() as pool:
            with pytest.raises(RetryLater, match="exit status 1 before the handler had finished"):
                await pool.call(isolated.close_all, {}, run_context())

    run(scenario())


def test_last_word_on_progress_comes_before_the_answer() -> None:
    async def scenario() -> None:
        said: list[Progress] = []
        async with workers() as pool:
            for number in range(20):
                context = run_context(said, token=str(number))
                await pool.call(isolated.count_up, {}, context, "run")
                assert said.pop() == Progress(1.0, "the end")

    run(scenario())


def test_long_result_is_cut_once() -> None:
    async def scenario() -> Any:
        pool = Workers(1, [], max_result_bytes=1_000)
        try:
            return await pool.call(isolated.echo, {"text": "x" * 3_000}, run_context())
        finally:
            await pool.close()

    result = run(scenario())
    assert (result["truncated"], result["bytes"]) == (True, 3_002)
    assert len(dumps(result)) <= 1_000
    assert as_result(result, 1_000) == result
