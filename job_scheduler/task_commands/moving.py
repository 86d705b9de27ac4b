"""The commands by which many tasks leave and come: as lines of JSON, in bounded memory."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from job_scheduler.identifiers import new_token
from job_scheduler.task_commands import shown
from job_scheduler.task_commands.filters import (
    CreatedAfter,
    CreatedBefore,
    DryRun,
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
from job_scheduler.task_commands.service import DEFAULT_URL, EXIT_REFUSED, AsJson, Url, asking
from job_scheduler.terminal import printable, terminal_width

if TYPE_CHECKING:
    from job_scheduler.client import Task

_TOLD_LINES = 10_000
"""After so many lines it is told how far it has come."""


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="Write them there: the file is there when it is whole.",
        ),
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
    finished_after: FinishedAfter = None,
    finished_before: FinishedBefore = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Print tasks, one a line, as JSON: all, or those that meet all filters. `import` reads them.

    Exit status: 0 that is all; 1 it is refused, or the file cannot be written; 2 wrong usage; 3 the
    service went away: what was printed is not all, and there is no file.
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
        finished_after=finished_after,
        finished_before=finished_before,
    )
    with asking(url) as client:
        tasks = client.export(**filters)
        if output is None:
            _write(tasks, typer.get_binary_stream("stdout"), is_told=False)
            return
        with _whole(output) as file:
            number = _write(tasks, file, is_told=True)
    typer.echo(f"{number} tasks are in {printable(str(output))}.", err=True)


def import_tasks(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE|-", help="A task a line, as JSON; -: what is piped in."),
    ],
    dry_run: DryRun = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Repeat the same import with the same key, and each task is made once.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make tasks of lines: each is a body of POST /tasks, or a task as `export` prints it.

    Of exported tasks, those that have begun are skipped. What can be made is; the lines that are
    refused are told of.

    Exit status: 0 no line was refused, 1 some were, 2 wrong usage, 3 the service cannot be reached,
    or went away in the middle: what it has made is there.
    """
    with asking(url) as client:
        report = client.import_tasks(
            _Counted(file), dry_run=dry_run, idempotency_key=idempotency_key
        )
    if as_json:
        typer.echo(shown.document(report.raw))
    else:
        typer.echo("\n".join(shown.report_lines(report, terminal_width())))
        for line in shown.refusal_lines(report):
            typer.echo(line, err=True)
    if report.refused:
        raise typer.Exit(EXIT_REFUSED)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to be written, which takes its place when the block has ended well.

    Raises:
        typer.BadParameter: it is something else than a file, such as a pipe.
        typer.Exit: it cannot be written.
    """
    place = path.resolve()
    begun = place.with_name(f".{place.name}.{new_token()}")
    if place.exists() and not place.is_file():
        raise typer.BadParameter(f"{path} is no file: leave it out, and redirect what is printed.")
    try:
        with begun.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        begun.replace(place)
    except OSError as error:
        typer.echo(printable(f"{path} cannot be written ({error.strerror})."), err=True)
        raise typer.Exit(EXIT_REFUSED) from None
    finally:
        with suppress(OSError):
            begun.unlink()


def _write(tasks: Iterable["Task"], file: IO[bytes], *, is_told: bool) -> int:
    number = 0
    for number, task in enumerate(tasks, 1):
        file.write(json.dumps(task.raw, separators=(",", ":")).encode() + b"\n")
        if is_told and number % _TOLD_LINES == 0:
            typer.echo(f"{number} tasks …", err=True)
    file.flush()
    return number


class _Counted(RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lines = 0

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        piece = self._file.read(size)
        told = self._lines // _TOLD_LINES
        self._lines += piece.count(b"\n")
        if self._lines // _TOLD_LINES > told:
            typer.echo(f"{self._lines} lines …", err=True)
        return piece

    def seekable(self) -> bool:
        """Tell whether it can be wound back."""
        return self._file.seekable()

    def tell(self) -> int:
        """Tell where it is."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Wind it back."""
        self._lines = 0
        return self._file.seek(offset, whence)
