"""The reasons why a task stands where it stands: codes, and what is said with each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from job_scheduler.clock import in_iso_8601
from job_scheduler.core.facts import COUNTED_MAX


class ReasonCode(StrEnum):
    """Why a task has not run, ran late, ran twice or was skipped; ``docs/explain.md`` has them."""

    # It waits.
    Paused = "paused"
    NotDue = "not_due"
    WaitingForRetry = "waiting_for_retry"
    Jitter = "jitter"
    PutOff = "put_off"
    Released = "released"
    WaitingForKey = "waiting_for_key"
    WaitingForHandler = "waiting_for_handler"
    WaitingForRate = "waiting_for_rate"
    WaitingForCapacity = "waiting_for_capacity"
    WaitingForApproval = "waiting_for_approval"
    WaitingForRelease = "waiting_for_release"
    AboutToStart = "about_to_start"
    NoHandler = "no_handler"
    Timer = "timer"
    # It was not run, and will not be.
    Missed = "missed"
    Expired = "expired"
    Over = "over"
    # It runs.
    Running = "running"
    Cancelling = "cancelling"
    InstanceSilent = "instance_silent"
    InstanceDead = "instance_dead"
    # It has ended.
    Done = "done"
    Failed = "failed"
    CutOff = "cut_off"
    Unknown = "unknown"
    Cancelled = "cancelled"
    # It started late.
    PostedLate = "posted_late"
    LateByDowntime = "late_by_downtime"
    LateByJitter = "late_by_jitter"
    LateByOverlap = "late_by_overlap"
    LateByKey = "late_by_key"
    Late = "late"
    # It was started more than once.
    AttemptFailed = "attempt_failed"
    AttemptCrashed = "attempt_crashed"
    AttemptInterrupted = "attempt_interrupted"
    LeaseLost = "lease_lost"
    RunAgain = "run_again"
    # It recurs.
    Recurs = "recurs"
    OverlapSkipped = "overlap_skipped"
    OverlapQueued = "overlap_queued"
    TimesMissed = "times_missed"
    TimesLeftOut = "times_left_out"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: what it is, in a plain sentence, and what to do next; `data` holds the facts."""

    code: ReasonCode
    text: str
    remedy: str
    data: Mapping[str, Any] = field(default_factory=dict)


_ERROR_MAX = 500
"""Characters of an error that are told, at most; the attempt's result has all of it."""
NOTHING = "Nothing needs to be done."
_UNITS = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Return a time in words: in one unit, and the next smaller one."""
    if seconds < 60:
        shown = f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
        return f"{shown.removesuffix('.0')} s"
    left = round(seconds)
    place = next(place for place, (_, length) in enumerate(_UNITS) if left >= length)
    words = []
    for unit, length in _UNITS[place : place + 2]:
        many, left = divmod(left, length)
        if many:
            words.append(f"{many} {unit}{'s' if unit == 'day' and many > 1 else ''}")
    return " ".join(words)


def at(moment: datetime) -> str:
    """Return an instant for a sentence."""
    return in_iso_8601(moment, "seconds")


def number(count: int, noun: str) -> str:
    """Return a number of things, such as ``1 task`` or ``2 tasks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def others(count: int) -> str:
    """Return how many other tasks there are, of which no more than ``COUNTED_MAX`` are counted."""
    if count >= COUNTED_MAX:
        return f"{COUNTED_MAX} tasks or more"
    return number(count, "task") if count else "no other task"


def named(ids: Sequence[str], count: int) -> str:
    """Return some ids, and how many more there are, such as ``task a`` or ``tasks a, b and 3
    more``.
    """
    more = f" and {count - len(ids)} more" if count > len(ids) else ""
    return f"task{'s' if count > 1 else ''} {', '.join(ids)}{more}"


def error_of(result: Any) -> dict[str, str]:
    """Return the error that a result tells of, if it does; a very long one is cut."""
    if not isinstance(result, str):
        return {}
    return {"error": result if len(result) <= _ERROR_MAX else f"{result[:_ERROR_MAX]} …"}
