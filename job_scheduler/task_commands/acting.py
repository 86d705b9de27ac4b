"""The commands that do something with tasks that are there, one or several."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from job_scheduler.client.shapes import Task
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.filters import (
    CreatedAfter,
    CreatedBefore,
    DryRun,
    DueAfter,
    DueBefore,
    Keys,
    Names,
    Statuses,
    Tags,
    Text,
    given,
)
from job_scheduler.task_commands.service import (
    DEFAULT_URL,
    AsJson,
    TaskIds,
    Url,
    asking,
    each_of,
)

if TYPE_CHECKING:
    from job_scheduler.client import Client


def run(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Run tasks now, not at their time. A recurring one gets an extra run, a task of its own."""
    _act(task_ids, url, lambda client, task_id: client.run(task_id), as_json=as_json)


def pause(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Keep tasks from starting until they are resumed."""
    _act(task_ids, url, lambda client, task_id: client.pause(task_id), as_json=as_json)


def resume(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Let paused tasks start again."""
    _act(task_ids, url, lambda client, task_id: client.resume(task_id), as_json=as_json)


def retry(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Run tasks that are failed or unknown once more, now."""
    _act(task_ids, url, lambda client, task_id: client.retry(task_id), as_json=as_json)


def cancel(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Cancel tasks. One that is running is being ended: `watch` follows it."""
    _act(task_ids, url, lambda client, task_id: client.cancel(task_id), as_json=as_json)


def delete(
    task_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="The tasks' ids.", show_default=False),
    ] = None,
    status: Statuses = None,
    name: Names = None,
    tag: Tags = None,
    key: Keys = None,
    text: Text = None,
    due_after: DueAfter = None,
    due_before: DueBefore = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Remove tasks that have not started: nothing of them is kept.

    Name them by their ids, or by filters, all of which they must meet.
    """
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
    )
    if bool(task_ids) == bool(filters):
        raise typer.BadParameter("Give the ids of tasks, or filters.")
    if task_ids:
        if dry_run:
            raise typer.BadParameter("Goes with filters.", param_hint="--dry-run")

        def tell(message: str) -> None:
            typer.echo(shown.document({"message": message}) if as_json else message)

        each_of(task_ids, url, lambda client, task_id: client.delete(task_id), tell)
        return
    with asking(url) as client:
        number = client.delete_many(dry_run=dry_run, **filters)
    would = f"{number} tasks would be removed." if dry_run else f"{number} tasks are removed."
    typer.echo(shown.document({"tasks": number, "dry_run": dry_run}) if as_json else would)


def _act(
    task_ids: Sequence[str],
    url: str,
    act: Callable[["Client", str], Task],
    *,
    as_json: bool,
) -> None:
    each_of(task_ids, url, act, lambda task: shown.tell(task, as_json=as_json))
