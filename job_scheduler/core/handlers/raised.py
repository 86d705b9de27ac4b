"""What a handler raises to decide by itself what follows on its failure."""

from datetime import timedelta

from job_scheduler.constants import SECONDS_MAX


class Fail(Exception):
    """The task is failed, and not tried again; the text is its result."""


class RetryLater(Exception):
    """The task is tried again `after` some seconds, while attempts are left.

    `reason` is kept in the history, and as the result when no attempt was left.

    Raises:
        ValueError: `after` is negative, or beyond a year.
    """

    def __init__(self, after: float | timedelta, reason: str = "the handler asked for a retry"):
        super().__init__(reason)
        self.after = after.total_seconds() if isinstance(after, timedelta) else float(after)
        if not 0 <= self.after <= SECONDS_MAX:
            raise ValueError(
                f"RetryLater: after must be from 0 to {SECONDS_MAX} seconds, not {after}"
            )
