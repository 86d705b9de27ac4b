"""What a task's result says of an exception, or of a return value that is none."""

import traceback
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator

from job_scheduler.core.handlers.raised import Verdict
from job_scheduler.strict_json import clean_text

_MAX_LENGTH = 10_000


def words_of(error: BaseException) -> str:
    """Return an exception as text: a handler's own verdict by its reason alone."""
    if isinstance(error, Verdict):
        text = str(error)
    else:
        text = "".join(traceback.format_exception_only(error)).strip()
    return clean_text(text[:_MAX_LENGTH])


def undone(value: object) -> str | None:
    """Say so where a handler returned work that was only announced: it is not done by that."""
    if not isinstance(value, Awaitable | Generator | AsyncGenerator):
        return None
    if isinstance(value, Coroutine):
        value.close()
    return (
        f"the handler returned a {type(value).__name__} instead of doing its work: register "
        "the async function itself, or wrap it in one that is async"
    )
