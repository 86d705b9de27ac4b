"""Why a task started late."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job_scheduler.constants import Overlap
from job_scheduler.core.downtime import downtime_at
from job_scheduler.core.facts import Attempt, Facts
from job_scheduler.core.reasons import NOTHING, Reason, ReasonCode, at, duration, named

LATE_SECONDS = 1.0
"""By how many seconds a start must be late to be told of."""


@dataclass(frozen=True, slots=True)
class LateStart:
    """A first start that came after the task's time `run_at`; `planned` is that time, or until when
    jitter put the start off.
    """

    run_at: datetime
    planned: datetime
    started_at: datetime

    @property
    def jitter(self) -> float:
        """By how many seconds jitter put it off."""
        return (self.planned - self.run_at).total_seconds()

    @property
    def late(self) -> float:
        """By how many seconds it came later than that."""
        return (self.started_at - self.planned).total_seconds()


def late_start(facts: Facts) -> LateStart | None:
    """Return the first start, if it was late."""
    first = facts.first_start
    if first is None:
        return None
    run_at, started_at = first
    start = LateStart(run_at, _planned(facts, run_at, started_at), started_at)
    return start if max(start.late, start.jitter) > LATE_SECONDS else None


def _planned(facts: Facts, run_at: datetime, started_at: datetime) -> datetime:
    rule = facts.task.rule
    starts_at = None if rule is None else rule.starts_at(facts.task.task_id, run_at)
    # What comes after the start is of a rule that was changed since.
    return run_at if starts_at is None or starts_at > started_at else starts_at


def why_late(facts: Facts) -> Iterator[Reason]:
    """Yield by how much the task started late, if it did, and why as far as is known."""
    start = late_start(facts)
    if start is None:
        return
    seconds = start.jitter + start.late
    data = {"run_at": start.run_at, "started_at": start.started_at, "seconds": seconds}
    text = f"It started {duration(seconds)} after its time"
    if start.late <= LATE_SECONDS:
        yield Reason(
            ReasonCode.LateByJitter,
            f"{text}: jitter_seconds put it off to {at(start.planned)}.",
            f"{NOTHING} PATCH changes jitter_seconds.",
            data | {"until": start.planned},
        )
        return
    if start.jitter:
        text += f", of which jitter_seconds asked for {duration(start.jitter)}"
    yield _why(facts, start, text, data)


def _why(facts: Facts, start: LateStart, text: str, data: dict[str, Any]) -> Reason:
    """Return why it started later than it was to."""
    created_at = facts.task.created_at
    if facts.task.recurrence is None and created_at > start.planned:
        return Reason(
            ReasonCode.PostedLate,
            f"{text}, which had passed when it was posted, at {at(created_at)}.",
            NOTHING,
            data | {"created_at": created_at},
        )
    down = downtime_at(start.planned, facts.lives)
    if down is not None and down.until <= start.started_at:
        return Reason(
            ReasonCode.LateByDowntime,
            f"{text}: the service was down {down.words}.",
            "RECOVER_PAST_TASKS says what becomes of tasks that are missed, RECOVERY_RATE how many "
            "a second are started then, and start_before in a task until when it is worth it.",
            data | {"until": down.until} | ({} if down.since is None else {"since": down.since}),
        )
    former = _held_up_by(facts, start)
    if former is not None:
        return Reason(
            ReasonCode.LateByOverlap,
            f"{text}: the run before it was under way until {at(former.finished_at)}, and runs of "
            "this task follow one another.",
            "overlap: allow runs them beside each other, skip leaves out the times that come "
            "meanwhile; PATCH changes it.",
            data | {"until": former.finished_at},
        )
    if facts.key_holders:
        return Reason(
            ReasonCode.LateByKey,
            f"{text}: its concurrency key {facts.task.concurrency_key!r} was held by "
            f"{named(facts.key_holders, len(facts.key_holders))} meanwhile.",
            "More tasks with that key run beside each other with a higher max_running.",
            data | {"key": facts.task.concurrency_key, "holders": list(facts.key_holders)},
        )
    return Reason(
        ReasonCode.Late,
        f"{text}; why is not recorded.",
        "If it happens often, see whether capacity or a limit is short: queued in GET /health, "
        "GET /tasks?status=scheduled&sort=run_at, and docs/limits.md.",
        data,
    )


def _held_up_by(facts: Facts, start: LateStart) -> Attempt | None:
    """Return the end of the run before, if that was under way when this one was to start."""
    rule, former = facts.task.rule, facts.run_before
    if rule is None or rule.overlap is Overlap.Allow or former is None:
        return None
    return former if start.planned < former.finished_at <= start.started_at else None
