"""The task handlers of a chaos run: they note start and end in the ledger, and work in between.

The instances import this module by ``TASK_MODULES``.
"""

import asyncio
import os
import threading

from job_scheduler import Fail, RunContext, task
from job_scheduler.chaos.ledger import LEDGER_VARIABLE, Entry, Event, append
from job_scheduler.chaos.plan import HandlerKind
from job_scheduler.clock import SystemClock

_clock = SystemClock()


class ChaosError(Fail):
    """Raised where the plan says that a handler fails, for good; it names the run's token."""


@task(HandlerKind.Async.value)
async def chaos_async(context: RunContext, seconds: float, fails: bool) -> dict[str, object]:
    """Take `seconds` on the event loop."""
    _note(Event.Start, context)
    await asyncio.sleep(seconds)
    _note(Event.End, context)
    return _result(context, fails)


@task(HandlerKind.Thread.value)
def chaos_thread(context: RunContext, seconds: float, fails: bool) -> dict[str, object]:
    """Take `seconds` in a thread."""
    _note(Event.Start, context)
    threading.Event().wait(seconds)
    _note(Event.End, context)
    return _result(context, fails)


def _note(event: Event, context: RunContext) -> None:
    now = _clock.now().timestamp()
    entry = Entry(event, now, context.task_id, context.attempt, context.token, os.getpid())
    append(os.environ[LEDGER_VARIABLE], entry)


def _result(context: RunContext, fails: bool) -> dict[str, object]:
    if fails:
        raise ChaosError(context.token)
    return {"token": context.token, "attempt": context.attempt}
