"""How the work of a task is called, and how what it does becomes an outcome."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial

from job_scheduler.constants import RESULT_MAX_BYTES
from job_scheduler.core import own_words
from job_scheduler.core.claims import Claim
from job_scheduler.core.handlers.context import Progress, RunContext
from job_scheduler.core.handlers.failing import again, failure
from job_scheduler.core.handlers.words import undone
from job_scheduler.core.handlers.works import Work, Works
from job_scheduler.core.outcomes import (
    Cancelled,
    CutOff,
    Failed,
    NotStarted,
    Outcome,
    RetryIn,
    Succeeded,
    TooLate,
)
from job_scheduler.core.places import Place
from job_scheduler.strict_json import as_result
from job_scheduler.threads import DaemonThreads

_logger = logging.getLogger(__name__)

_CANCEL_SECONDS = 3.0
"""How long async work may take to end once it is cancelled: a command gets a second of it."""
_CANCELLED = "cancelled while it ran"


class _Call:
    """One call of some work: begun, or called off before, but never both."""

    def __init__(self, claim: Claim, work: Work, context: RunContext) -> None:
        self.claim = claim
        self.work = work
        self.context = context
        self.future: asyncio.Future[Outcome]
        self.reason: str | None = None
        self.is_cancelled = False
        self._turn = threading.Lock()
        self.has_begun = False

    def begin(self) -> bool:
        """Tell whether the work may be called: not when the call was called off before."""
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

    def cancel(self) -> None:
        """End it at a person's request; a plain handler that has begun is asked, and waited for."""
        self.is_cancelled = True
        self.context.ask_to_stop()
        if not self.call_off() or self.work.is_async:
            self.future.cancel()

    def ending(self, outcome: Outcome) -> Outcome:
        """Return what the run came to, when the work came to this.

        One that was to be cancelled has done its work all the same if it returned without having
        looked whether it should stop.
        """
        match outcome:
            case Succeeded(said) if self.is_cancelled and self.context.was_told_to_stop:
                return Cancelled(said)
            case Failed(said) | RetryIn(said) if self.is_cancelled:
                return Cancelled(said)
            case _:
                return outcome


class Caller:
    """Calls the work of a claimed task: on the loop if it is async, else in a thread.

    What the work says of its progress is passed on to `report`, with the claim. Of a result of more
    than `max_result_bytes` the beginning is kept.
    """

    def __init__(
        self,
        works: Works,
        threads: DaemonThreads,
        report: Callable[[Claim, Progress], None],
        max_result_bytes: int = RESULT_MAX_BYTES,
    ) -> None:
        self._max_result_bytes = max_result_bytes
        self._works = works
        self._threads = threads
        self._report = report
        self._calls: set[_Call] = set()
        self._stopping = False

    async def call(self, claim: Claim, place: Place) -> Outcome:
        """Run the work of `claim` to its end, or to that of its time; never raises.

        A handler that goes on past its time keeps the `place` until it has ended.
        """
        if self._stopping:
            return NotStarted()
        if claim.start_before is not None and claim.started_at > claim.start_before:
            return TooLate(own_words.expired(claim.start_before))
        work = self._works.of(claim)
        if not isinstance(work, Work):
            return work
        timeout = work.options.timeout if claim.timeout is None else claim.timeout
        call = _Call(claim, work, self._context(claim, timeout))
        self._calls.add(call)
        try:
            return call.ending(await self._outcome(call, timeout, place))
        except asyncio.CancelledError:
            if not call.has_begun:
                return NotStarted()
            if call.is_cancelled:
                return Cancelled(_CANCELLED)
            if call.reason is None:
                return Failed("interrupted: its handler was cancelled before it finished")
            return CutOff(call.reason)
        finally:
            self._calls.discard(call)

    def _context(self, claim: Claim, timeout: float | None) -> RunContext:
        return RunContext(
            claim.task_id,
            claim.name,
            claim.attempt,
            claim.token,
            claim.due,
            None if timeout is None else claim.started_at + timedelta(seconds=timeout),
            partial(self._report, claim),
        )

    async def _outcome(self, call: _Call, seconds: float | None, place: Place) -> Outcome:
        if call.work.is_async:
            run = self._outcome_of_async(call)
            call.future = asyncio.get_running_loop().create_task(run)
        else:
            call.future = self._threads.submit(lambda: self._outcome_of(call))
        if seconds is None:
            return await call.future
        done, _ = await asyncio.wait([call.future], timeout=seconds)
        return call.future.result() if done else await _time_out(call, seconds, place)

    async def _outcome_of_async(self, call: _Call) -> Outcome:
        call.begin()
        try:
            return self._outcome_of_value(await call.work.call(call.context))
        except asyncio.CancelledError:
            raise  # It is the run that was cut off.
        except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
            return failure(call.claim, call.work.options, error)

    def _outcome_of(self, call: _Call) -> Outcome:
        if not call.begin():
            return NotStarted()
        try:
            return self._outcome_of_value(call.work.call(call.context))
        except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
            return failure(call.claim, call.work.options, error)

    def _outcome_of_value(self, value: object) -> Outcome:
        if (problem := undone(value)) is not None:
            return Failed(problem)
        return Succeeded(as_result(value, self._max_result_bytes))

    def stop(self) -> None:
        """Call nothing any more, and ask what runs to come to an end."""
        self._stopping = True
        for call in self._calls:
            call.context.ask_to_stop()

    def cut_off(self, reason: str, which: Callable[[Claim], bool] = lambda _: True) -> None:
        """End the runs of these claims; a plain handler's thread goes on by itself."""
        for call in list(self._calls):
            if which(call.claim):
                call.cut_off(reason)

    def cancel(self, tokens: Collection[str]) -> None:
        """End the runs under these tokens at a person's request; repeating it changes nothing."""
        for call in list(self._calls):
            if call.claim.token in tokens and not call.is_cancelled:
                call.cancel()


async def _time_out(call: _Call, seconds: float, place: Place) -> Outcome:
    """End a call whose time is over, or leave it to itself if it does not end."""
    claim = call.claim
    call.context.ask_to_stop()
    if call.work.is_async:
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
    return again(claim, call.work.options, f"timed out: it had not ended after {seconds:g} s")
