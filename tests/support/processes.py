"""What tests of worker processes and commands share: a run's context, and looks at processes."""

import asyncio
import gc
import json
import os
import resource
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop

from job_scheduler import RunContext
from job_scheduler.core.handlers.context import Progress
from job_scheduler.process import process_started
from tests.support.services import wait_until

NewLoop = Callable[[], asyncio.AbstractEventLoop]

both_loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def run(scenario: Coroutine[Any, Any, Any], new_loop: NewLoop = asyncio.new_event_loop) -> Any:
    """Run a scenario, within bounds."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(asyncio.wait_for(scenario, 60))


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Wait for a condition while the loop turns."""
    await asyncio.to_thread(wait_until, condition, 20, what)


def run_context(reports: list[Progress] | None = None, **overrides: Any) -> RunContext:
    """The context of some run; `reports` collects its progress."""
    members: dict[str, Any] = {
        "task_id": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61",
        "name": "probe",
        "attempt": 2,
        "token": "a token",
        "scheduled_for": datetime(2027, 7, 1, 10, tzinfo=UTC),
        "deadline": datetime(2027, 7, 1, 11, tzinfo=UTC),
        "report": ([] if reports is None else reports).append,
    }
    return RunContext(**members | overrides)


async def noted(file: Path) -> list[int]:
    """The process ids that a program writes into a file."""
    await until(file.exists, "the note")
    pids: list[int] = json.loads(await asyncio.to_thread(file.read_text))
    return pids


def gone(*pids: int) -> bool:
    """Whether all these processes have ended."""
    return not any(process_started(pid) for pid in pids)


def children() -> set[int]:
    """The ids of this process's own children, ended ones that nobody has collected included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:
            continue  # It has just ended.
        if int(text.rpartition(")")[2].split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@contextmanager
def no_child_left() -> Iterator[None]:
    """See to it that each child of the block has ended, and is collected; files are closed, too."""
    run(asyncio.sleep(0), uvloop.new_event_loop)  # The first one opens files that stay.
    before, opened = children(), set(os.listdir("/proc/self/fd"))
    yield
    wait_until(lambda: children() <= before, 10, "the end of all children")
    gc.collect()  # What was not closed complains here, not in the next test.
    assert set(os.listdir("/proc/self/fd")) <= opened


@contextmanager
def words_on_standard_input() -> Iterator[None]:
    """Have something to read on this process's standard input."""
    usual = os.dup(0)
    read_end, write_end = os.pipe()
    os.write(write_end, b"for the service alone")
    os.close(write_end)
    os.dup2(read_end, 0)
    os.close(read_end)
    try:
        yield
    finally:
        os.dup2(usual, 0)
        os.close(usual)


@contextmanager
def few_descriptors(allowed: int) -> Iterator[None]:
    """Let this process open so many more files, and no others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.dup(2) for _ in range(allowed + 1)]
    for each in opened:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
