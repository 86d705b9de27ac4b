"""Which limit keeps a task from starting that is due."""

from collections.abc import Iterator
from typing import Any

from job_scheduler.core.facts import Facts, Here, Line
from job_scheduler.core.limits import HANDLER, KEY, HandlerLimit
from job_scheduler.core.rates import Rate
from job_scheduler.core.reasons import Reason, ReasonCode, at, duration, named, number, others

_SOON = "It has got a place: it is about to start."


def why_limited(facts: Facts, here: Here) -> Iterator[Reason]:
    """Yield what the limit allows that the task's ``blocked_by`` names, and who takes it up."""
    blocked_by = facts.task.blocked_by or ""
    line = facts.line or Line()
    kind, _, name = blocked_by.partition(":")
    limit = here.limits.get(name) or HandlerLimit(None, None)
    late = (facts.now - facts.task.due).total_seconds()
    data: dict[str, Any] = {"limit": blocked_by, "since": facts.task.due, "seconds": late}
    if f"{kind}:" == KEY:
        yield _by_key(facts, name, line, data)
    elif f"{kind}:" == HANDLER and limit.max_running is not None:
        yield _by_handler(name, limit.max_running, line, data)
    elif f"{kind}:" != HANDLER and limit.rate is not None:
        yield _by_rate(facts, name, limit.rate, line, data)
    else:
        yield Reason(
            ReasonCode.AboutToStart,
            f"It has waited for the limit {blocked_by!r}, which this release does not have: it is "
            "about to start.",
            "Ask again in a second. If it stays so, another instance has a release with that "
            "limit.",
            data,
        )


def _by_key(facts: Facts, key: str, line: Line, data: dict[str, Any]) -> Reason:
    places = facts.task.max_running or 1
    if line.running >= places:
        holds = "holds" if line.running == 1 else "hold"
        text = (
            f"It waits for its concurrency key {key!r}, which {named(line.holders, line.running)} "
            f"{holds}: no more than {number(places, 'task')} may run beside each other."
        )
    elif line.before:
        text = f"It waits for its concurrency key {key!r}, with {others(line.before)} before it."
    else:
        text = f"It has waited for its concurrency key {key!r}. {_SOON}"
    return Reason(
        ReasonCode.WaitingForKey,
        text,
        f"Wait until they end, cancel one (POST /tasks/…/cancel), or give max_running with "
        f"PATCH /tasks/{facts.task.task_id} so that more may run.",
        data | _taken(line) | {"key": key, "places": places},
    )


def _by_handler(name: str, places: int, line: Line, data: dict[str, Any]) -> Reason:
    if line.running >= places:
        text = (
            f"It waits for its handler, of whose tasks {places} may run at a time (max_running): "
            f"{named(line.holders, line.running)} {'does' if line.running == 1 else 'do'}."
        )
    elif line.before:
        text = f"It waits for its handler's max_running, with {others(line.before)} before it."
    else:
        text = f"It has waited for its handler's max_running. {_SOON}"
    return Reason(
        ReasonCode.WaitingForHandler,
        text,
        f"Wait until one ends, or raise max_running where the handler {name!r} is registered.",
        data | _taken(line) | {"name": name, "places": places},
    )


def _by_rate(facts: Facts, name: str, rate: Rate, line: Line, data: dict[str, Any]) -> Reason:
    remedy = f"Wait, or raise rate_limit where the handler {name!r} is registered."
    data = data | {"name": name, "before": line.before, "rate": rate.starts / rate.seconds}
    if rate.room(line.following, facts.now) > line.before:
        text = f"It has waited for the rate of its handler. {_SOON}"
        return Reason(ReasonCode.WaitingForRate, text, remedy, data)
    begin = max(facts.now, line.following or facts.now)
    until = begin + line.before * rate.interval
    return Reason(
        ReasonCode.WaitingForRate,
        f"It waits for the rate of its handler ({rate.starts} in {duration(rate.seconds)}), with "
        f"{others(line.before)} before it: it may start at about {at(until)}.",
        remedy,
        data | {"expected_at": until},
    )


def _taken(line: Line) -> dict[str, Any]:
    return {"running": line.running, "holders": list(line.holders), "before": line.before}
