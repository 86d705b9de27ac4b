"""How a handler is called, and how what it does becomes an outcome."""

import asyncio
import logging
import random
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any

from pydantic import ValidationError

from job_scheduler.clock import in_iso_8601
from job_scheduler.constants import UnknownTasks
from job_scheduler.core.claims import Claim
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.core.handlers.registry import Handler, HandlerRegistry
from job_scheduler.core.outcomes import (
    CutOff,
    Failed,
    NotStarted,
    Outcome,
    RetryIn,
    Succeeded,
    TooLate,
)
from job_scheduler.core.places import Place
from job_scheduler.exceptions import in_words
from job_scheduler.strict_json import as_result, clean_text
from job_scheduler.threads import DaemonThreads

_logger = logging.getLogger(__name__)

_ERROR_MAX_LENGTH = 10_000
_CANCEL_SECONDS = 1.0
"""How long an async handler may take to end once it is cancelled."""
_EXPIRED = "expired: it was to be started before {} or not at all, and could not be in time"


class _Call:
    """One call of a handler: begun, or called off before, but never both."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.context = RunContext(claim.task_id, claim.attempt, claim.token)
        self.future: asyncio.Future[Outcome]
        self.reason: str | None = None
        self._turn = threading.Lock()
        self.has_begun = False

    def begin(self) -> bool:
        """Tell whether the handler may be called: not when the call was called off before."""
        self.has_begun = self._turn.acquire(blocking=False)
        return self.has_begun

    def call_off(self) -> bool:
        """See to it that it does not begin any more; tell whether it has."""
        self._turn.acquire(blocking=False)
        return self.has_begun

    def cut_off(self, reason: str) -> None:
        """End it; a plain handler that has begun is left to itself."""
        self.context.ask_to_stop()
        self.reason = reason
        self.call_off()
        self.future.cancel()


class Caller:
    """Calls the handler of a claimed task: an async one on the loop, a plain one in a thread."""

    def __init__(
        self, registry: HandlerRegistry, threads: DaemonThreads, unknown_tasks: UnknownTasks
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._unknown_tasks = unknown_tasks
        self._calls: set[_Call] = set()
        self._stopping = False

    async def call(self, claim: Claim, place: Place) -> Outcome:
        """Run the handler of `claim` to its end, or to that of its time; never raises.

        A handler that goes on past its time keeps the `place` until it has ended.
        """
        if self._stopping:
            return NotStarted()
        if claim.start_before is not None and claim.started_at > claim.start_before:
            return TooLate(_EXPIRED.format(in_iso_8601(claim.start_before)))
        handler = self._registry.get(claim.name)
        if handler is None:
            return self._without_handler(claim)
        try:
            arguments = handler.arguments.parse(claim.payload)
        except ValidationError:
            # It was posted to another release, or written into the table by hand.
            return _misfit(handler, claim)
        call = _Call(claim)
        if handler.context is not None:
            arguments[handler.context] = call.context
        self._calls.add(call)
        try:
            return await self._outcome(call, handler, arguments, place)
        except asyncio.CancelledError:
            if not call.has_begun:
                return NotStarted()
            if call.reason is None:
                return Failed("interrupted: its handler was cancelled before it finished")
            return CutOff(call.reason)
        finally:
            self._calls.discard(call)

    async def _outcome(
        self, call: _Call, handler: Handler, arguments: dict[str, Any], place: Place
    ) -> Outcome:
        if handler.is_async:
            run = _outcome_of_async(call, handler, arguments)
            call.future = asyncio.get_running_loop().create_task(run)
        else:
            call.future = self._threads.submit(lambda: _outcome_of(call, handler, arguments))
        timeout = handler.options.timeout if call.claim.timeout is None else call.claim.timeout
        if timeout is None:
            return await call.future
        done, _ = await asyncio.wait([call.future], timeout=timeout)
        return call.future.result() if done else await _time_out(call, handler, place)

    def stop(self) -> None:
        """Call no handler any more, and ask those that run to come to an end."""
        self._stopping = True
        for call in self._calls:
            call.context.ask_to_stop()

    def cut_off(self, reason: str, which: Callable[[Claim], bool] = lambda _: True) -> None:
        """End the runs of these claims; a plain handler's thread goes on by itself."""
        for call in list(self._calls):
            if which(call.claim):
                call.cut_off(reason)

    def _without_handler(self, claim: Claim) -> Outcome:
        if self._unknown_tasks is UnknownTasks.Reject:
            return Failed(f"no task handler is named {claim.name!r} in this release")
        late = (claim.started_at - claim.due).total_seconds()
        return Succeeded(
            {
                "message": f"No task handler is named {claim.name!r}: "
                "nothing was run, the task only kept the time.",
                "fired_at": in_iso_8601(claim.started_at),
                "late_seconds": round(late, 6),
            }
        )


async def _time_out(call: _Call, handler: Handler, place: Place) -> Outcome:
    """End a call whose time is over, or leave it to itself if it does not end."""
    claim = call.claim
    call.context.ask_to_stop()
    if handler.is_async:
        call.future.cancel()
        await asyncio.wait([call.future], timeout=_CANCEL_SECONDS)
    elif not call.call_off():
        return NotStarted()  # No thread had taken it up.
    if not call.future.done():
        place.lose_until(call.future)
        _logger.warning(
            "task %s (%s) has timed out and goes on: its place is lost until it ends",
            *(claim.task_id, claim.name),
        )
    return _again(claim, handler, "timed out: its handler had not ended in its time")


async def _outcome_of_async(call: _Call, handler: Handler, arguments: dict[str, Any]) -> Outcome:
    call.begin()
    try:
        return _outcome_of_value(await handler.function(**arguments))
    except asyncio.CancelledError:
        raise  # It is the run that was cut off.
    except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
        return _failure(call.claim, handler, error)


def _outcome_of(call: _Call, handler: Handler, arguments: dict[str, Any]) -> Outcome:
    if not call.begin():
        return NotStarted()
    try:
        return _outcome_of_value(handler.function(**arguments))
    except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
        return _failure(call.claim, handler, error)


def _outcome_of_value(value: object) -> Outcome:
    if isinstance(value, Awaitable | Generator | AsyncGenerator):
        # Work that was only announced. To call that done would be a lie.
        if isinstance(value, Coroutine):
            value.close()
        return Failed(
            f"the handler returned a {type(value).__name__} instead of doing its work: register "
            "the async function itself, or wrap it in one that is async"
        )
    return Succeeded(as_result(value))


def _misfit(handler: Handler, claim: Claim) -> Failed:
    words = in_words(handler.arguments.faults(claim.payload))
    return Failed(clean_text(f"the payload does not fit the handler: {words}"[:_ERROR_MAX_LENGTH]))


def _failure(claim: Claim, handler: Handler, error: BaseException) -> Outcome:
    _logger.warning(
        "task %s (%s) failed, attempt %d of %d",
        *(claim.task_id, claim.name, claim.attempt, claim.max_attempts),
        exc_info=error,
    )
    if isinstance(error, Fail | RetryLater):
        message = str(error)
    else:
        message = "".join(traceback.format_exception_only(error)).strip()
    message = clean_text(message[:_ERROR_MAX_LENGTH])
    if isinstance(error, (Fail, *handler.options.no_retry_for)):
        return Failed(message)
    if isinstance(error, RetryLater):
        return RetryIn(message, error.after)
    return _again(claim, handler, message)


def _again(claim: Claim, handler: Handler, message: str) -> RetryIn:
    backoff = handler.options.backoff(claim.retry_delay, claim.retry_max_delay)
    return RetryIn(message, backoff.seconds_after(claim.attempt, random.random()))  # noqa: S311
