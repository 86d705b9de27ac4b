"""Enumerations, limits that are not settings, and the one drawing of the state machine.

    POST ─▶ scheduled ──claim──▶ running ──record──▶ done │ failed
                │                   │
                │                   ├── it recurs, and another time follows ─▶ scheduled
                │                   ├── the handler raised, and attempts are left ─▶ scheduled
                │                   ├── cut off, by on_crash ─▶ scheduled │ failed │ unknown
                │                   └── cancel ─▶ cancelled
                ├── missed, RECOVER_PAST_TASKS=fail ─▶ failed
                ├── pause ─▶ paused
                └── cancel ─▶ cancelled

    failed │ unknown ──retry, by a person──▶ scheduled
    paused ──resume, or run──▶ scheduled
    paused ──cancel──▶ cancelled

DELETE removes a task that is scheduled or paused; it moves nothing.
"""

from enum import StrEnum


class TaskStatus(StrEnum):
    """Where a task stands in its life."""

    Scheduled = "scheduled"
    Paused = "paused"
    Running = "running"
    Done = "done"
    Failed = "failed"
    Unknown = "unknown"
    Cancelled = "cancelled"


TRANSITIONS: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.Scheduled: frozenset(
        {TaskStatus.Paused, TaskStatus.Running, TaskStatus.Failed, TaskStatus.Cancelled}
    ),
    TaskStatus.Paused: frozenset({TaskStatus.Scheduled, TaskStatus.Cancelled}),
    TaskStatus.Running: frozenset(
        {
            TaskStatus.Scheduled,
            TaskStatus.Done,
            TaskStatus.Failed,
            TaskStatus.Unknown,
            TaskStatus.Cancelled,
        }
    ),
    TaskStatus.Done: frozenset(),
    TaskStatus.Failed: frozenset({TaskStatus.Scheduled}),
    TaskStatus.Unknown: frozenset({TaskStatus.Scheduled}),
    TaskStatus.Cancelled: frozenset(),
}


WAITING = (TaskStatus.Scheduled, TaskStatus.Paused)
"""Where a task stands that has not begun: it may still be changed, or removed."""

ENDED = frozenset({TaskStatus.Done, TaskStatus.Failed, TaskStatus.Unknown, TaskStatus.Cancelled})
"""Where a task stays, unless a person has it run again."""


class RetryableStatus(StrEnum):
    """Where a task stands that a person may run again."""

    Failed = TaskStatus.Failed.value
    Unknown = TaskStatus.Unknown.value


class OnCrash(StrEnum):
    """What becomes of a task whose run was cut off before it could say how it ended.

    ``fail``: it is failed. ``retry``: it is scheduled again as long as attempts are left, else
    failed. ``hold``: it is ``unknown``, for a person to decide.
    """

    Fail = "fail"
    Retry = "retry"
    Hold = "hold"


class RunOutcome(StrEnum):
    """How one attempt ended, as its entry in the history says.

    ``cancelled``: it was ended at a person's request. ``interrupted``: the service stopped before
    it ended. ``crashed``: its instance was found dead. ``lost``: its result came when it was no
    longer wanted, since the instance had been taken for dead; what became of the task was decided
    without it.
    """

    Done = "done"
    Failed = "failed"
    Cancelled = "cancelled"
    Interrupted = "interrupted"
    Crashed = "crashed"
    Lost = "lost"


class InstanceState(StrEnum):
    """Where a process of the service stands in its life.

    ``starting`` waits for the decision on missed tasks, ``recovering`` carries it out (one
    instance at a time), ``alive`` runs tasks, ``dead`` has stopped or was found dead.
    """

    Starting = "starting"
    Recovering = "recovering"
    Alive = "alive"
    Dead = "dead"


class RecoverPastTasks(StrEnum):
    """What start-up does with tasks whose time passed while the service was down."""

    Run = "run"
    Fail = "fail"
    Skip = "skip"


class RecoveryAction(StrEnum):
    """What becomes of the overdue tasks, as policy, rate and number decide.

    ``nothing``: there are none. ``run``: the sweep takes them at once. ``release``: they are run
    at the bounded rate. ``hold``: they wait for a person's approval, and are released then.
    """

    Nothing = "nothing"
    Run = "run"
    Release = "release"
    Hold = "hold"
    Fail = "fail"
    Skip = "skip"


class UnknownTasks(StrEnum):
    """What becomes of a task whose name no handler is registered under."""

    Timer = "timer"
    Reject = "reject"


class DstGap(StrEnum):
    """What becomes of a local time that does not exist, since clocks were put forward over it.

    ``shift``: the first instant after the gap stands for it. ``skip``: nothing does.
    """

    Shift = "shift"
    Skip = "skip"


class DstFold(StrEnum):
    """Which of the two instants counts where a local time comes twice: clocks were put back."""

    First = "first"
    Second = "second"
    Both = "both"


class Overlap(StrEnum):
    """What becomes of an occurrence that falls due while the one before it still runs.

    ``skip``: it is left out. ``queue``: it runs when the one before it has ended. ``allow``: it
    runs beside it.
    """

    Skip = "skip"
    Queue = "queue"
    Allow = "allow"


class OnConflict(StrEnum):
    """What becomes of a request whose ``unique_key`` a task has that has not ended yet.

    ``reject``: it is refused. ``return``: that task is the answer. ``replace``: that task becomes
    what the request asks for. ``reschedule``: it takes over the request's time alone.
    """

    Reject = "reject"
    Return = "return"
    Replace = "replace"
    Reschedule = "reschedule"


class CatchUp(StrEnum):
    """What becomes of occurrences that were missed, since nobody was there to run them.

    ``none``: they are left out. ``latest``: the last of them is run. ``all``: they are all run,
    one after the other, up to a bound.
    """

    Nothing = "none"
    Latest = "latest"
    All = "all"


CHANNEL = "job_scheduler"
"""The channel of PostgreSQL's NOTIFY on which a hint about a new task is given."""
PREPARED = "prepared"
"""The option of a statement that PostgreSQL plans once for each connection."""

MAX_ATTEMPTS_LIMIT = 1_000
"""Attempts that a task may be given, at most."""

CATCH_UP_MAX = 100
"""Missed occurrences of a task that are made up for, at most: the last ones."""

INTERVAL_MIN_SECONDS = 1
"""Seconds between two occurrences, at least."""

RUNS_MAX = 1_000_000_000
"""Runs that a recurring task may be given, at most."""

SECONDS_MAX = 366 * 86_400
"""A year: the longest delay that may be asked for, in seconds."""

PRIORITY_MAX = 3
"""The priority of the most urgent tasks; 0 is that of all that do not say so."""

RUNNING_MAX = 10_000
"""Places that a limit may have, at most."""

NAME_MAX_LENGTH = 255
"""Characters in a task's name, at most."""

TAGS_MAX = 20
"""Tags of a task, at most."""
TAG_MAX_LENGTH = 64
"""Characters in each of them, at most."""

BODY_MAX_BYTES = 1024 * 1024
"""Bytes in a request's body, at most."""

BATCH_MAX_TASKS = 10_000
"""Tasks that may be created by one request, at most."""

BATCH_BODY_MAX_BYTES = 32 * 1024 * 1024
"""Bytes in the body of a request that creates many tasks, at most."""

BATCH_FAULTS_NAMED = 20
"""Faults in a batch that an answer names, at most."""
IMPORT_PROBLEMS_NAMED = 100
"""Lines of an import of which the answer tells why they were not taken, at most."""

RESULT_MAX_BYTES = 1024 * 1024
"""Bytes of a task's result as JSON, at most, whatever is configured; a longer one is cut."""

JSON_MAX_DEPTH = 100
"""Levels of nesting in a JSON document, at most (a response nests a few more)."""

COMMAND_MAX_PARTS = 100
"""Texts in a command, at most: the program and its arguments."""

COMMAND_PART_MAX_LENGTH = 4_096
"""Characters in each of them, at most."""

LIST_DEFAULT_LIMIT = 1_000
LIST_MAX_LIMIT = 10_000
MANY_MAX = 1_000
"""Tasks that one request changes or removes by a filter, at most: in one transaction."""
LIST_MAX_VALUES = 20
"""Values of one filter of a list, at most."""


class Sort(StrEnum):
    """What a list goes by; with a minus, the last comes first. Of one instant, the ids decide."""

    RunAt = "run_at"
    LatestRunAt = "-run_at"
    CreatedAt = "created_at"
    LatestCreatedAt = "-created_at"
    FinishedAt = "finished_at"
    LatestFinishedAt = "-finished_at"
