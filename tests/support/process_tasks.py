"""Handlers for worker processes, which find them here by their names."""

import os
import subprocess
import sys
import time

from job_scheduler import RunContext
from job_scheduler.core.handlers.registry import HandlerRegistry

isolated = HandlerRegistry()


@isolated.task("where", isolation="process")
def where(context: RunContext) -> dict[str, object]:
    """Tell which process this is, and say so on the way."""
    context.progress(0.5, "half-way")
    return {"pid": os.getpid(), "attempt": context.attempt, "name": context.name}


@isolated.task("fall", isolation="process", max_attempts=2, retry_delay=0)
def fall() -> None:
    """End the process without a word."""
    os._exit(3)


@isolated.task("devour", isolation="process")
def devour() -> int:
    """Take all memory that there is."""
    return len(bytearray(1 << 40))


@isolated.task("linger", isolation="process")
def linger(context: RunContext) -> None:
    """Start a program, and wait for it for ever."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as child:
        context.progress(0, str(child.pid))
        while True:
            time.sleep(3600)  # noqa: TID251 (it is to be killed)
