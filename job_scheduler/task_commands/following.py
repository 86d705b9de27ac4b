"""The command that follows what changes: events."""

from typing import Annotated

import typer

from job_scheduler.constants import TaskStatus
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.filters import Keys, Names, Tags
from job_scheduler.task_commands.service import DEFAULT_URL, PATIENT_RETRIES, AsJson, Url, asking


def events(
    status: Annotated[
        list[TaskStatus] | None, typer.Option(help="Changes to this status. Repeat it for more.")
    ] = None,
    name: Names = None,
    tag: Tags = None,
    key: Keys = None,
    task: Annotated[list[str] | None, typer.Option(metavar="ID", help="Of this task.")] = None,
    last_event_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on after this event.", show_default="now")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Follow the changes of tasks' states as they come: a line for each, until you end it.

    With --json, each line is an object, whose `id` is one for --last-event-id. A restart of the
    service is outlasted, and no change is missed.

    Exit status: 1 it is refused, 3 the service cannot be reached.
    """
    with asking(url, PATIENT_RETRIES) as client:
        changes = client.events(
            last_event_id=last_event_id,
            on_open=_tell_of_gap,
            status=status or (),
            name=name or (),
            tag=tag or (),
            key=key or (),
            task_id=task or (),
        )
        for event in changes:
            told = {"id": event.id, **event.raw}
            typer.echo(shown.document(told, None) if as_json else shown.event_line(event))


def _tell_of_gap(is_complete: bool) -> None:
    if not is_complete:
        typer.echo("Changes may be missing here: `list` tells how tasks stand.", err=True)
