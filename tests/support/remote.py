"""The service as its clients meet it: a process behind a port, with handlers that tests can use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.app import ServiceProcess, service_process

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
