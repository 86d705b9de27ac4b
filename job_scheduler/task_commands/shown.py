"""How tasks are shown: in a line, in a table, or with all that is known of them.

Times are UTC, as in the service's log and answers: they can be given back to it as they are.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

import typer

from job_scheduler.client.shapes import Event, Moment, Run, Task
from job_scheduler.clock import in_iso_8601
from job_scheduler.terminal import Column, printable, table

if TYPE_CHECKING:
    from job_scheduler.client.reports import ImportReport

_TASKS = (
    Column("ID"),
    Column("STATUS"),
    Column("RUN AT (UTC)"),
    Column("NAME", cut=True),
    Column("RESULT", cut=True, spare=True),
)
_RUNS = (
    Column("#"),
    Column("STARTED (UTC)"),
    Column("LATE"),
    Column("TOOK"),
    Column("OUTCOME"),
    Column("RESULT", cut=True),
)
_REPORT = ("lines", "created", "present", "skipped", "refused")
_MOMENTS = (Column("UTC"), Column("LOCAL"), Column("OFFSET"))
_FIRST = ("task_id", "name", "status", "run_at", "retry_at", "started_at", "finished_at")
"""What is told first of a task; what else there is follows in the service's order."""
_TIMES = {each.name for each in fields(Task) if datetime in (each.type, *get_args(each.type))}
_SPANS = (("d", 86_400), ("h", 3_600), ("min", 60))


def document(answer: Any, indent: int | None = 2) -> str:
    """Return an answer of the service as it came, laid out for reading, or in one line."""
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]
        for char in json.dumps(answer, indent=indent, ensure_ascii=False)
    )


def tell(task: Task, *, as_json: bool) -> None:
    """Print a task in a line, or as the service answered it."""
    typer.echo(document(task.raw) if as_json else line(task))


def line(task: Task) -> str:
    """Return a task in one line: id, status, time, name, and what came of it."""
    parts = [task.task_id, f"{task.status:<9}", second(task.run_at), task.name, _outcome(task)]
    return printable("  ".join(parts)).rstrip()


def task_lines(tasks: Iterable[Task], width: int | None) -> list[str]:
    """Return a table of tasks."""
    rows = [
        (task.task_id, task.status, f"{task.run_at:%Y-%m-%d %H:%M}", task.name, _outcome(task))
        for task in tasks
    ]
    return table(_TASKS, rows, width)


def detail_lines(
    task: Task, runs: Sequence[Run], following: Sequence[Moment], now: datetime, width: int | None
) -> Iterator[str]:
    """Tell all that is known of a task, each member that is not null, and its attempts."""
    told = {
        name: value
        for name in dict.fromkeys((*_FIRST, *task.raw))
        if (value := getattr(task, name) if name in _TIMES else task.raw.get(name)) is not None
    }
    room = max(map(len, told)) + 2
    for name, value in told.items():
        first, *others = _value_lines(value, now)
        yield f"{name:<{room}}{first}"
        yield from (" " * room + other for other in others)
    if following:
        yield from ("", "Its next times:", *moment_lines(following))
    if runs:
        yield from ("", "Its attempts:", *table(_RUNS, list(map(_run_row, runs)), width))


def moment_lines(moments: Sequence[Moment]) -> list[str]:
    """Return a table of times."""
    return table(
        _MOMENTS,
        [(second(each.utc), each.local.replace("T", " "), each.offset) for each in moments],
    )


def event_line(event: Event) -> str:
    """Return a change in one line: time, id, what became of what, and the task's name."""
    change = f"{event.former or 'new':<9} → {event.status or 'removed':<9}"
    return printable("  ".join([second(event.at), event.task_id, change, event.name]))


def report_lines(report: "ImportReport", width: int | None) -> list[str]:
    """Return a table of what became of the lines of an import."""
    titles = [Column(name.upper()) for name in _REPORT]
    return table(titles, [[str(getattr(report, name)) for name in _REPORT]], width)


def refusal_lines(report: "ImportReport") -> Iterator[str]:
    """Tell which lines were refused, and why: each field that is wrong has a line."""
    for refusal in report.problems:
        problem = refusal.problem
        faults = [f"{each.field}: {each.detail}" for each in problem.errors] or [problem.detail]
        yield from (printable(f"line {refusal.line}: {fault}") for fault in faults)
    more = report.refused - len(report.problems)
    if more:
        yield f"{more} more lines were refused."
    if report.dry_run:
        yield "This was a dry run: nothing is stored."


def relative(instant: datetime, now: datetime) -> str:
    """Return how far away an instant is, in words."""
    apart = abs(instant - now)
    words = f"{apart / timedelta(seconds=1):.0f} s"
    for unit, seconds in _SPANS:
        if apart >= timedelta(seconds=2 * seconds):
            words = f"{apart // timedelta(seconds=seconds)} {unit}"
            break
    return f"in {words}" if instant > now else f"{words} ago"


def _outcome(task: Task) -> str:
    """Return what is to be said of a task beside its status: how far it is, or what came of it."""
    if task.status == "running" and task.progress is not None:
        message = task.progress.get("message") or ""
        return f"{task.progress['fraction']:.0%} {message}".rstrip()
    return "" if task.result is None else _compact(task.result)


def _run_row(run: Run) -> tuple[str, ...]:
    return (
        str(run.attempt),
        second(run.started_at),
        f"{run.late:.3f} s",
        "" if run.duration is None else f"{run.duration:.3f} s",
        run.outcome,
        "" if run.result is None else _compact(run.result),
    )


def _value_lines(value: Any, now: datetime) -> list[str]:
    if isinstance(value, datetime):
        return [f"{in_iso_8601(value)} ({relative(value, now)})"]
    if isinstance(value, str):
        return [printable(each) for each in value.splitlines()] or [""]
    return [printable(_compact(value))]


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def second(instant: datetime) -> str:
    """Return an instant to the second."""
    return f"{instant:%Y-%m-%d %H:%M:%S}Z"
