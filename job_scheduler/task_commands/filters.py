"""The options by which tasks are found: those of the list, with the same meaning everywhere."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from job_scheduler.constants import TaskStatus

if TYPE_CHECKING:
    from job_scheduler.client import TaskMatch

Statuses = Annotated[
    list[TaskStatus] | None,
    typer.Option("--status", help="Those with this status. Repeat it for more."),
]
Names = Annotated[list[str] | None, typer.Option("--name", help="Those with exactly this name.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Those with this tag.")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="Those with this concurrency_key.")]
Text = Annotated[
    str | None, typer.Option("--text", "-q", help="Those with this text in their name.")
]
DueAfter = Annotated[str | None, typer.Option(metavar="TIME", help="Those that run then or later.")]
DueBefore = Annotated[str | None, typer.Option(metavar="TIME", help="Those that run before.")]
CreatedAfter = Annotated[
    str | None, typer.Option(metavar="TIME", help="Those that were made then or later.")
]
CreatedBefore = Annotated[
    str | None, typer.Option(metavar="TIME", help="Those that were made before.")
]
FinishedAfter = Annotated[
    str | None, typer.Option(metavar="TIME", help="Those that ended then or later.")
]
FinishedBefore = Annotated[
    str | None, typer.Option(metavar="TIME", help="Those that ended before.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only look; nothing is done.")]


def given(*, text: str | None, **options: Any) -> "TaskMatch":
    """Return the filters that were given, as a client takes them."""
    options["q"] = text
    filters = {name: value for name, value in options.items() if value not in (None, [])}
    return cast("TaskMatch", filters)
