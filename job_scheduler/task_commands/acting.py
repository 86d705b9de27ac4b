"""The commands that do something with tasks that are there, one or several."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from job_scheduler.client.shapes import Task
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.service import DEFAULT_URL, AsJson, TaskIds, Url, each_of

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


def delete(task_ids: TaskIds, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Remove tasks that have not started: nothing of them is kept."""

    def tell(message: str) -> None:
        typer.echo(shown.document({"message": message}) if as_json else message)

    each_of(task_ids, url, lambda client, task_id: client.delete(task_id), tell)


def _act(
    task_ids: Sequence[str],
    url: str,
    act: Callable[["Client", str], Task],
    *,
    as_json: bool,
) -> None:
    each_of(task_ids, url, act, lambda task: shown.tell(task, as_json=as_json))
