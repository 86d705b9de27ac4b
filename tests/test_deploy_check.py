"""python -m job_scheduler check; and tasks whose handler has vanished all the same."""

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from job_scheduler.cli import cli
from job_scheduler.core.deploy_check import check
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import (
    Backend,
    finished,
    later,
    parse_time,
    post,
    running,
)
from tests.support.services import wait_until


def takes_count(registry: HandlerRegistry) -> None:
    """Register a handler."""

    @registry.task("count")
    def count(number: int) -> int:
        return number


def test_check_finds_what_this_release_cannot_run(store: Backend) -> None:
    registry = HandlerRegistry()
    takes_count(registry)
    fits = store.insert_task("count", payload='{"number": 1}')
    misfits = [store.insert_task("count", payload='{"number": "1"}') for _ in range(5)]
    vanished = store.insert_task("vanished", status="paused", expects_handler=True)
    store.insert_task("timer")
    store.insert_task("count", status="done")
    store.insert_task("vanished", webhook='{"url": "https://example.com"}')
    store.insert_task("vanished", command='["true"]')
    with store.database() as database, database.reading() as connection:
        lenient = check(connection, registry, lambda *_: None, reject_unknown=False)
        strict = check(connection, registry, lambda *_: None, reject_unknown=True)
    assert (lenient.pending, lenient.timers) == (10, 1)
    assert [(each.name, each.problem, each.tasks) for each in lenient.findings] == [
        ("count", "the payload does not fit the handler", 5),
        ("vanished", "no handler has this name", 1),
    ]
    assert [task_id for task_id, _ in lenient.findings[0].examples] == misfits[:3]
    assert "payload.number" in lenient.findings[0].examples[0][1]
    assert [task_id for task_id, _ in lenient.findings[1].examples] == [vanished]
    assert fits not in str(lenient)
    assert strict.timers == 0
    assert {each.name for each in strict.findings} == {"count", "vanished", "timer"}


def run_check(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **variables: str
) -> tuple[int, str]:
    """Run the command as a person does, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    for name, value in (store.environment() | variables).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, ["check"])
    return result.exit_code, result.output


def test_command_says_that_all_is_well(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.insert_task("send_report", payload='{"hours": 3}')
    store.insert_task("timer")
    status, output = run_check(store, monkeypatch, tmp_path)
    assert status == 0
    assert "2 pending tasks" in output
    assert "send_report" in output
    assert "1 of them have a name without a handler" in output
    assert "All of them can be run." in output


def test_command_says_what_cannot_be_run(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task_id = store.insert_task("send_report", payload='{"hours": "many"}')
    store.insert_task("timer")
    status, output = run_check(store, monkeypatch, tmp_path, UNKNOWN_TASKS="reject")
    assert status == 1
    assert "send_report: the payload does not fit the handler (1 tasks)" in output
    assert task_id in output
    assert "timer: no handler has this name (1 tasks)" in output
    assert "All of them" not in output


def test_command_says_what_is_not_allowed_any_more(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.insert_task("fine", webhook='{"url": "https://example.com/"}')
    store.insert_task("fine", command='["ls"]')
    store.insert_task("inside", webhook='{"url": "http://10.0.0.1/"}')
    store.insert_task("none", webhook='{"address": "https://example.com/"}')
    store.insert_task("program", command='["rm", "-r"]')
    store.insert_task("text", command='"ls"')
    status, output = run_check(store, monkeypatch, tmp_path, COMMAND_ALLOW="ls")
    assert status == 1
    assert "fine" not in output
    for name in ("inside", "none", "program", "text"):
        assert f"{name}: it is not allowed (1 tasks)" in output
    assert "'rm' is not allowed" in output


def test_command_needs_a_database(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, output = run_check(store, monkeypatch, tmp_path, DB_URL="sqlite:///absent.db")
    assert status == 2
    assert "There is no database" in output
    assert not (tmp_path / "absent.db").exists()


# ------------------------------------------------------------------------- at run time


def test_task_whose_handler_has_vanished_waits_for_it(
    backend: Backend, registry: HandlerRegistry
) -> None:
    registry.task("count")(lambda: "at last")
    with running(backend, registry) as client:
        task_id = post(client, name="count", run_at=later(3600))["task_id"]
    backend.sql("UPDATE scheduled_tasks SET run_at = :past", past=later(-1))
    with running(backend, HandlerRegistry()) as client:
        waiting = wait_until(
            lambda: (task := client.get(f"/tasks/{task_id}").json())["result"] and task
        )
        assert client.get(f"/tasks/{task_id}/runs").json() == []
    assert waiting is not None
    assert (waiting["status"], waiting["attempt"]) == ("scheduled", 0)
    assert "no task handler is named 'count'" in waiting["result"]
    pause = parse_time(waiting["retry_at"]) - parse_time(waiting["updated_at"])
    assert pause == pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=1))
    backend.sql("UPDATE scheduled_tasks SET retry_at = :past", past=later(-1))
    with running(backend, registry) as client:
        assert finished(client, task_id)["result"] == "at last"


def test_task_of_a_name_that_nobody_knows_waits_where_such_are_refused(store: Backend) -> None:
    task_id = store.insert_task("typo", run_at=later(-100_000), payload="{}")
    with running(store, unknown_tasks="reject", recovery_rate=10) as client:
        wait_until(lambda: client.get(f"/tasks/{task_id}").json()["result"])
        waiting = client.get(f"/tasks/{task_id}").json()
    pause = parse_time(waiting["retry_at"]) - parse_time(waiting["updated_at"])
    # The longer it has waited, the more seldom it is looked at.
    assert pause == pytest.approx(timedelta(seconds=600), abs=timedelta(seconds=1))
