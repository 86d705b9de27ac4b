"""Why a task that is scheduled or paused has not started."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from job_scheduler.constants import RecoverPastTasks, TaskStatus
from job_scheduler.core import own_words
from job_scheduler.core.downtime import downtime_before
from job_scheduler.core.facts import Facts, Here, TaskFacts
from job_scheduler.core.reasons import Reason, ReasonCode, at, duration, error_of, others
from job_scheduler.core.why_limited import why_limited


def why_waiting(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield why the task waits, the most important reason first."""
    task = facts.task
    if task.status is TaskStatus.Paused:
        yield Reason(
            ReasonCode.Paused,
            "It is paused: it does not start until somebody lets it.",
            f"POST /tasks/{task.task_id}/resume lets it start at its time. {_run_now(task)}",
        )
    if task.missed_at is not None:
        yield from _set_aside(facts, here, task.missed_at)
        return
    if task.start_before is not None and task.start_before < max(facts.now, task.due):
        yield Reason(
            ReasonCode.Expired,
            f"It was to be started before {at(task.start_before)} or not at all: when its turn "
            "comes it becomes failed, without a run.",
            f"PATCH /tasks/{task.task_id} changes or removes start_before.",
            {"until": task.start_before},
        )
    if task.due > facts.now:
        yield from _before_its_time(facts, here)
        yield from _without_handler(facts, here)
        return
    yield from _without_handler(facts, here)
    if task.status is TaskStatus.Scheduled:
        yield from why_limited(facts, here) if task.blocked_by else _at_its_time(facts, here)


def _set_aside(facts: Facts, here: Here, missed_at: datetime) -> Iterator[Reason]:
    """Yield why a task was set aside: it was missed, or has no time left."""
    task, catch_up = facts.task, facts.catch_up
    if task.recurrence is not None:
        yield Reason(
            ReasonCode.Over,
            "It recurs, and none of its times is left.",
            f"PATCH /tasks/{task.task_id} gives it other times, DELETE /tasks/{task.task_id} "
            "removes it.",
            {"since": missed_at},
        )
        return
    down = downtime_before(missed_at, facts.lives)
    while_down = "while the service was down" + ("" if down is None else f" {down.words}")
    data = {"run_at": task.run_at, "missed_at": missed_at}
    if down is not None:
        data |= {"until": down.until} | ({} if down.since is None else {"since": down.since})
    if catch_up is None or catch_up.has_ended or catch_up.missed_at != missed_at:
        yield Reason(
            ReasonCode.Missed,
            f"It was missed {while_down}, and set aside: RECOVER_PAST_TASKS was skip.",
            f"POST /tasks/{task.task_id}/run runs it after all, DELETE /tasks/{task.task_id} "
            "removes it.",
            data | {"policy": RecoverPastTasks.Skip},
        )
        return
    before = 0 if facts.line is None else facts.line.before
    if catch_up.waits:
        yield Reason(
            ReasonCode.WaitingForApproval,
            f"It was missed {while_down}, with more others than RECOVERY_HOLD_ABOVE allows: they "
            "wait for an approval.",
            "GET /recovery/plan shows them all. POST /recovery/approve runs them; "
            f"POST /tasks/{task.task_id}/run runs this one alone.",
            data | {"before": before},
        )
        return
    begin = max(facts.now, catch_up.released_until or facts.now)
    yield Reason(
        ReasonCode.WaitingForRelease,
        f"It was missed {while_down}. Such tasks are started at a bounded rate, "
        f"{here.rate:g} a second, with {others(before)} before it.",
        f"Nothing needs to be done; RECOVERY_RATE is the rate. POST /tasks/{task.task_id}/run "
        "starts it now.",
        data
        | {"before": before, "rate": here.rate}
        | {"expected_at": begin + timedelta(seconds=before / here.rate)},
    )


def _without_handler(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield that no handler has the task's name, if so."""
    task = facts.task
    if here.has_handler is not False:
        return
    if task.expects_handler or here.waits_without:
        parked = {"until": task.due} if _is_parked(task) else {}
        yield Reason(
            ReasonCode.NoHandler,
            f"No handler is named {task.name!r} in this release (instance {here.instance_id}): "
            "it waits until there is one.",
            "Start the release that has it, or name its module in TASK_MODULES. GET /handlers "
            "lists the names; python -m job_scheduler check finds all such tasks.",
            {"name": task.name, "instance_id": here.instance_id} | parked,
        )
    else:
        yield Reason(
            ReasonCode.Timer,
            f"No handler is named {task.name!r}, nor was when it was posted: at its time nothing "
            "is run, it only keeps the time.",
            "Correct its name, or name the handler's module in TASK_MODULES. GET /handlers lists "
            "the names.",
            {"name": task.name, "instance_id": here.instance_id},
        )


def _is_parked(task: TaskFacts) -> bool:
    return task.attempt == 0 and own_words.tells_of_waiting(task.result)


def _before_its_time(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield why the task's time has not come."""
    task = facts.task
    seconds = (task.due - facts.now).total_seconds()
    data = {"until": task.due, "seconds": seconds}
    run = _run_now(task)
    if task.due == task.run_at:
        yield Reason(
            ReasonCode.NotDue,
            f"It is not due for {duration(seconds)}: its time is {at(task.due)}.",
            f"Nothing needs to be done. {run}",
            data,
        )
    elif task.attempt >= task.max_attempts:
        yield Reason(
            ReasonCode.RunAgain,
            "It has had its attempts, and is run again at somebody's request (or max_attempts was "
            f"lowered since): at {at(task.due)}, in {duration(seconds)}.",
            f"Nothing needs to be done. {run}",
            data | {"attempts": task.attempt, "max_attempts": task.max_attempts},
        )
    elif task.attempt:
        error = error_of(facts.history.result)
        said = "".join(f" ({words})" for words in error.values())
        yield Reason(
            ReasonCode.WaitingForRetry,
            f"Attempt {task.attempt} of {task.max_attempts} has not succeeded{said}; the next one "
            f"comes at {at(task.due)}, in {duration(seconds)}.",
            f"GET /tasks/{task.task_id}/runs shows what went wrong. {run}",
            data | {"attempts": task.attempt, "max_attempts": task.max_attempts} | error,
        )
    elif _is_parked(task):
        if here.has_handler is not False:  # else it has been said
            yield Reason(
                ReasonCode.NoHandler,
                "It had no handler when it was last looked at, and is looked at again at "
                f"{at(task.due)}, in {duration(seconds)}.",
                f"Nothing needs to be done. {run}",
                data | {"name": task.name, "instance_id": here.instance_id},
            )
    elif task.recurrence is not None:
        yield Reason(
            ReasonCode.Jitter,
            f"Its time is {at(task.run_at)}; jitter_seconds puts it off to {at(task.due)}, in "
            f"{duration(seconds)}.",
            f"Nothing needs to be done. {run}",
            data | {"run_at": task.run_at},
        )
    elif _was_released(facts):
        yield Reason(
            ReasonCode.Released,
            "It was missed while the service was down, and was given another time to start, since "
            f"missed tasks start at a bounded rate: {at(task.due)}, in {duration(seconds)}.",
            f"Nothing needs to be done. {run}",
            data | {"run_at": task.run_at},
        )
    else:
        yield Reason(
            ReasonCode.PutOff,
            f"Its time was {at(task.run_at)}, and it was put off to {at(task.due)}, in "
            f"{duration(seconds)}; for what reason is not recorded.",
            f"Nothing needs to be done. {run}",
            data | {"run_at": task.run_at},
        )


def _run_now(task: TaskFacts) -> str:
    does = "starts it now" if task.recurrence is None else "makes an extra run now"
    return f"POST /tasks/{task.task_id}/run {does}."


def _was_released(facts: Facts) -> bool:
    """Tell whether the time at which the task starts was given out after a downtime."""
    task, catch_up = facts.task, facts.catch_up
    return (
        catch_up is not None
        and catch_up.released_until is not None
        and task.run_at < catch_up.covers_until
        and catch_up.missed_at <= task.due <= catch_up.released_until
    )


def _at_its_time(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield what a task that is due waits for."""
    task, room = facts.task, here.room(facts)
    before = 0 if facts.line is None else facts.line.before
    late = (facts.now - task.due).total_seconds()
    data = {"since": task.due, "seconds": late, "before": before}
    places = {"running": room.running, "places": room.places}
    if room.of_name >= room.share:
        yield Reason(
            ReasonCode.WaitingForCapacity,
            f"It has been due for {duration(late)}, and tasks named {task.name!r} take all places "
            f"that one name may take ({room.of_name} of {room.share}).",
            "Wait until one ends, or look with GET /tasks?status=running what takes so long. More "
            "instances, THREADS, PROCESSES or MAX_RUNNING give more places.",
            data | places | {"running_of_name": room.of_name, "places_of_name": room.share},
        )
    elif room.running + before >= room.places:
        yield Reason(
            ReasonCode.WaitingForCapacity,
            f"It has been due for {duration(late)}, and waits for a place: {room.running} of "
            f"{room.places} are taken, with {others(before)} before it.",
            "Wait, or give it a higher priority with PATCH. More instances, THREADS, PROCESSES or "
            "MAX_RUNNING give more places.",
            data | places,
        )
    else:
        yield Reason(
            ReasonCode.AboutToStart,
            f"It has been due for {duration(late)}, and there is a place for it: it is about to "
            "start.",
            "Ask again in a second. If it stays so, look at GET /health.",
            data | places,
        )
