"""APScheduler as it is used here: on the event loop, with few wake-ups."""

from math import ceil

from apscheduler.schedulers.asyncio import AsyncIOScheduler


class LoopScheduler(AsyncIOScheduler):  # type: ignore[misc]
    """Looks once for what is due however many jobs were added in one turn of the event loop, and
    seldom before their time.

    Its parent looks once for each, which at a thousand tasks a second is most of the timer's work;
    and, since the clock of the fast event loop ticks in milliseconds, again and again through the
    last one before a job is due.
    """

    _will_look = False

    def wakeup(self) -> None:
        """Look for what is due at the next turn of the loop."""
        if not self._will_look:
            super().wakeup()
            self._will_look = True

    def _process_jobs(self) -> float | None:
        self._will_look = False
        seconds: float | None = super()._process_jobs()
        return seconds

    def _start_timer(self, wait_seconds: float | None) -> None:
        super()._start_timer(wait_seconds and ceil(wait_seconds * 1_000) / 1_000)
