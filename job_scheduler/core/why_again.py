"""Why a task was started more than once."""

from collections.abc import Callable, Iterator

from job_scheduler.constants import RunOutcome, TaskStatus
from job_scheduler.core.facts import Attempt, Facts
from job_scheduler.core.reasons import NOTHING, Reason, ReasonCode, at, number


def why_again(facts: Facts) -> Iterator[Reason]:
    """Yield why the task, or the last of its occurrences, was started more than once."""
    attempts = facts.occurrence
    # What the last one came to is told by the task's status.
    is_over = facts.task.status not in (TaskStatus.Scheduled, TaskStatus.Paused, TaskStatus.Running)
    former = attempts[:-1] if is_over or facts.task.attempt == 0 else attempts
    lost = [each for each in attempts if each.outcome is RunOutcome.Lost]
    if lost:
        yield _of(facts, ReasonCode.LeaseLost, lost)
    for code, outcome in _REPEATED.items():
        found = [each for each in former if each.outcome is outcome]
        if found:
            yield _of(facts, code, found)
    if facts.task.attempt > facts.task.max_attempts:
        yield Reason(
            ReasonCode.RunAgain,
            f"It has been started {number(facts.task.attempt, 'time')}, while max_attempts is "
            f"{facts.task.max_attempts}: it was run again at somebody's request, or max_attempts "
            "was lowered since.",
            NOTHING,
            {"attempts": facts.task.attempt, "max_attempts": facts.task.max_attempts},
        )


_REPEATED = {
    ReasonCode.AttemptCrashed: RunOutcome.Crashed,
    ReasonCode.AttemptInterrupted: RunOutcome.Interrupted,
    ReasonCode.AttemptFailed: RunOutcome.Failed,
}
_ONCE = "A task that must not be started twice has max_attempts 1, or on_crash hold."
_WORDS: dict[ReasonCode, tuple[Callable[[str, str], str], str]] = {
    ReasonCode.LeaseLost: (
        lambda which, when: (
            f"{which} lost its lease: it ended at {when}, after its instance had "
            "been taken for dead, and its result does not count."
        ),
        "It may have done its work a second time. See that instances are not held up for longer "
        f"than LEASE_SECONDS. {_ONCE}",
    ),
    ReasonCode.AttemptCrashed: (
        lambda which, when: f"{which} was cut off, since its instance was found dead at {when}.",
        f"It may have done its work before that. {_ONCE}",
    ),
    ReasonCode.AttemptInterrupted: (
        lambda which, when: (
            f"{which} was cut off at {when}: the service was stopped, or could not go on with it."
        ),
        f"A longer SHUTDOWN_GRACE lets runs finish when the service is stopped. {_ONCE}",
    ),
    ReasonCode.AttemptFailed: (
        lambda which, when: f"{which} failed at {when}, and was not the last one to be made.",
        "GET /tasks/{task_id}/runs shows the errors; max_attempts and retry_delay say how often "
        "and when it is started again.",
    ),
}


def _of(facts: Facts, code: ReasonCode, found: list[Attempt]) -> Reason:
    """Return what became of some attempts, of which the last one is told of."""
    words, remedy = _WORDS[code]
    last = found[-1]
    which = f"Attempt {last.attempt}"
    if len(found) > 1:
        which += f" (and {len(found) - 1} before it)"
    return Reason(
        code,
        words(which, at(last.finished_at)),
        remedy.replace("{task_id}", facts.task.task_id),
        {
            "since": last.started_at,
            "until": last.finished_at,
            "attempts": len(found),
            "attempt": last.attempt,
        },
    )
