"""The commands that make a task, and that tell beforehand when one would run."""

from datetime import timedelta
from typing import Annotated, Any

import typer

from job_scheduler.clock import SystemClock
from job_scheduler.constants import PRIORITY_MAX
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.service import (
    DEFAULT_URL,
    EXIT_REFUSED,
    PATIENT_RETRIES,
    AsJson,
    Url,
    asking,
)
from job_scheduler.task_commands.words import duration, members

_TIMES_MAX = 1_000
_EXAMPLE_NAME = "send_report"
"""A name that each service knows, for a preview that is not about what is run."""

TimeZone = Annotated[
    str | None,
    typer.Option(
        "--tz",
        metavar="ZONE",
        help="The time zone of --cron, and of times without offset, such as Europe/Berlin.",
        show_default="UTC",
    ),
]


def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What to run: the name of a handler.")
    ],
    after: Annotated[
        timedelta | None,
        typer.Option(
            "--in", parser=duration, metavar="DURATION", help="When: in 90s, 10m, 1h30m, 2d."
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="When: at 2027-07-01T10:00Z."),
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="LINE", help='Again and again: "0 9 * * MON-FRI".'),
    ] = None,
    every: Annotated[
        timedelta | None,
        typer.Option("--every", parser=duration, metavar="DURATION", help="Again and again: 1h."),
    ] = None,
    timezone: TimeZone = None,
    payload: Annotated[
        list[str] | None,
        typer.Option(
            "--payload",
            "-p",
            metavar="KEY=VALUE | JSON",
            help="What the handler is given: an argument, or a JSON object of them. Repeat it "
            "for more.",
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=0, max=PRIORITY_MAX, help="What starts first when not all can."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Tasks with the same key run one at a time.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by.")] = None,
    max_attempts: Annotated[
        int | None, typer.Option(min=1, help="How often it may be started.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Send a request there, in place of a handler.")
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="MEMBER=VALUE",
            help="Any other member of POST /tasks: timeout=30, overlap=queue …",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Repeat the same command with the same key, and there is one task (not with --in, "
            "which is another time then).",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit status tells the outcome.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Schedule a task: now, in a while, at a time, or again and again.

    Times without offset are UTC, or those of --tz.

    Exit status: 0 it is scheduled (with --wait: done), 1 it is refused (or not done), 2 wrong
    usage, 3 the service cannot be reached.
    """
    if sum(each is not None for each in (after, at, cron, every)) > 1:
        raise typer.BadParameter("Give one of --in, --at, --cron and --every.")
    if wait and (cron is not None or every is not None):
        raise typer.BadParameter("Goes with a task that runs once.", param_hint="--wait")
    wanted = {
        "run_at": at if after is None else SystemClock().now() + after,
        "cron": cron,
        "interval_seconds": every and every / timedelta(seconds=1),
        "timezone": timezone,
        "payload": members(payload, "--payload") if payload else None,
        "priority": priority,
        "concurrency_key": key,
        "tags": tag,
        "max_attempts": max_attempts,
        "webhook": webhook and {"url": webhook},
        "idempotency_key": idempotency_key,
    }
    given: dict[str, Any] = {each: value for each, value in wanted.items() if value is not None}
    for each, value in members(other or (), "--set").items():
        if each == "name" or each in given:
            raise typer.BadParameter(f"{each} is given already.", param_hint="--set")
        given[each] = value
    with asking(url) as client:
        task = client.create(name, **given)
    if wait:
        with asking(url, PATIENT_RETRIES) as client:
            task = client.wait(task.task_id)
    shown.tell(task, as_json=as_json)
    if wait and task.status != "done":
        raise typer.Exit(EXIT_REFUSED)


def preview(
    cron: Annotated[str, typer.Argument(metavar="CRON", help='A line: "0 9 * * MON-FRI", @daily.')],
    timezone: TimeZone = None,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, max=_TIMES_MAX, help="How many times to tell.")
    ] = 5,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Tell when a line of cron falls due, in words too. Nothing is scheduled."""
    with asking(url) as client:
        found = client.preview(_EXAMPLE_NAME, n=number, cron=cron, timezone=timezone)
    if as_json:
        typer.echo(shown.document(found.raw))
        return
    typer.echo(f"{found.description}\n")
    for each in shown.moment_lines(found.next):
        typer.echo(each)
    for warning in found.warnings:
        typer.echo(f"\nNote: {warning}")
