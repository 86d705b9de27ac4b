"""The commands that look at tasks: list, show, watch."""

import time
from threading import Event
from typing import Annotated

import typer

from job_scheduler.client.shapes import Task
from job_scheduler.clock import SystemClock
from job_scheduler.constants import Sort, TaskStatus
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.filters import (
    CreatedAfter,
    CreatedBefore,
    DueAfter,
    DueBefore,
    FinishedAfter,
    FinishedBefore,
    Keys,
    Names,
    Statuses,
    Tags,
    Text,
    given,
)
from job_scheduler.task_commands.service import (
    DEFAULT_URL,
    EXIT_REFUSED,
    PATIENT_RETRIES,
    AsJson,
    TaskId,
    Url,
    asking,
)
from job_scheduler.terminal import terminal_width

_LIMIT = 50
_LOOK_SECONDS = 1
"""How often a watched task is looked at."""
_NEXT = 5


def list_tasks(
    status: Statuses = None,
    name: Names = None,
    tag: Tags = None,
    key: Keys = None,
    text: Text = None,
    due_after: DueAfter = None,
    due_before: DueBefore = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    finished_after: FinishedAfter = None,
    finished_before: FinishedBefore = None,
    sort: Annotated[
        Sort, typer.Option(help="What the list goes by; with a minus, the last come first.")
    ] = Sort.RunAt,
    limit: Annotated[int, typer.Option(min=1, help="How many to show, at most.")] = _LIMIT,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List tasks, by when they run. A task must meet all filters."""
    filters = given(
        status=status,
        name=name,
        tag=tag,
        key=key,
        text=text,
        due_after=due_after,
        due_before=due_before,
        created_after=created_after,
        created_before=created_before,
        finished_after=finished_after,
        finished_before=finished_before,
    )
    with asking(url) as client:
        # One more tells whether there are more.
        found = list(client.list(limit=limit + 1, sort=sort, **filters))
    tasks = found[:limit]
    if as_json:
        typer.echo(shown.document([task.raw for task in tasks]))
    elif tasks:
        typer.echo("\n".join(shown.task_lines(tasks, terminal_width())))
    else:
        typer.echo("There are no such tasks.", err=True)
    if len(found) > limit:
        typer.echo(f"There are more than {limit}: --limit {2 * limit} shows more.", err=True)


def show(task_id: TaskId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show all that is known of a task, its attempts, and its next times where it recurs."""
    with asking(url) as client:
        task = client.get(task_id)
        if as_json:
            typer.echo(shown.document(task.raw))
            return
        runs = client.runs(task_id)
        following = client.next_times(task_id, n=_NEXT) if task.recurrence else []
    now = SystemClock().now()
    for line in shown.detail_lines(task, runs, following, now, terminal_width()):
        typer.echo(line)


def watch(task_id: TaskId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Follow a task until it has ended: a line for each change.

    With --json, each line is an answer of the service. Exit status: 0 it is done, 1 it is not (or
    there is no such task), 3 the service cannot be reached.
    """
    with asking(url) as client:
        task = client.get(task_id)
    _tell(task, as_json=as_json)
    with asking(url, PATIENT_RETRIES) as client:
        while not task.ended:
            begin, before = time.monotonic(), shown.line(task)
            task = client.get(task_id, wait=_LOOK_SECONDS)
            if shown.line(task) != before:
                _tell(task, as_json=as_json)
            if not task.ended:
                # The service does not always wait when it is asked to.
                Event().wait(max(0.0, begin + _LOOK_SECONDS - time.monotonic()))
    if task.status != TaskStatus.Done:
        raise typer.Exit(EXIT_REFUSED)


def _tell(task: Task, *, as_json: bool) -> None:
    typer.echo(shown.document(task.raw, indent=None) if as_json else shown.line(task))
