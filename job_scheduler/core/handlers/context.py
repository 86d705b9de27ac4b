"""What a handler may know of its own run."""

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: a `fraction` from 0 to 1, and a message."""

    fraction: float
    message: str | None


class _TaskLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> Any:
        return f"task {(self.extra or {})['task_id']}: {msg}", kwargs


class RunContext:
    """The run that a handler is called for: handed to a parameter annotated with this class.

    `attempt` counts from 1. `token` is the claim's own: no two runs ever have the same, and
    an outside system may use it to tell a repeated run from the first. `scheduled_for` is when
    this attempt was to start, and `deadline` when its time is over, if that is limited; both are
    in UTC.
    """

    def __init__(
        self,
        task_id: str,
        name: str,
        attempt: int,
        token: str,
        scheduled_for: datetime,
        deadline: datetime | None = None,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.task_id = task_id
        self.name = name
        self.attempt = attempt
        self.token = token
        self.scheduled_for = scheduled_for
        self.deadline = deadline
        self._report = report
        self._should_stop = False
        self._was_told_to_stop = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Writes to the service's log, and names the task."""
        return _TaskLogger(logging.getLogger("job_scheduler.task"), {"task_id": self.task_id})

    @property
    def should_stop(self) -> bool:
        """Whether the handler had better come to an end: it is cancelled, or the service stops.

        A plain handler that takes long asks now and then; an async one is cancelled in the end.
        """
        self._was_told_to_stop = self._should_stop
        return self._should_stop

    @property
    def was_told_to_stop(self) -> bool:
        """Whether the handler has asked, and knows that it should stop."""
        return self._was_told_to_stop

    def ask_to_stop(self) -> None:
        """Let `should_stop` be true from now on."""
        self._should_stop = True
        for listener in self._listeners:
            listener()

    def on_stop(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when `should_stop` becomes true; at once where it is."""
        self._listeners.append(listener)
        if self._should_stop:
            listener()

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Let the API show how far this run has come, from 0 to 1; call it as often as you like.

        Raises:
            ValueError: `fraction` is not from 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress: fraction must be from 0 to 1, not {fraction!r}")
        self._report(Progress(float(fraction), message))
