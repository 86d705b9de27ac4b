"""Several processes on one SQLite file: workers of one server, and a sibling that starts later."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from tests.conftest import SQLITE
from tests.support.app import (
    Backend,
    ServiceProcess,
    assert_problem,
    finished,
    later,
    post,
    running,
    service_process,
    services_of,
    task_body,
)
from tests.support.services import find_free_port, wait_until

HANDLERS = """
import os
from job_scheduler import task

@task("note")
def note(label):
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{label}\\n".encode())
    os.close(ledger)
"""
WORKERS = 4
CLIENTS = 4
TASKS = 50  # of each client


@contextmanager
def workers(directory: Path, backend: Backend, **settings: str) -> Iterator[ServiceProcess]:
    """A server with four workers on one file; they are surely gone at the end."""
    (directory / "handlers.py").write_text(HANDLERS)
    environment = backend.environment() | {
        "TASK_MODULES": "handlers",
        "LEDGER": str(directory / "ledger"),
        **settings,
    }
    port = find_free_port()
    command = ["-m", "uvicorn", "job_scheduler.main:app", "--port", str(port)]
    command += ["--workers", str(WORKERS)]
    with service_process(directory, environment, *command) as service:
        service.url = f"http://127.0.0.1:{port}"
        service.launch()
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.stop()  # killed, it would leave its workers behind


def alive(backend: Backend) -> int:
    """How many instances are at work."""
    with suppress(Exception):  # there is no table yet
        return int(backend.sql("SELECT count(*) AS n FROM instances WHERE state = 'alive'")[0]["n"])
    return 0


def ledger(directory: Path) -> Counter[str]:
    """How often each task has run."""
    return Counter((directory / "ledger").read_text().split())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_workers_on_one_new_file_run_each_task_once(tmp_path: Path) -> None:
    backend = Backend(f"sqlite:///{tmp_path}/tasks.db")
    begin = threading.Barrier(CLIENTS)

    def create_many(client_number: int) -> list[str]:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as client:
            begin.wait(30)
            labels = [f"{client_number}-{number}" for number in range(TASKS)]
            for number, label in enumerate(labels):
                post(client, name="note", run_at=later(number % 7 / 5), payload={"label": label})
        return labels

    with workers(tmp_path, backend) as service:
        wait_until(lambda: alive(backend) == WORKERS, 60, "the start of all workers")
        with ThreadPoolExecutor(CLIENTS) as clients:
            labels = [label for many in clients.map(create_many, range(CLIENTS)) for label in many]
        wait_until(lambda: backend.count("status = 'done'") == len(labels), 60, "all tasks")
        assert service.stop() == 0
        output = service.output()
    assert ledger(tmp_path) == Counter(labels)
    assert backend.count() == len(labels)
    assert backend.count("attempt = 1") == len(labels)
    assert len(backend.sql("SELECT 1 FROM task_runs WHERE outcome = 'done'")) == len(labels)
    assert (alive(backend), len(backend.sql("SELECT 1 FROM instances"))) == (0, WORKERS)
    # They started at the same time: one decided what was missed, the others joined it.
    assert output.count("tasks were overdue at the start") == 1
    assert output.count("joined other instances") == WORKERS - 1
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("db_url", [SQLITE], indirect=True)
def test_sibling_that_starts_later_misses_nothing_and_touches_no_run(
    store: Backend, tmp_path: Path
) -> None:
    with workers(tmp_path, store, RECOVER_PAST_TASKS="fail"):
        wait_until(lambda: alive(store) == WORKERS, 60, "the start of all workers")
        taker = store.sql("SELECT instance_id AS id FROM instances LIMIT 1")[0]["id"]
        theirs = store.insert_task(status="running", instance_id=taker)
        with running(store, recover_past_tasks="fail") as client:
            assert store.row(theirs)["status"] == "running"
            assert alive(store) == WORKERS + 1
            overdue = store.insert_task("nobody knows this one", run_at=later(-60))
            assert finished(client, overdue)["status"] == "done"


@pytest.mark.parametrize("db_url", [SQLITE], indirect=True)
def test_file_that_another_program_keeps_busy_is_waited_for_a_while_and_then_unavailable(
    store: Backend,
) -> None:
    def be_less_patient(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA busy_timeout = 300")

    file = store.db_url.removeprefix("sqlite:///")
    other = sqlite3.connect(file, isolation_level=None)
    with running(store) as client:
        engine = services_of(client).database.engine
        event.listen(engine, "connect", be_less_patient)
        engine.dispose()
        other.execute("BEGIN IMMEDIATE")
        assert_problem(client.post("/tasks", json=task_body()), 503, "DATABASE_503")
        assert client.get("/tasks").json() == []  # reads go on
        assert client.get("/health").json()["database"]["status"] == "ok"
        other.execute("ROLLBACK")
        created = post(client, run_at=later(0))
        assert finished(client, created["task_id"])["status"] == "done"
    other.close()
    assert store.count() == 1
