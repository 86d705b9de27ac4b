"""How a handler is called, and how what it does becomes an outcome."""

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any

from job_scheduler.constants import UnknownTasks
from job_scheduler.core.claims import Claim
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.outcomes import Failed, Outcome, Succeeded
from job_scheduler.strict_json import as_result, clean_text
from job_scheduler.threads import DaemonThreads

_logger = logging.getLogger(__name__)

_ERROR_MAX_LENGTH = 10_000


class Caller:
    """Calls the handler of a claimed task: an async one on the loop, a plain one in a thread."""

    def __init__(
        self, registry: HandlerRegistry, threads: DaemonThreads, unknown_tasks: UnknownTasks
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._unknown_tasks = unknown_tasks
        self._calls: set[asyncio.Future[Outcome]] = set()
        self._interrupted = False

    async def call(self, claim: Claim) -> Outcome:
        """Run the handler of `claim` to its end; never raises."""
        handler = self._registry.get(claim.name)
        if handler is None:
            return self._without_handler(claim)
        call: asyncio.Future[Outcome]
        if handler.is_async:
            call = asyncio.ensure_future(_outcome_of_async(claim, handler.function))
        else:
            call = self._threads.submit(lambda: _outcome_of(claim, handler.function))
        self._calls.add(call)
        if self._interrupted:
            call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            reason = "the service stopped" if self._interrupted else "its handler was cancelled"
            return Failed(f"interrupted: {reason} before it finished")
        finally:
            self._calls.discard(call)

    def interrupt(self) -> None:
        """Cut off what is running; a plain handler's thread is left to itself."""
        self._interrupted = True
        for call in self._calls:
            call.cancel()

    def _without_handler(self, claim: Claim) -> Outcome:
        if self._unknown_tasks is UnknownTasks.Reject:
            return Failed(f"no task handler is named {claim.name!r} in this release")
        late = (claim.started_at - claim.due).total_seconds()
        return Succeeded(
            {
                "message": f"No task handler is named {claim.name!r}: "
                "nothing was run, the task only kept the time.",
                "fired_at": claim.started_at.isoformat().replace("+00:00", "Z"),
                "late_seconds": round(late, 6),
            }
        )


async def _outcome_of_async(claim: Claim, function: Callable[..., Any]) -> Outcome:
    try:
        return _outcome_of_value(await function(**claim.payload))
    except asyncio.CancelledError:
        raise  # It is the run that was interrupted.
    except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
        return _failure(claim, error)


def _outcome_of(claim: Claim, function: Callable[..., Any]) -> Outcome:
    try:
        return _outcome_of_value(function(**claim.payload))
    except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
        return _failure(claim, error)


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


def _failure(claim: Claim, error: BaseException) -> Failed:
    _logger.warning("task %s (%s) failed", claim.task_id, claim.name, exc_info=error)
    message = "".join(traceback.format_exception_only(error)).strip()
    return Failed(clean_text(message[:_ERROR_MAX_LENGTH]))
