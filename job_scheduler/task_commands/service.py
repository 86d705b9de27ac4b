"""How a command asks the service, and what it tells of trouble: on stderr, with its exit status."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from job_scheduler.terminal import printable

if TYPE_CHECKING:
    from job_scheduler.client import ApiError, Client

T = TypeVar("T")

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3

PATIENT_RETRIES = 12
"""So that a service may be restarted while somebody waits for one of its tasks: 20 seconds."""

URL_VARIABLE = "JOB_SCHEDULER_URL"
DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar=URL_VARIABLE, help="Where the service is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the service answers, as JSON.")]
TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id.", show_default=False)]
TaskIds = Annotated[
    list[str], typer.Argument(metavar="ID", help="The tasks' ids.", show_default=False)
]


@contextmanager
def asking(url: str, retries: int | None = None) -> Iterator["Client"]:
    """Give a client of the service at `url`; an error of it ends the command."""
    # httpx takes long to load, which no other command need wait for.
    from job_scheduler.client import ApiError, Client, ServiceUnavailable  # noqa: PLC0415

    try:
        client = Client(url) if retries is None else Client(url, retries=retries)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--url, {URL_VARIABLE}") from None
    try:
        with client:
            yield client
    except ServiceUnavailable as error:
        remedy = (
            f" --url, or {URL_VARIABLE}, names another address." if error.status is None else ""
        )
        typer.echo(printable(error.detail) + remedy, err=True)
        raise typer.Exit(EXIT_UNREACHABLE) from None
    except ApiError as error:
        complain(error)
        raise typer.Exit(EXIT_REFUSED) from None


def each_of(
    task_ids: Sequence[str], url: str, act: Callable[["Client", str], T], tell: Callable[[T], None]
) -> None:
    """Do something with each of some tasks, also when another one is refused, and tell of it.

    Raises:
        typer.Exit: one or more were refused.
    """
    from job_scheduler.client import ApiError, ServiceUnavailable  # noqa: PLC0415 (as above)

    refused = False
    with asking(url) as client:
        for task_id in task_ids:
            try:
                tell(act(client, task_id))
            except ServiceUnavailable:
                raise  # It would be no better with the next one.
            except ApiError as error:
                complain(error)
                refused = True
    if refused:
        raise typer.Exit(EXIT_REFUSED)


def complain(error: "ApiError") -> None:
    """Tell what was refused, and why: each field that is wrong has a line."""
    if not error.errors:
        typer.echo(printable(error.detail), err=True)
        return
    typer.echo(f"The service refuses it ({printable(error.error_code)}):", err=True)
    for fault in error.errors:
        typer.echo(printable(f"  {fault.field or fault.location}: {fault.detail}"), err=True)
