"""What becomes of the times of a recurring task: the last one, the next one, and those left out."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice, pairwise
from typing import Any, NamedTuple

from job_scheduler.constants import (
    CATCH_UP_MAX,
    WAITING,
    CatchUp,
    Overlap,
    RecoverPastTasks,
    TaskStatus,
)
from job_scheduler.core.downtime import downtime_at, downtime_in
from job_scheduler.core.facts import NAMED_MAX, Facts, Here
from job_scheduler.core.reasons import NOTHING, Reason, ReasonCode, at, number
from job_scheduler.core.recurrence import Recurrence
from job_scheduler.core.why_failing import last_failure

TIMES_MAX = 100
"""Times of the past that are looked at, at most."""


class _Ran(NamedTuple):
    """An occurrence that was run: its time, and from when to when (None: it runs)."""

    time: datetime
    begin: datetime
    end: datetime | None


def why_recurring(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield what there is to know of the task's times, if it recurs and its rule can be read."""
    task = facts.task
    recurrence = task.rule
    if recurrence is None:
        return
    yield from _left_out(facts, here, recurrence)
    runs, last = _runs_ended(facts), _last_status(facts)
    text = "It has not run yet"
    if runs:
        text = f"It has run {number(runs, 'time')}" + (f", the last one {last}" if last else "")
    elif facts.runs or task.status is TaskStatus.Running:
        text = "Its first run has not ended yet"
    data: dict[str, Any] = {"runs": runs}
    if not facts.history.is_read:
        text += " (its history is too long to be looked through)"
    following = _following(facts, recurrence, runs)
    if following is not None:
        data["next_at"] = following
        text += f"; its next time is {at(following)}"
    yield Reason(
        ReasonCode.Recurs,
        f"{text}.",
        ("" if last == TaskStatus.Failed else f"{NOTHING} ")
        + f"GET /tasks/{task.task_id}/next lists its times, "
        f"GET /tasks/{task.task_id}/runs its runs.",
        data,
    )


def _runs_ended(facts: Facts) -> int:
    """Return how often it has run. A run that was given up is not always counted in the task."""
    task = facts.task
    if task.run_count:
        return task.run_count
    goes_on = task.status in (*WAITING, TaskStatus.Running) and task.attempt > 0
    return len(facts.runs) - (goes_on and bool(facts.occurrence))


def _last_status(facts: Facts) -> str | None:
    """Return how the last run ended; None: it is not known."""
    if last_failure(facts) is not None:
        return TaskStatus.Failed
    # A time that was missed may count as failed, and was not run.
    return None if downtime_in(facts.task.result) else facts.task.last_status


def _following(facts: Facts, recurrence: Recurrence, runs: int) -> datetime | None:
    """Return the time after the one that runs, or the one that it waits for; None: none."""
    task = facts.task
    if task.status is TaskStatus.Scheduled and task.missed_at is None:
        return task.run_at
    if task.status is not TaskStatus.Running:
        return None
    return recurrence.following(task.run_at, task.started_at or facts.now, facts.now, runs + 1)


def _left_out(facts: Facts, here: Here, recurrence: Recurrence) -> Iterator[Reason]:
    """Yield which times wait, and which were not run: those between two that were, by the present
    rule.

    What the rule was before somebody changed it is not known: where a run's time is none of its
    times, nothing is said.
    """
    if queued := list(islice(_queued(facts, recurrence), TIMES_MAX)):
        yield _times(
            ReasonCode.OverlapQueued,
            queued,
            "came while another run was under way, and waits for its turn (overlap is queue)",
            "came while another run was under way, and wait for their turn (overlap is queue)",
            "overlap: allow runs them beside each other, skip leaves them out; PATCH changes it.",
        )
    skipped: list[datetime] = []
    missed: list[datetime] = []
    others: list[datetime] = []
    skips = recurrence.overlap is Overlap.Skip
    for ran, moment in islice(_between(facts, recurrence), TIMES_MAX):
        if skips and ran.begin <= moment and (ran.end is None or moment <= ran.end):
            skipped.append(moment)
        elif downtime_at(moment, facts.lives) is not None:
            missed.append(moment)
        else:
            others.append(moment)
    if skipped:
        yield _times(
            ReasonCode.OverlapSkipped,
            skipped,
            "was left out, since a run was under way (overlap is skip)",
            "were left out, since a run was under way (overlap is skip)",
            "overlap: queue runs them one after the other, allow beside each other; PATCH changes "
            "it.",
        )
    if missed:
        decided = _decided(here.policy, recurrence.catch_up)
        yield _times(
            ReasonCode.TimesMissed,
            missed,
            f"passed while the service was down, and was not run ({decided})",
            f"passed while the service was down, and were not run ({decided})",
            "RECOVER_PAST_TASKS=run makes up for what is missed as catch_up says: "
            "docs/recurring.md has a table.",
        )
    if others:
        yield _times(
            ReasonCode.TimesLeftOut,
            others,
            "was not run: it was paused or its times were changed, or the run before it started "
            "too late",
            "were not run: it was paused or its times were changed, or a run before them started "
            "too late",
            "catch_up: all makes up for times that come too late; PATCH changes it.",
        )


def _decided(policy: RecoverPastTasks, catch_up: CatchUp) -> str:
    """Return what decided that times were not made up for, as far as it is still so."""
    if policy is not RecoverPastTasks.Run:
        return f"RECOVER_PAST_TASKS is {policy.value}"
    if catch_up is not CatchUp.All:
        return f"catch_up is {catch_up.value}"
    return f"there were more than {CATCH_UP_MAX}, or RECOVER_PAST_TASKS or catch_up was another"


def _times(code: ReasonCode, times: list[datetime], one: str, many: str, remedy: str) -> Reason:
    count = f"{TIMES_MAX} or more" if len(times) == TIMES_MAX else str(len(times))
    text = (
        f"Its time of {at(times[0])} {one}."
        if len(times) == 1
        else f"{count} of its times, such as {at(times[0])}, {many}."
    )
    told = sorted(times)[-NAMED_MAX:]
    return Reason(code, text, remedy, {"count": len(times), "times": told})


def _queued(facts: Facts, recurrence: Recurrence) -> Iterator[datetime]:
    """Yield the times that wait for the end of a run, or for their turn after it."""
    task = facts.task
    if recurrence.overlap is not Overlap.Queue or task.run_at > facts.now:
        return
    if task.status is TaskStatus.Scheduled:
        former = next(reversed(_runs(facts)), None)
        if former is None or not former.begin <= task.run_at <= (former.end or facts.now):
            return
        yield task.run_at
    elif task.status is not TaskStatus.Running:
        return
    yield from _inside(recurrence, task.run_at, facts.now, closed=True)


def _between(facts: Facts, recurrence: Recurrence) -> Iterator[tuple[_Ran, datetime]]:
    """Yield the times between two that were run, or are to be, and those until now of a run that
    is under way; the latest gap first.
    """
    task = facts.task
    ends = _runs(facts)
    if task.status is TaskStatus.Running:
        now = _Ran(task.run_at, task.started_at or facts.now, None)
        ends.append(now)
        if recurrence.overlap is Overlap.Skip:
            during = _inside(recurrence, task.run_at, facts.now, closed=True)
            yield from ((now, each) for each in during)
    elif task.status is TaskStatus.Scheduled:
        ends.append(_Ran(task.run_at, task.run_at, None))
    for former, later in reversed(list(pairwise(ends))):
        gap = _inside(recurrence, former.time, later.time, closed=False)
        yield from ((former, each) for each in gap)


def _runs(facts: Facts) -> list[_Ran]:
    """Return the occurrences that have ended, each with its repetitions."""
    return [
        _Ran(run[0].scheduled_for, run[0].started_at, run[-1].finished_at)
        for run in facts.runs
        if run[0].attempt <= 1
    ]


def _inside(
    recurrence: Recurrence, begin: datetime, end: datetime, *, closed: bool
) -> Iterator[datetime]:
    """Yield the times after one of its times and before another one, or until it if `closed`."""
    rhythm = recurrence.rhythm(begin)
    if rhythm.last_until(begin) != begin or not (closed or rhythm.last_until(end) == end):
        return
    found = rhythm.first_after(begin)
    while found is not None and (found < end or (closed and found == end)):
        yield found
        found = rhythm.first_after(found)
