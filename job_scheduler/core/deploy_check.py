"""What the pending tasks in a database ask for, and whether this release's handlers can do it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.store import tasks, tasks_after
from job_scheduler.exceptions import in_words

_EXAMPLES = 3
_PAGE = 5_000


@dataclass(slots=True)
class Finding:
    """Pending tasks of one name that cannot be run: how many, and some of them.

    `examples` are the first of them, each with what is wrong with it.
    """

    name: str
    problem: str
    tasks: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what was found.

    A task that names no handler, and never did, only keeps the time: `timers` counts them.
    """

    pending: int
    timers: int
    findings: list[Finding]


def check(
    connection: Connection,
    registry: HandlerRegistry,
    refusal: Callable[[Any, Any], str | None],
    *,
    reject_unknown: bool,
) -> Check:
    """Compare every pending task with the handlers; `reject_unknown` as ``UNKNOWN_TASKS`` says.

    `refusal` tells of a webhook and a command (either may be None) why they are not allowed.
    """
    findings: dict[tuple[str, str], Finding] = {}
    pending = timers = 0
    for task_id, name, payload, expects_handler, webhook, command in _pending(connection):
        pending += 1
        handler = registry.get(name)
        if webhook is not None or command is not None:
            problem, words = "it is not allowed", refusal(webhook, command)
        elif handler is not None:
            faults = handler.arguments.faults(payload or {})
            problem, words = "the payload does not fit the handler", in_words(faults)
        elif expects_handler or reject_unknown:
            problem, words = "no handler has this name", "it waits until there is one"
        else:
            timers += 1
            continue
        if not words:
            continue
        finding = findings.setdefault((name, problem), Finding(name, problem))
        finding.tasks += 1
        if len(finding.examples) < _EXAMPLES:
            finding.examples.append((task_id, words))
    return Check(pending, timers, sorted(findings.values(), key=lambda each: -each.tasks))


def in_lines(found: Check, registry: HandlerRegistry) -> Iterator[str]:
    """Yield what was found, for a person to read."""
    known = ", ".join(registry.names())
    yield f"{found.pending} pending tasks, compared with the handlers {known}."
    if found.timers:
        yield f"{found.timers} of them have a name without a handler, and only keep the time."
    for finding in found.findings:
        yield f"{finding.name}: {finding.problem} ({finding.tasks} tasks)"
        yield from (f"    {task_id}: {words}" for task_id, words in finding.examples)
    if not found.findings:
        yield "All of them can be run."


def _pending(connection: Connection) -> Iterator[Sequence[Any]]:
    """Yield what the pending tasks ask for, without holding them all in memory."""
    asked = (
        select(
            *(tasks.c.run_at, tasks.c.task_id),
            *(tasks.c.name, tasks.c.payload, tasks.c.expects_handler),
            *(tasks.c.webhook, tasks.c.command),
        )
        .where(tasks.c.status.in_(["scheduled", "paused", "running"]))
        .order_by(tasks.c.run_at, tasks.c.task_id)
        .limit(_PAGE)
    )
    page = asked
    while rows := connection.execute(page).all():
        for row in rows:
            yield row[1:]
        page = asked.where(tasks_after((rows[-1].run_at, rows[-1].task_id)))
