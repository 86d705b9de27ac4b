"""Completion hooks: the webhook that a task's end calls for, which is a task of its own.

Its body has members that Standard Webhooks recommends, ``type`` and ``data`` (standardwebhooks.com,
"Payload structure"); the time is that of the sending, and stands in a header.
"""

from collections.abc import Mapping
from typing import Any

from job_scheduler.constants import TaskStatus
from job_scheduler.core.claims import Run
from job_scheduler.core.outcomes import Decision

ON_DONE, ON_FAILED = "on_done", "on_failed"
"""The members of a task that ask for hooks, and the names of the tasks which these become."""

HOOK_ATTEMPTS = 12
"""How often a hook is sent at most: with the usual delays, over some hours."""


def hook_of(run: Run, decision: Decision) -> dict[str, Any] | None:
    """Return the webhook that is to be sent when a run ends like this, if there is one.

    A task that is cancelled, or is to be run again, calls for none.
    """
    match decision.status:
        case TaskStatus.Done:
            hook = run.on_done
        case TaskStatus.Failed | TaskStatus.Unknown:
            hook = run.on_failed
        case _:
            return None
    if hook is None:
        return None
    # One that never was is given back.
    attempt = run.attempt - (decision.outcome is None)
    return filled(hook, run.task_id, run.name, attempt, decision.status, decision.result)


def filled(
    hook: Mapping[str, Any],
    task_id: str,
    name: str,
    attempt: int,
    status: TaskStatus,
    result: Any,
) -> dict[str, Any]:
    """Return a hook as a webhook whose body tells how a task has ended."""
    data = {
        "task_id": task_id,
        "name": name,
        "status": status.value,
        "attempt": attempt,
        "result": result,
    }
    return {**hook, "body": {"type": f"task.{status.value}", "data": data}}
