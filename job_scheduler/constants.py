"""Enumerations, limits that are not settings, and the one drawing of the state machine.

    POST ─▶ scheduled ──claim──▶ running ──record──▶ done │ failed
                │                   │
                │                   └── its process died ─▶ failed
                └── missed, RECOVER_PAST_TASKS=fail ─▶ failed

DELETE removes a task that is scheduled; it moves nothing.
"""

from enum import StrEnum


class TaskStatus(StrEnum):
    """Where a task stands in its life."""

    Scheduled = "scheduled"
    Running = "running"
    Done = "done"
    Failed = "failed"


TRANSITIONS: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.Scheduled: frozenset({TaskStatus.Running, TaskStatus.Failed}),
    TaskStatus.Running: frozenset({TaskStatus.Done, TaskStatus.Failed}),
    TaskStatus.Done: frozenset(),
    TaskStatus.Failed: frozenset(),
}


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


class UnknownTasks(StrEnum):
    """What becomes of a task whose name no handler is registered under."""

    Timer = "timer"
    Reject = "reject"


NAME_MAX_LENGTH = 255
"""Characters in a task's name, at most."""

BODY_MAX_BYTES = 1024 * 1024
"""Bytes in a request's body, at most."""

RESULT_MAX_BYTES = 1024 * 1024
"""Bytes of a task's result as JSON, at most; a longer one is cut."""

JSON_MAX_DEPTH = 100
"""Levels of nesting in a JSON document, at most (a response nests a few more)."""

LIST_DEFAULT_LIMIT = 1_000
LIST_MAX_LIMIT = 10_000
