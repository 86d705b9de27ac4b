"""What is known of a task when somebody asks why it has not run, or ran late, or twice.

All times are UTC, by the database's clock. Nothing here is worked out yet, and nothing is guessed:
what is not known is None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_scheduler.constants import InstanceState, OnCrash, RunOutcome, TaskStatus
from job_scheduler.core.downtime import Life
from job_scheduler.core.limits import Limits

COUNTED_MAX = 1_000
"""Tasks before another one that are counted, at most."""
NAMED_MAX = 10
"""Tasks, or times, that a reason names, at most."""


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """A task's row, as far as it tells why. `kind` is what it runs, `due` when it is to start."""

    task_id: str
    name: str
    kind: str
    status: TaskStatus
    run_at: datetime
    due: datetime
    created_at: datetime
    result: Any
    attempt: int
    max_attempts: int
    on_crash: OnCrash | None
    start_before: datetime | None
    timeout: float | None
    concurrency_key: str | None
    max_running: int | None
    blocked_by: str | None
    expects_handler: bool | None
    progress: Mapping[str, Any] | None
    cancel_requested_at: datetime | None
    retry_at: datetime | None
    instance_id: str | None
    started_at: datetime | None
    finished_at: datetime | None
    missed_at: datetime | None
    recurrence: Any
    run_count: int | None
    last_status: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that has ended."""

    attempt: int
    scheduled_for: datetime
    started_at: datetime
    finished_at: datetime
    outcome: RunOutcome


@dataclass(frozen=True, slots=True)
class History:
    """A task's last attempts, the oldest first, and the result of the last one.

    There are so many that they were not looked through, unless it `is_read`.
    """

    attempts: Sequence[Attempt] = ()
    result: Any = None
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """An instance, past or present."""

    instance_id: str
    state: InstanceState
    started_at: datetime
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class CatchUpFacts:
    """The catch-up after a downtime, under way or lately ended: see ``CatchUpRow``."""

    missed_at: datetime
    covers_until: datetime
    released_until: datetime | None
    waits: bool
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Line:
    """What stands before a task that is due.

    `before` counts the tasks that are more urgent (``COUNTED_MAX`` at most). Of a limit, `running`
    is how many run under it, `holders` some of these, and `following` when its rate allows the
    next start. Of the instances' places, `kinds` counts what runs by name and kind.
    """

    before: int = 0
    running: int = 0
    holders: Sequence[str] = ()
    following: datetime | None = None
    kinds: Mapping[tuple[str, str], int] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was read of a task at the instant `now`.

    `line` is None unless it is due, or was set aside, and `key_holders` are tasks that ran with its
    concurrency key after its time and before its start.
    """

    now: datetime
    task: TaskFacts
    history: History = History()
    instances: Sequence[InstanceFacts] = ()
    catch_up: CatchUpFacts | None = None
    line: Line | None = None
    key_holders: Sequence[str] = ()

    @property
    def lives(self) -> list[Life]:
        """When the instances lived, until now or until their last heartbeats."""
        return [
            Life(
                one.started_at, max(one.heartbeat_at, self.now) if _lives(one) else one.heartbeat_at
            )
            for one in self.instances
        ]

    @property
    def living(self) -> int:
        """How many instances may run tasks."""
        return sum(one.state is InstanceState.Alive for one in self.instances)

    @property
    def occurrence(self) -> list[Attempt]:
        """The attempts at the task, or at the last of its occurrences, if it recurs."""
        attempts = list(self.history.attempts)
        if self.task.recurrence is None:
            return attempts
        firsts = [place for place, each in enumerate(attempts) if each.attempt <= 1]
        if self.task.status is TaskStatus.Running and self.task.attempt <= 1:
            return []
        return attempts[firsts[-1] :] if firsts else attempts

    @property
    def first_start(self) -> tuple[datetime, datetime] | None:
        """For when the first attempt was planned, and when it was started; None: there was none,
        or it is not known any more.
        """
        task = self.task
        if task.status is TaskStatus.Running and task.attempt <= 1 and task.started_at:
            return task.run_at, task.started_at
        first = next(iter(self.occurrence), None)
        if first is None or first.attempt > 1:
            return None
        return first.scheduled_for, first.started_at


@dataclass(frozen=True, slots=True)
class Room:
    """How many places there are for a kind of task on all instances, and how many are taken.

    Of these, tasks of one name take `share` at most, and those of this task's name take `of_name`.
    """

    places: int
    running: int
    share: int
    of_name: int


@dataclass(frozen=True, slots=True)
class Here:
    """What this instance knows of itself: its release, and its settings.

    `has_handler` is None of a task that needs none. `waits_without` tells whether every task waits
    that has no handler (``UNKNOWN_TASKS=reject``). `lease` is in seconds, `rate` in tasks a second.
    """

    instance_id: str
    has_handler: bool | None
    waits_without: bool
    timeout: float | None
    limits: Limits
    lease: float
    rate: float
    room: Callable[[Facts], Room]


def _lives(one: InstanceFacts) -> bool:
    return one.state is not InstanceState.Dead
