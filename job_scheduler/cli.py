"""The command line: serve, migrate, check, recovery-plan, chaos; and what asks a service."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvicorn

from job_scheduler import task_commands
from job_scheduler.clock import SystemClock
from job_scheduler.config import Settings, load_settings
from job_scheduler.constants import UnknownTasks
from job_scheduler.core import deploy_check, recovery_plan
from job_scheduler.core.handlers.built_in import with_built_in
from job_scheduler.core.handlers.modules import import_task_modules
from job_scheduler.core.handlers.registry import registered
from job_scheduler.core.recovery import Rules
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import DatabaseUnavailable, SchemaError, StartError
from job_scheduler.logger import configure_logging
from job_scheduler.migrations.upgrade import (
    create_database,
    insist_on_schema,
    reason_of,
    upgrade,
)

EXIT_CANNOT_START = 2
OPEN_REQUESTS_SECONDS = 5
"""How long a stop waits for requests that are open; the runs' grace period follows."""
_BACKLOG = 2048

cli = typer.Typer(
    name="job-scheduler",
    help="Runs tasks at their time, once, and keeps the result.",
    no_args_is_help=False,
)


@cli.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Runs tasks at their time, once, and keeps the result. Without a command: serve."""
    if context.invoked_subcommand is None:
        serve()


@cli.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on; 0: any.")
    ] = 8000,
) -> None:
    """Start the service. The configuration comes from the environment and from .env."""
    try:
        settings = load_settings()
        listener = _listen(host, port)
    except StartError as error:
        _give_up(str(error))
    from job_scheduler.main import create_app  # noqa: PLC0415 (half a second, of which an error needs none)

    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_level=settings.log_level.lower(),
        # A line for each request takes a tenth of the time of one.
        access_log=settings.log_level == "DEBUG",
        timeout_graceful_shutdown=OPEN_REQUESTS_SECONDS,
    )
    server = _AnnouncingServer(config)
    try:
        with listener:
            server.run(sockets=[listener])
    except SystemExit:
        # uvicorn's own way to end after a start that failed; why, it has logged.
        raise SystemExit(EXIT_CANNOT_START) from None


@cli.command("migrate")
def migrate_command() -> None:
    """Create or update the database's schema; repeating it changes nothing."""
    raise SystemExit(migrate())


def migrate() -> int:
    """Create or update the schema of the configured database, saying what was done.

    Return the exit status: 0, or 2 when it could not be done.
    """
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        url = settings.database
        shown = url.render_as_string(hide_password=True)
        if not settings.embedded and create_database(url):
            typer.echo(f"Created the database {url.database}.")
        database = Database(build_engine(url))
        try:
            applied = upgrade(database)
        finally:
            database.close()
    except StartError as error:
        typer.echo(str(error), err=True)
        return EXIT_CANNOT_START
    except DatabaseUnavailable as error:
        typer.echo(f"The database cannot be reached ({reason_of(error)}). Check DB_URL.", err=True)
        return EXIT_CANNOT_START
    if applied:
        typer.echo(f"Migrated {shown}: applied {', '.join(applied)}.")
    else:
        typer.echo(f"{shown} is up to date.")
    return 0


@cli.command("recovery-plan")
def recovery_plan_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what a start would do with overdue tasks, without doing it. Nothing need be running."""
    with _present_database() as (settings, database), database.reading() as connection:
        plan = recovery_plan.plan(connection, Rules.of(settings), settings.lease_seconds)
    typer.echo(plan.model_dump_json(indent=2) if as_json else recovery_plan.as_table(plan))


@cli.command("check")
def check_command() -> None:
    """Compare this release's handlers with the pending tasks. Nothing need be running.

    Exit status: 0 all can be run, 1 some cannot, 2 it cannot be checked.
    """
    from job_scheduler.core.handlers.processes.commands import Commands  # noqa: PLC0415 (slow)
    from job_scheduler.core.handlers.webhook.guard import Guard  # noqa: PLC0415 (likewise)
    from job_scheduler.core.handlers.works import refusal_of_stored  # noqa: PLC0415 (likewise)

    with _present_database() as (settings, database), database.reading() as connection:
        import_task_modules(settings.modules)
        registry = with_built_in(registered, database, SystemClock())
        guard = Guard(settings.webhooks_allowed)
        commands = Commands(settings.allowed_commands, {})
        found = deploy_check.check(
            connection,
            registry,
            lambda webhook, command: refusal_of_stored(guard, commands, webhook, command),
            reject_unknown=settings.unknown_tasks is UnknownTasks.Reject,
        )
    for line in deploy_check.in_lines(found, registry):
        typer.echo(line)
    raise SystemExit(1 if found.findings else 0)


@cli.command("chaos")
def chaos_command(
    db_url: Annotated[
        str,
        typer.Option(
            help="PostgreSQL: a database of the run's own is made beside the one that is named, "
            "which is not touched. sqlite:///…: a file of its own."
        ),
    ],
    redis_url: Annotated[
        str | None,
        typer.Option(help="Without it, the instances have no Redis. Only own keys are touched."),
    ] = None,
    instances: Annotated[int, typer.Option(min=1, max=50, help="Processes of the service.")] = 3,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks are asked for.")] = 5_000,
    seconds: Annotated[
        float, typer.Option(min=1, help="For how long there are faults; it settles after that.")
    ] = 60.0,
    seed: Annotated[
        int | None, typer.Option(help="Repeats the tasks and faults of the run with this seed.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the database, the ledger and the logs.")
    ] = False,
) -> None:
    """Try the service under random faults on your servers, and check what it promises.

    Exit status: 0 nothing broken, 1 a promise broken, 2 the kills hit too few runs to show
    anything, or it cannot be run.
    """
    try:
        from job_scheduler.chaos import command  # noqa: PLC0415 (it needs development packages)
    except ModuleNotFoundError as missing:
        _give_up(
            f"This command needs the package {missing.name}, which the service itself does not. "
            "Install what its tests need: pip install -r requirements.txt"
        )
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    options = command.Options(db_url, redis_url, instances, tasks, seconds, chosen, keep)
    raise SystemExit(command.run(options))


task_commands.add_to(cli)


def main() -> None:
    """Run the command line."""
    cli()


class _AnnouncingServer(uvicorn.Server):
    """Says, when the service is ready, what to try first."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then announce."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            typer.echo(_announcement(f"http://{f'[{host}]' if ':' in host else host}:{port}"))


def _announcement(url: str) -> str:
    return f"""
  Job Scheduler Service is ready: {url}
  Documentation, to try out in the browser: {url}/docs

  Schedule a task for now, and look at its result:

    curl {url}/tasks -H 'Content-Type: application/json' \\
      -d '{{"name": "send_report", "run_at": "'$(date -u +%FT%TZ)'"}}'
    curl {url}/tasks
"""


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address.

    Raises:
        StartError: that is not possible, because the port is taken, say.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}). "
            f"Choose another port, for instance: make run PORT={port + 1}"
        ) from error
    return listener


@contextmanager
def _present_database() -> Iterator[tuple[Settings, Database]]:
    """Open the configured database as it is; whatever stands against that ends the command."""
    try:
        settings = load_settings()
        url = settings.database
        if settings.embedded and not Path(str(url.database)).exists():
            raise SchemaError(f"There is no database {url.database}. Check DB_URL.")
        database = Database(build_engine(url))
        try:
            with database.reading() as connection:
                insist_on_schema(connection)
            yield settings, database
        finally:
            database.close()
    except StartError as error:
        _give_up(str(error))
    except DatabaseUnavailable as error:
        _give_up(f"The database cannot be reached ({reason_of(error)}). Check DB_URL.")


def _give_up(line: str) -> NoReturn:
    typer.echo(line, err=True)
    raise SystemExit(EXIT_CANNOT_START)
