"""The service as its clients meet it: a process behind a port, with handlers that tests can use."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.app import ROOT, ServiceProcess, service_process

HANDLERS = '''
from pathlib import Path
from threading import Event

from job_scheduler import Fail, RunContext, task


@task("greet")
def greet(name: str = "you", times: int = 1) -> str:
    """Greet somebody."""
    return f"Hello {name}" * times


@task("stumble")
def stumble() -> None:
    raise Fail("it stumbled")


@task("await_file")
def await_file(file: str, context: RunContext) -> str:
    """Run until a file is there, or it is asked to stop."""
    context.progress(0.25, "looking")
    while not Path(file).exists() and not context.should_stop:
        Event().wait(0.01)
    return "found"
'''


@contextmanager
def served(directory: Path, **settings: Any) -> Iterator[ServiceProcess]:
    """Run a service with these handlers; its `url` is where it is."""
    (directory / "client_tasks.py").write_text(HANDLERS)
    environment = {"TASK_MODULES": "client_tasks", "SHUTDOWN_GRACE": "1"} | settings
    with service_process(directory, environment) as service:
        service.start().close()
        yield service


def installed_command(directory: Path) -> dict[str, str]:
    """Return an environment in which `job-scheduler` is installed, as pip does it."""
    (directory / "bin").mkdir()
    script = directory / "bin" / "job-scheduler"
    script.write_text(f"#!{sys.executable}\nfrom job_scheduler.cli import main\nmain()\n")
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name.startswith("COV")}
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(directory)}


def in_shell(environment: dict[str, str], command: str) -> str:
    """What a command prints in bash."""
    done = subprocess.run(
        # More than one command: bash stays, so that it can be found out which shell it is.
        ["/bin/bash", "-ec", f"{command}\nexit $?"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
