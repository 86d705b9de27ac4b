"""The command line as it is typed: in this process, or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.testing import CliRunner, Result

from job_scheduler.cli import cli
from tests.support.app import ROOT

WIDE = "1000"


def typed(url: str, *arguments: str, exit_status: int = 0, columns: str = WIDE) -> Result:
    """Run the command line as if these arguments were typed, and check its exit status."""
    environment = {"JOB_SCHEDULER_URL": url, "COLUMNS": columns, "NO_COLOR": "1"}
    result = CliRunner(env=environment).invoke(cli, arguments, prog_name="job-scheduler")
    assert result.exit_code == exit_status, result.output
    return result


def answered(url: str, *arguments: str, exit_status: int = 0) -> Any:
    """What a command prints with --json."""
    return json.loads(typed(url, *arguments, "--json", exit_status=exit_status).stdout)


@contextmanager
def following(url: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command as a process of its own, whose lines can be read as they come."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("COV")}
    with subprocess.Popen(
        [sys.executable, "-m", "job_scheduler", *arguments],
        cwd=ROOT,
        env=kept | {"JOB_SCHEDULER_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()
