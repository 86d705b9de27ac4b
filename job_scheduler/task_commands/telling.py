"""The commands that tell why a task has not run, and what is to come: explain, forecast."""

import textwrap
from collections.abc import Iterator
from typing import Annotated

import typer

from job_scheduler.client.shapes import Explanation, Forecast
from job_scheduler.core.schemas_forecast import HOURS_MAX
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.service import DEFAULT_URL, AsJson, TaskId, Url, asking
from job_scheduler.terminal import Column, printable, table, terminal_width

_INTERVALS = (Column("FROM (UTC)"), Column("TASKS"), Column("PEAK"), Column("NAMES", cut=True))
_INDENT = "  "


def explain(task_id: TaskId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Tell why a task has not run, ran late, ran twice or was skipped, and what to do."""
    with asking(url) as client:
        found = client.explain(task_id)
    if as_json:
        typer.echo(shown.document(found.raw))
    else:
        typer.echo("\n".join(reason_lines(found, terminal_width())))


def forecast(
    hours: Annotated[
        int, typer.Option(min=1, max=HOURS_MAX, help="How many hours to look ahead.")
    ] = 24,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Tell how many tasks fall due in the next hours, recurring ones each time, and the peaks."""
    with asking(url) as client:
        found = client.forecast(hours=hours)
    if as_json:
        typer.echo(shown.document(found.raw))
    else:
        typer.echo("\n".join(forecast_lines(found, terminal_width())))


def reason_lines(found: Explanation, width: int | None) -> Iterator[str]:
    """Tell the reasons, the most important one first, each with what to do about it."""
    yield printable(f"{found.task_id}  {found.status}")
    for reason in found.reasons:
        yield ""
        yield from _wrapped(f"{reason.code}: {reason.text}", width)
        yield from _wrapped(reason.remedy, width, _INDENT)


def forecast_lines(found: Forecast, width: int | None) -> Iterator[str]:
    """Tell the intervals in which anything falls due, and what was not counted."""
    count = "1 task falls" if found.total == 1 else f"{found.total} tasks fall"
    yield (
        f"{count} due from {shown.second(found.begin)} to {shown.second(found.until)}, "
        f"by intervals of {found.interval_seconds / 60:g} min."
    )
    if found.overdue:
        yield f"Due already, and not started: {found.overdue}."
    if found.truncated:
        yield f"There is more to count: all is told up to {shown.second(found.complete_until)}."
    peaks = {each.at for each in found.peaks}
    rows = [
        (
            f"{each.at:%Y-%m-%d %H:%M}",
            str(each.tasks),
            "peak" if each.at in peaks else "",
            ", ".join(f"{one.name} {one.tasks}" for one in each.names),
        )
        for each in found.intervals
        if each.tasks
    ]
    if rows:
        yield ""
        yield from table(_INTERVALS, rows, width)


def _wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    line = printable(text)
    if width is None:
        return [indent + line]
    return textwrap.wrap(
        line,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        # An id is to be copied in one piece.
        break_on_hyphens=False,
        break_long_words=False,
    )
