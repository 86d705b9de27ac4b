"""What is known of a task when somebody asks why it has not run, or ran late, or twice.

All times are UTC, by the database's clock. Nothing here is worked out yet, and nothing is guessed:
what is not known is None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_scheduler.constants import InstanceState, OnCrash, RecoverPastTasks, RunOutcome, TaskStatus
from job_scheduler.core.downtime import Life
from job_scheduler.core.limits import Limits
from job_scheduler.core.recurrence import Recurrence

COUNTED_MAX = 1_000
"""Tasks before another one that are counted, at most."""
NAMED_MAX = 10
"""Tasks, or times, that a reason names, at most."""
CUT_OFF = (RunOutcome.Crashed, RunOutcome.Interrupted, RunOutcome.Lost)
"""The outcomes of an attempt that has not said itself how it ended, or too late."""


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

    @property
    def rule(self) -> Recurrence | None:
        """How it recurs; None: it does not, or nobody can read how."""
        if self.recurrence is None:
            return None
        try:
            return Recurrence.of(self.recurrence)
        except ValueError:
            return None


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
    def runs(self) -> list[list[Attempt]]:
        """The attempts of each run, of which a recurring task has one for each of its times."""
        runs: list[list[Attempt]] = []
        for attempt in self.history.attempts:
            if not runs or (attempt.attempt <= 1 and self.task.recurrence is not None):
                runs.append([])
            runs[-1].append(attempt)
        return runs

    @property
    def occurrence(self) -> list[Attempt]:
        """The attempts at the task, or at the last of its occurrences, if it recurs."""
        begins = self.task.status is TaskStatus.Running and self.task.attempt <= 1
        if not self.runs or (begins and self.task.recurrence is not None):
            return []
        return self.runs[-1]

    @property
    def run_before(self) -> Attempt | None:
        """The last attempt at the occurrence before that, if it recurs and there was one."""
        attempts = self.history.attempts
        before = attempts[: len(attempts) - len(self.occurrence)]
        return before[-1] if before else None

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
    policy: RecoverPastTasks
    room: Callable[[Facts], Room]


def _lives(one: InstanceFacts) -> bool:
    return one.state is not InstanceState.Dead
