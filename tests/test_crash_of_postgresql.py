"""PostgreSQL itself is killed (kill -9) and recovers: what was promised is kept."""

import os
import signal
import threading
from pathlib import Path

import pytest

from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.identifiers import new_token
from tests.support.app import Backend, finished, later, migrate, post, running, task_body
from tests.support.services import (
    postgresql_server,
    skip_or_fail,
    temporary_database,
    wait_until,
)


def kill(server: Backend) -> None:
    """Kill a process of the server: it ends all sessions at once, and recovers from its log."""
    (row,) = server.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(row["pid"], signal.SIGKILL)


@pytest.mark.slow
def test_killed_server_loses_and_doubles_nothing(tmp_path: Path, registry: HandlerRegistry) -> None:
    release, begun = threading.Event(), threading.Event()
    runs: list[str] = []

    @registry.task("slow")
    def slow() -> str:
        begun.set()
        assert release.wait(60)
        return "kept"

    @registry.task("note")
    def note(label: str) -> None:
        runs.append(label)

    labels = [new_token() for _ in range(60)]
    with postgresql_server(tmp_path, environ={"TEST_OWN_SERVICES": "1"}) as service:
        if service.url is None:
            skip_or_fail(service.reason)
        with temporary_database(service.url) as url:
            migrate(url)
            server = Backend(url)
            with running(server, registry, threads=4) as client:
                running_id = post(client, name="slow", run_at=later(0))["task_id"]
                assert begun.wait(10)
                for place, label in enumerate(labels):
                    if place == 20:
                        kill(server)
                        release.set()
                    body = task_body(name="note", run_at=later(0.5), task_id=label)
                    body["payload"] = {"label": label}
                    # Refused while the server recovers; repeated under the same id, it is one.
                    wait_until(
                        lambda body=body: client.post("/tasks", json=body).status_code == 201,  # type: ignore[misc]
                        30,
                        "the server's return",
                    )
                for label in labels:
                    assert finished(client, label, 30)["status"] == "done"
                slow_one = finished(client, running_id, 30)
    assert (slow_one["status"], slow_one["result"]) == ("done", "kept")
    assert sorted(runs) == sorted(labels)
