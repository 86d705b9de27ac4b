"""How tasks of one handler are run, where they do not say so themselves."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, TypeAdapter, ValidationError

from job_scheduler.core.fields import Attempts, Places, RetryDelay, Seconds, Timeout
from job_scheduler.core.limits import HandlerLimit
from job_scheduler.core.rates import Rate
from job_scheduler.core.retry import DELAY_SECONDS, MAX_DELAY_SECONDS, Backoff


def _rate(text: str) -> str:
    Rate.parse(text)
    return text


_KINDS: dict[str, TypeAdapter[Any]] = {
    "max_attempts": TypeAdapter(Attempts),
    "retry_delay": TypeAdapter(RetryDelay),
    "retry_max_delay": TypeAdapter(Seconds),
    "timeout": TypeAdapter(Timeout | None),
    "isolation": TypeAdapter(Literal["process"] | None),
    "max_running": TypeAdapter(Places | None),
    "rate_limit": TypeAdapter(Annotated[str, AfterValidator(_rate)] | None),
}


@dataclass(frozen=True, slots=True)
class Options:
    """The defaults of a handler's tasks, as in ``POST /tasks``; times are in seconds.

    An exception of one of the types `no_retry_for` makes the task fail at once. With `isolation`
    ``process`` the handler runs in a worker process. `max_running` and `rate_limit` (as in
    ``100/minute``) hold for all its tasks, on all instances together.

    Raises:
        ValueError: one of them cannot be used.
    """

    max_attempts: int = 1
    retry_delay: float | list[float] = DELAY_SECONDS
    retry_max_delay: float = MAX_DELAY_SECONDS
    timeout: float | None = None
    no_retry_for: tuple[type[BaseException], ...] = ()
    isolation: Literal["process"] | None = None
    max_running: int | None = None
    rate_limit: str | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            try:
                kind.validate_python(getattr(self, name))
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}") from None
        for kind_of_error in self.no_retry_for:
            if not (isinstance(kind_of_error, type) and issubclass(kind_of_error, BaseException)):
                raise ValueError(  # noqa: TRY004 (as for the other options)
                    f"no_retry_for: {kind_of_error!r} is no type of exception"
                )

    @property
    def limit(self) -> HandlerLimit | None:
        """The limits on all tasks of the handler, if there are any."""
        rate = None if self.rate_limit is None else Rate.parse(self.rate_limit)
        if self.max_running is None and rate is None:
            return None
        return HandlerLimit(self.max_running, rate)

    def backoff(self, delay: Any, max_delay: float | None) -> Backoff:
        """Return the delays of a task, which says so itself or leaves it to the handler.

        What cannot be used (a row written by hand may hold anything) counts as not said.
        """
        try:
            delay = _KINDS["retry_delay"].validate_python(delay)
        except ValidationError:
            delay = self.retry_delay
        return Backoff(delay, self.retry_max_delay if max_delay is None else max_delay)
