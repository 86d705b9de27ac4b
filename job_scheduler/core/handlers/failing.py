"""What follows when the work of a task raises, or is not done in its time."""

import logging
import random
import traceback

from job_scheduler.core.claims import Claim
from job_scheduler.core.handlers.options import Options
from job_scheduler.core.handlers.raised import Fail, RetryLater, Verdict
from job_scheduler.core.handlers.words import words_of
from job_scheduler.core.outcomes import Failed, Outcome, RetryIn
from job_scheduler.strict_json import clean_text

_logger = logging.getLogger(__name__)

_TRACEBACK_MAX_LENGTH = 20_000


def failure(claim: Claim, options: Options, error: BaseException) -> Outcome:
    """Return what a run came to that has raised `error`, and log it."""
    _logger.warning(
        "task %s (%s) failed, attempt %d of %d",
        *(claim.task_id, claim.name, claim.attempt, claim.max_attempts),
        exc_info=error,
    )
    details = _traceback(error)
    message = words_of(error)
    if isinstance(error, (Fail, *options.no_retry_for)):
        return Failed(message, details)
    if isinstance(error, RetryLater) and error.after is not None:
        return RetryIn(message, error.after, details)
    return again(claim, options, message, details)


def again(claim: Claim, options: Options, message: str, details: str | None = None) -> RetryIn:
    """Return that a run has failed, and is to be repeated after the task's own delay."""
    backoff = options.backoff(claim.retry_delay, claim.retry_max_delay)
    seconds = backoff.seconds_after(claim.attempt, random.random())  # noqa: S311
    return RetryIn(message, seconds, details)


def _traceback(error: BaseException) -> str:
    """Return where the error was raised; of a very long one the end, which says most.

    Unlike JSON, a column of text has no room for NUL.
    """
    elsewhere = error.details if isinstance(error, Verdict) else ""
    details = elsewhere or "".join(traceback.format_exception(error))
    return clean_text(details[-_TRACEBACK_MAX_LENGTH:]).replace("\0", "\ufffd")
