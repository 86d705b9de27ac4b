"""What the service itself says in a task's result, and how that is known again."""

from datetime import datetime
from typing import Any

from job_scheduler.clock import in_iso_8601

_EXPIRED = "expired: "
_WAITING = "waiting: "


def expired(start_before: datetime) -> str:
    """Return the result of a task that came too late."""
    return (
        f"{_EXPIRED}it was to be started before {in_iso_8601(start_before)} or not at all, "
        "and could not be in time"
    )


def tells_of_expiry(result: Any) -> bool:
    """Tell whether a failed task's result is that of one which came too late."""
    return isinstance(result, str) and result.startswith(_EXPIRED)


def waiting(name: str) -> str:
    """Return the result of a task that waits until a handler has its name."""
    return (
        f"{_WAITING}no task handler is named {name!r} in this release. It runs when "
        "there is one; python -m job_scheduler check lists all such tasks."
    )


def tells_of_waiting(result: Any) -> bool:
    """Tell whether a scheduled task's result is that of one which had no handler."""
    return isinstance(result, str) and result.startswith(_WAITING)


def time_kept(name: str, fired_at: datetime, late_seconds: float) -> dict[str, Any]:
    """Return the result of a task that had nothing to run."""
    return {
        "message": f"No task handler is named {name!r}: "
        "nothing was run, the task only kept the time.",
        "fired_at": in_iso_8601(fired_at),
        "late_seconds": round(late_seconds, 6),
    }


def tells_of_time_kept(result: Any) -> bool:
    """Tell whether a task's result is that of one which had nothing to run."""
    return isinstance(result, dict) and result.keys() == {"message", "fired_at", "late_seconds"}
