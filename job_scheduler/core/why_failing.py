"""How the last run of a recurring task failed, until the next one has come to something."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from job_scheduler.constants import WAITING, RunOutcome, TaskStatus
from job_scheduler.core.downtime import downtime_in, tells_of_giving_up
from job_scheduler.core.facts import CUT_OFF, Attempt, Facts
from job_scheduler.core.reasons import Reason, ReasonCode, at, error_of, number

_NOT_DONE = (RunOutcome.Failed, *CUT_OFF)


class Failure(NamedTuple):
    """How the last run failed: its attempts as far as they are known, its error, and how many runs
    in a row have failed.
    """

    attempts: list[Attempt]
    error: dict[str, str]
    in_a_row: int


def last_failure(facts: Facts) -> Failure | None:
    """Return how the last run failed of a recurring task that waits for its next time, or makes its
    first attempt; None: it has not, or the task does neither.
    """
    task = facts.task
    waits = task.status in WAITING and task.attempt == 0
    begins = task.status is TaskStatus.Running and task.attempt <= 1
    if task.recurrence is None or not (waits or begins):
        return None
    runs = facts.runs
    if not runs:
        # Its history is not known. A run that was missed is told of otherwise.
        if task.last_status != TaskStatus.Failed or downtime_in(task.result) is not None:
            return None
        return Failure([], error_of(task.result), 1)
    failed = list(takewhile(lambda run: run[-1].outcome in _NOT_DONE, reversed(runs)))
    if not failed:
        return None
    [*_, last] = runs[-1]
    # What came too late from a run that was taken for dead is not how it ended.
    result = task.result if last.outcome is RunOutcome.Lost else facts.history.result
    return Failure(runs[-1], error_of(result), len(failed))


def why_failing(facts: Facts) -> Iterator[Reason]:
    """Yield how the last run failed, if it has."""
    task, failure = facts.task, last_failure(facts)
    if failure is None:
        return
    attempts, error, in_a_row = failure
    data: dict[str, Any] = {**error, "max_attempts": task.max_attempts}
    which = (
        "Its last run" if in_a_row == 1 else f"Its last {in_a_row} runs have failed: the last one"
    )
    after = ""
    if attempts:
        first, last = attempts[0], attempts[-1]
        data |= {"attempts": len(attempts), "finished_at": last.finished_at}
        data |= {"run_at": first.scheduled_for}
        which += f", that of {at(first.scheduled_for)},"
        after = f" after {number(len(attempts), 'attempt')}"
    again = f"POST /tasks/{task.task_id}/run makes an extra run now."
    if attempts and attempts[-1].outcome in CUT_OFF:
        yield Reason(
            ReasonCode.CutOff,
            f"{which} was cut off before it ended, and was not started again: whether its work was "
            "done is not known.",
            f"Find out whether it has done its work. If not, {again}",
            data,
        )
        return
    if tells_of_giving_up(task.result):
        after += ", and the next one was missed in a downtime"
    yield Reason(
        ReasonCode.Failed,
        f"{which} failed{after}: " + error.get("error", "no reason is given."),
        f"Mend the cause; GET /tasks/{task.task_id}/runs lists the attempts. {again}",
        data,
    )
