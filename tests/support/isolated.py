"""Handlers for worker processes, which import them from here."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from job_scheduler import Fail, RetryLater, RunContext
from job_scheduler.core.handlers.processes.frames import Returned, answer

FOR_EVER = ["sleep", "1000"]


@dataclass
class Size:
    """An argument of a user's own type."""

    width: int


class OnPurpose(Exception):
    """An error of a user's own type."""


def note(file: str, *pids: int) -> None:
    """Write process ids into a file, which is there when they are all in it."""
    draft = Path(f"{file}.{os.getpid()}")
    draft.write_text(json.dumps(pids))
    draft.rename(file)


# ----------------------------------------------------------------------- handlers that return


def own_pid() -> int:
    """Tell which process this is."""
    return os.getpid()


def describe(size: Size, day: date, others: dict[str, Any]) -> dict[str, Any]:
    """Return what was given."""
    return {"size": size, "day": day, "others": others}


def tell(run: RunContext, number: int) -> list[Any]:
    """Return what the context says."""
    run.logger.info("a word in the log")
    run.logger.debug("another word")
    told = [run.task_id, run.name, run.attempt, run.token, run.should_stop]
    return [*told, run.scheduled_for, run.deadline, number]


def surroundings() -> dict[str, Any]:
    """Tell how the process stands."""
    return {
        "directory": str(Path.cwd()),
        "path": sys.path,
        "arguments": sys.argv,
        "input": sys.stdin.read(),
        "session": os.getsid(0) == os.getpgrp() == os.getpid(),
        "default signals": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "address space": resource.getrlimit(resource.RLIMIT_AS),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "log level": logging.getLogger("job_scheduler").level,
        "arenas": os.environ.get("MALLOC_ARENA_MAX"),
        "modules": sorted(sys.modules),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def nap(seconds: float) -> None:
    """Take some time."""
    threading.Event().wait(seconds)


def talk() -> str:
    """Print this and that."""
    print("printed")  # noqa: T201 (that is what it is for)
    print("complained", file=sys.stderr)  # noqa: T201
    os.write(1, b"written\n")
    return "said"


def unserializable() -> object:
    """Return what has no JSON form."""
    return threading.Lock()


def echo(text: str) -> str:
    """Return what was given."""
    return text


def odd() -> list[Any]:
    """Return what not every JSON parser reads."""
    return [2**70, float("nan"), "half \ud800", {"a": [[[]]]}, 1e22]


def report_often(context: RunContext, times: int) -> None:
    """Report progress as fast as it goes, and then wait to be stopped."""
    for number in range(times):
        context.progress(number / times, number)  # type: ignore[arg-type]  # a careless user's
    context.progress(1.0, "half \ud800" + "x" * 20_000)
    while not context.should_stop:
        threading.Event().wait(0.01)


def until_asked(context: RunContext, number: int = 0) -> str:
    """Say that it has begun, and go on until it is asked to stop."""
    context.progress(0.5, None)
    while not context.should_stop:
        threading.Event().wait(0.01)
    return f"as asked {number}"


# ------------------------------------------------------------------------ handlers that fail


def raise_one(kind: str) -> Any:
    """Raise one error or another."""
    match kind:
        case "fail":
            raise Fail("never again")
        case "later":
            raise RetryLater(7, "the bank is busy")
        case "some time":
            raise RetryLater
        case "purpose":
            raise OnPurpose("I meant it")
        case "exit":
            sys.exit(3)
        case "long":
            raise ValueError("y" * 100_000)
    raise ValueError("half \ud800")


async def asynchronous() -> None:
    """Do nothing, on a loop."""


def generator() -> Generator[int, None, None]:
    """Yield nothing."""
    yield from ()


def hands_over() -> AsyncGenerator[int, None]:
    """Return what would have to be iterated over."""

    async def numbers() -> AsyncGenerator[int, None]:
        yield 1

    return numbers()


def end_process(status: int) -> None:
    """End the process at once."""
    os._exit(status)


def signal_process(number: int) -> None:
    """Send the process a signal."""
    os.kill(os.getpid(), number)
    threading.Event().wait()


def fork_and_end() -> None:
    """End the process, while a copy of it, with all that it had open, goes on."""
    if os.fork():
        os._exit(4)
    threading.Event().wait()


def hang(file: str, astray: bool = False) -> None:
    """Start a child or two, `astray` one in a session of its own, and never return."""
    begun = [os.getpid(), subprocess.Popen(FOR_EVER).pid]
    if astray:
        begun.append(subprocess.Popen(FOR_EVER, start_new_session=True).pid)
    note(file, *begun)
    threading.Event().wait()


def leave_behind(file: str) -> None:
    """Start a child in a session of its own, and return."""
    note(file, os.getpid(), subprocess.Popen(FOR_EVER, start_new_session=True).pid)


def eat() -> None:
    """Take all the memory there is, to the last few bytes."""
    eaten: list[Any] = []
    for exponent in range(23, -1, -1):
        try:
            while True:
                eaten.append([None] * 2**exponent)
        except MemoryError:
            continue
    raise MemoryError


def write_to_the_service(content: str) -> None:
    """Write into the connection to the service, as no handler should."""
    for descriptor in range(3, 100):
        if _target(descriptor).startswith("socket:"):
            os.write(descriptor, bytes.fromhex(content))
    threading.Event().wait()


def speak_of_another() -> str:
    """Say how some other run has ended, as a late word of it would."""
    said = answer(Returned(token="another", result="its result"))
    for descriptor in range(3, 100):
        if _target(descriptor).startswith("socket:"):
            os.write(descriptor, said)
    return "its own result"


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def fork() -> str:
    """Fork, and come back twice."""
    os.fork()
    return "forked"


def close_all() -> None:
    """Close what is open, known or not."""
    os.closerange(3, 256)


def count_up(run: RunContext) -> str:
    """Say very often how far it has come."""
    for step in range(1_000):
        run.progress(step / 1_000)
    run.progress(1.0, "the end")
    return "counted"
