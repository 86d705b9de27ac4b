"""Why a task has not run, ran late, ran twice, or was skipped: from what is known, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from job_scheduler.constants import WAITING, TaskStatus
from job_scheduler.core.facts import Facts, Here
from job_scheduler.core.reasons import Reason, ReasonCode
from job_scheduler.core.why_again import why_again
from job_scheduler.core.why_ended import done, missed_as_failed, why_ended, why_running
from job_scheduler.core.why_failing import why_failing
from job_scheduler.core.why_late import why_late
from job_scheduler.core.why_recurring import why_recurring
from job_scheduler.core.why_waiting import why_waiting


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task stands where it stands; the most important reason comes first."""

    task_id: str
    status: TaskStatus
    summary: str
    reasons: list[Reason]


def explain(facts: Facts, here: Here) -> Explanation:
    """Return why a task stands where it stands. There is at least one reason."""
    task = facts.task
    found: dict[ReasonCode, Reason] = {}
    for reason in chain(
        _present(facts, here), why_late(facts), why_again(facts), why_recurring(facts, here)
    ):
        found.setdefault(reason.code, reason)
    reasons = list(found.values()) or [done(facts)]
    return Explanation(task.task_id, task.status, reasons[0].text, reasons)


def _present(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield why it is in the state that it is in."""
    task = facts.task
    if task.status is TaskStatus.Running:
        yield from why_running(facts, here)
        yield from why_failing(facts)
    elif task.status in WAITING:
        yield from why_waiting(facts, here)
        # What became of the time before, of a recurring task.
        yield from why_failing(facts)
        if (missed := missed_as_failed(facts)) is not None:
            yield missed
    else:
        yield from why_ended(facts)
