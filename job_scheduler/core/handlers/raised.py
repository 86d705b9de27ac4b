"""What a handler raises to decide by itself what follows on its failure."""

from datetime import timedelta

from job_scheduler.constants import SECONDS_MAX


class Verdict(Exception):
    """What a handler says of its own failure; the text alone is what is said of it.

    `details` is the traceback of where it was raised, if that was in another process.
    """

    details = ""


class Fail(Verdict):
    """The task is failed, and not tried again; the text is its result."""


class RetryLater(Verdict):
    """The task is tried again `after` some seconds, while attempts are left.

    Without `after`, it waits as its retry_delay says. `reason` is kept in the history, and as the
    result when no attempt was left.

    Raises:
        ValueError: `after` is negative, or beyond a year.
    """

    def __init__(
        self,
        after: float | timedelta | None = None,
        reason: str = "the handler asked for a retry",
    ) -> None:
        super().__init__(reason)
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        if seconds is not None and not 0 <= seconds <= SECONDS_MAX:
            raise ValueError(
                f"RetryLater: after must be from 0 to {SECONDS_MAX} seconds, not {after}"
            )
        self.after = None if seconds is None else float(seconds)
