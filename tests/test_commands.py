"""Commands: which are run, what they are given, what becomes of their output and of themselves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from job_scheduler.core.fields import Command
from job_scheduler.core.handlers.processes.commands import Commands, environment_of_commands
from job_scheduler.core.handlers.processes.group import MARK
from job_scheduler.core.handlers.raised import Fail, RetryLater
from tests.support.app import ROOT
from tests.support.processes import (
    NewLoop,
    both_loops,
    few_descriptors,
    gone,
    no_child_left,
    noted,
    run,
    run_context,
    until,
    words_on_standard_input,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it looks for processes, and for files, in /proc"
)

PYTHON = sys.executable
ALLOWED = ["sh", "echo", "cat", "pwd", "env", PYTHON]
TAIL = 64 * 1024


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each process that a test starts has ended, and is collected."""
    with no_child_left():
        yield


def commands(allow: Sequence[str] = ALLOWED, environment: dict[str, str] | None = None) -> Commands:
    """Commands with the PATH of this process, if no other."""
    return Commands(allow, {"PATH": os.environ["PATH"]} if environment is None else environment)


def result_of(*command: str, **options: Any) -> dict[str, Any]:
    """What comes of a command."""
    found: dict[str, Any] = run(commands(**options).run(command, run_context()))
    return found


def failure_of(*command: str, **options: Any) -> Any:
    """How a command fails."""
    with pytest.raises((Fail, RetryLater)) as raised:
        result_of(*command, **options)
    return raised.value


def shell(text: str) -> tuple[str, str, str]:
    """A command that is a shell's."""
    return "sh", "-c", text


# ------------------------------------------------------------------------- what comes of it


@both_loops
def test_command_ends_with_its_status_and_what_it_has_written(new_loop: NewLoop) -> None:
    command = shell("echo out; echo err >&2; printf 'ä'")
    assert run(commands().run(command, run_context()), new_loop) == {
        "exit_status": 0,
        "stdout": "out\nä",
        "stderr": "err\n",
    }


def test_no_shell_sees_the_arguments() -> None:
    assert result_of("echo", "$HOME", "*", ";", "ls", "`id`")["stdout"] == "$HOME * ; ls `id`\n"


def test_command_reads_nothing_and_stands_where_the_service_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with words_on_standard_input():
        assert result_of("cat")["stdout"] == ""
    assert result_of("pwd")["stdout"] == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("script", "words", "details"),
    [
        ("exit 3", "the command ended with exit status 3", ""),
        (
            "echo no such table >&2; exit 1",
            "the command ended with exit status 1: no such table",
            "no such table\n",
        ),
        ("kill -9 $$", "the command ended by signal SIGKILL", ""),
        (
            "printf '%5000s' end >&2; exit 1",
            "the command ended with exit status 1: end",
            f"{'end':>5000}",
        ),
    ],
)
def test_exit_status_decides(script: str, words: str, details: str) -> None:
    failure = failure_of(*shell(script))
    assert isinstance(failure, RetryLater)
    assert (str(failure), failure.after, failure.details) == (words, None, details)


def test_failure_shows_the_end_of_the_error_output() -> None:
    script = "import sys; sys.exit('y' * 3000 + 'z')"
    words = str(failure_of(PYTHON, "-c", script))
    assert words == "the command ended with exit status 1: " + "y" * 1999 + "z"


@both_loops
def test_of_great_output_the_end_is_kept(new_loop: NewLoop) -> None:
    script = """
import sys
for number in range(300_000):
    sys.stdout.write(f"out {number}\\n")
    sys.stderr.write(f"err {number}\\n")
"""
    result = run(commands().run([PYTHON, "-c", script], run_context()), new_loop)
    assert (len(result["stdout"]), len(result["stderr"])) == (TAIL, TAIL)
    assert result["stdout"].endswith("out 299998\nout 299999\n")
    assert result["stderr"].endswith("err 299998\nerr 299999\n")
    assert result["truncated"] is True


@pytest.mark.parametrize(
    ("number", "stream", "truncated"),
    [(TAIL, "stdout", False), (TAIL + 1, "stdout", True), (TAIL + 1, "stderr", True)],
)
def test_output_is_cut_only_where_it_is_too_long(number: int, stream: str, truncated: bool) -> None:
    script = f"import sys; sys.{stream}.write('x' * {number})"
    result = result_of(PYTHON, "-c", script)
    assert result.get("truncated", False) is truncated
    assert len(result[stream]) == TAIL


def test_output_that_is_no_text_becomes_text() -> None:
    assert result_of(*shell(r"printf 'a\000b\377c'"))["stdout"] == "a\ufffdb\ufffdc"


# ---------------------------------------------------------------------------- what is run


def test_without_programs_to_allow_none_is_run() -> None:
    refusal = commands([]).refusal(["echo"])
    assert refusal == "Commands are switched off: COMMAND_ALLOW, in the configuration, names none."
    failure = failure_of("echo", allow=[])
    assert isinstance(failure, Fail)
    assert str(failure) == refusal


@pytest.mark.parametrize("program", ["ls", "/bin/echo", "./echo", "echo ", "ECHO", "sh/../ls"])
def test_program_must_be_allowed_as_it_is_written(program: str) -> None:
    refusal = commands(["echo", "/bin/sh"]).refusal([program, "a"])
    assert refusal == f"The program {program!r} is not allowed here. Allowed: echo, /bin/sh."
    assert str(failure_of(program, "a", allow=["echo", "/bin/sh"])) == refusal


def test_program_that_is_allowed_is_not_refused() -> None:
    assert commands(["echo", "/bin/sh"]).refusal(["echo", "a"]) is None
    assert commands(["echo", "/bin/sh"]).refusal(["/bin/sh"]) is None
    assert result_of("/bin/sh", "-c", "echo $0", allow=["/bin/sh"])["stdout"] == "/bin/sh\n"


def test_name_is_looked_up_in_the_path_that_was_given(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.write_text("#!/bin/sh\n/bin/echo not the usual one\n")
    program.chmod(0o755)
    found = result_of("echo", "a", environment={"PATH": str(tmp_path)})
    assert found["stdout"] == "not the usual one\n"


def test_program_that_cannot_be_started_fails_for_good(tmp_path: Path) -> None:
    (tmp_path / "no-program").write_text("")
    (tmp_path / "nonsense").write_bytes(b"\x7fELF")
    (tmp_path / "nonsense").chmod(0o755)
    for program, reason in (
        (str(tmp_path / "missing"), "No such file or directory"),
        ("missing", "No such file or directory"),
        (str(tmp_path / "no-program"), "Permission denied"),
        (str(tmp_path / "nonsense"), "Exec format error"),
    ):
        failure = failure_of(program, allow=[program])
        assert isinstance(failure, Fail)
        assert str(failure) == f"the command could not be started: {reason}"
    assert "embedded null byte" in str(failure_of("echo", "a\0b"))


def test_command_that_finds_no_room_is_tried_again() -> None:
    async def scenario() -> None:
        # Enough for the two pipes of its output, and that to us.
        with few_descriptors(6), pytest.raises(RetryLater) as raised:
            await commands().run(["echo"], run_context())
        assert str(raised.value) == "the command could not be started: Too many open files"
        assert (await commands().run(["echo"], run_context()))["stdout"] == "\n"

    run(scenario())


# --------------------------------------------------------------------------- the environment


def test_command_gets_little_of_the_services_environment() -> None:
    services = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/a",
        "USER": "a",
        "LANG": "C",
        "LC_ALL": "C.UTF-8",
        "LC_TIME": "C",
        "TZ": "UTC",
        "TMPDIR": "/tmp",  # noqa: S108 (a value)
        "DB_URL": "postgresql://u:hunter2@h/d",
        "PGHOST": "db",
        "PGPASSFILE": "/run/pass",
        "XLANG": "x",
        "LC_": "x",
        "PATHS": "x",
    }
    passed_on = environment_of_commands(services, ["PGHOST", "PGUSER"])
    given = dict(
        line.split("=", 1)
        for line in result_of("env", environment=passed_on)["stdout"].splitlines()
    )
    assert len(given.pop(MARK)) == 32
    usual = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_TIME", "TZ", "TMPDIR", "PGHOST")
    assert given == {name: services[name] for name in usual} | {
        "JOB_SCHEDULER_TASK_ID": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61",
        "JOB_SCHEDULER_ATTEMPT": "2",
        "JOB_SCHEDULER_SCHEDULED_FOR": "2027-07-01T10:00:00Z",
    }


# ------------------------------------------------------------------------ when it is cut off

BEGIN = """
import json, os, signal, subprocess, sys, time
def end(number, frame):
    open(sys.argv[1] + ".terminated", "w").close()
    if sys.argv[2] == "ends":
        sys.exit()
signal.signal(signal.SIGTERM, end)
stubborn = [sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"]
pids = [os.getpid(), subprocess.Popen(stubborn).pid]
pids.append(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
with open(sys.argv[1] + ".draft", "w") as file:
    json.dump(pids, file)
os.rename(sys.argv[1] + ".draft", sys.argv[1])
while True:
    time.sleep(1000)
"""


@both_loops
@pytest.mark.parametrize("manner", ["ends", "goes on"])
def test_cancelling_terminates_a_command_and_then_kills_whatever_it_has_started(
    new_loop: NewLoop, manner: str, tmp_path: Path
) -> None:
    file = tmp_path / "pids"

    async def scenario() -> None:
        command = [PYTHON, "-c", BEGIN, str(file), manner]
        running = asyncio.create_task(commands().run(command, run_context()))
        pids = await noted(file)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: gone(*pids), "the end of all three")
        assert file.with_name("pids.terminated").exists()

    run(scenario(), new_loop)


def test_child_that_holds_the_output_open_holds_nothing_up() -> None:
    # The first goes with the group; the second has left it, on purpose.
    script = (
        "import os, subprocess as s; "
        "pids = [s.Popen(['sleep', '1000'], start_new_session=away).pid for away in (False, True)];"
        "print(*pids)"
    )
    child, stray = map(int, result_of(PYTHON, "-c", script)["stdout"].split())

    async def scenario() -> None:
        await until(lambda: gone(child), "the end of the child")

    run(scenario())
    assert not gone(stray)
    os.kill(stray, signal.SIGKILL)


PARENT = """
import asyncio, os, sys
from job_scheduler.core.handlers.processes.commands import Commands
from tests.support.processes import run_context
asyncio.run(Commands(["sh"], os.environ).run(["sh", "-c", sys.argv[1]], run_context()))
"""


def test_command_does_not_outlive_a_service_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    ignored = f"trap '' HUP INT TERM {signal.SIGIO:d}"
    script = f"{ignored}; sleep 1000 & echo [$$,$!] > {file}.draft; mv {file}.draft {file}; wait"
    with subprocess.Popen([PYTHON, "-c", PARENT, script], cwd=ROOT) as service:
        pids: list[int] = asyncio.run(noted(file))
        assert not any(gone(pid) for pid in pids)
        service.kill()
    run(until(lambda: gone(*pids), "the end of the command"))


# --------------------------------------------------------------------- as it is written down

ADAPTER: TypeAdapter[list[str]] = TypeAdapter(Command)


@pytest.mark.parametrize(
    "command", [["a"], ["a", ""], ["ä", "b c"], ["a"] * 100, ["a" * 4096, "b" * 4096]]
)
def test_command_is_a_program_with_arguments(command: list[str]) -> None:
    assert ADAPTER.validate_python(command) == command
    assert ADAPTER.validate_json(json.dumps(command)) == command


@pytest.mark.parametrize(
    "command",
    [
        *(None, "ls", {"0": "ls"}, 1, [], [""], ["", "a"], [1], ["a", None], ["a", True]),
        *(["a"] * 101, ["a", "b" * 4097], ["a" * 4097], ["a\0"], ["a", "b\0c"]),
    ],
)
def test_what_is_no_command_is_refused_with_what_it_must_be(command: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        ADAPTER.validate_python(command)
    [details] = refusal.value.errors()
    assert details["type"] == "command"
    assert details["msg"].startswith("Must be a JSON array of 1 to 100 texts")


def test_schema_of_a_command_says_the_same() -> None:
    part = {"type": "string", "maxLength": 4096, "pattern": r"^[^\x00]*$"}
    assert ADAPTER.json_schema() == {
        "type": "array",
        "minItems": 1,
        "maxItems": 100,
        "prefixItems": [part | {"minLength": 1}],
        "items": part,
    }
