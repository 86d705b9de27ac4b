"""The commands that ask a service: add, list, show, explain, and what else is done with tasks.

Exit status: 0 all went well; 1 the service refuses, or the task that was waited for is not done;
2 wrong usage; 3 the service cannot be reached, or cannot do its work.
"""

from collections.abc import Callable

import typer

from job_scheduler.task_commands import acting, adding, following, looking, moving, telling

_PANEL = "Tasks of a running service"


def add_to(cli: typer.Typer) -> None:
    """Give a command line these commands."""
    commands: dict[str, Callable[..., None]] = {
        "add": adding.add,
        "preview": adding.preview,
        "list": looking.list_tasks,
        "show": looking.show,
        "watch": looking.watch,
        "explain": telling.explain,
        "forecast": telling.forecast,
        "run": acting.run,
        "pause": acting.pause,
        "resume": acting.resume,
        "retry": acting.retry,
        "cancel": acting.cancel,
        "delete": acting.delete,
        "events": following.events,
        "export": moving.export,
        "import": moving.import_tasks,
    }
    for name, command in commands.items():
        cli.command(name, rich_help_panel=_PANEL)(command)
