"""The commands on many tasks: export, import, events, and delete by filters."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from job_scheduler.client import Client, Event
from job_scheduler.core.schemas_events import EventQuery
from job_scheduler.core.schemas_list import FilterQuery
from job_scheduler.task_commands.acting import delete
from job_scheduler.task_commands.following import events
from job_scheduler.task_commands.moving import export
from tests.support.app import ROOT, Backend, ServiceProcess, later, service_process
from tests.support.commands import answered, following, next_line, typed
from tests.support.receiver import Receiver
from tests.support.remote import served
from tests.support.services import find_free_port

FAR = "2099-07-01T12:00:00Z"
LINE = json.dumps({"name": "greet", "run_at": FAR}) + "\n"
TITLES = "LINES  CREATED  PRESENT  SKIPPED  REFUSED\n"


@pytest.fixture
def url(remote: ServiceProcess) -> str:
    """Where the service is."""
    return remote.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client, for what the tests themselves want to know."""
    with Client(url) as client:
        yield client


@pytest.fixture
def service(store: Backend, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on each database."""
    with served(tmp_path, **store.environment()) as service:
        yield service


def process(url: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command as a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-m", "job_scheduler", *arguments],
        cwd=ROOT,
        env=kept | {"JOB_SCHEDULER_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


# ----------------------------------------------------------------------------- export


def test_tasks_are_printed_a_line_each(url: str, client: Client) -> None:
    tag = str(uuid4())
    tasks = [
        client.create("greet", run_at=FAR, tags=[tag, *more], payload={"name": "é\x9b\u2028"})
        for more in ([], ["b"])
    ]
    printed = typed(url, "export", "--tag", tag)
    assert [json.loads(line) for line in printed.stdout.splitlines()] == [
        task.raw for task in tasks
    ]
    assert printed.stderr == ""
    assert printed.stdout.isascii()
    [line] = typed(url, "export", "--tag", tag, "--tag", "b", "-q", "GRE").stdout.splitlines()
    assert json.loads(line) == tasks[1].raw
    refused = typed(url, "export", "--due-after", "soon", exit_status=1)
    assert (refused.stdout, "due_after" in refused.stderr) == ("", True)


def test_filters_of_many_are_those_of_the_list() -> None:
    def options(command: Any) -> set[str]:
        names = {"q" if name == "text" else name for name in signature(command).parameters}
        return names - {"url", "as_json", "output", "task_ids", "dry_run"}

    assert options(export) == FilterQuery.model_fields.keys()
    # What has not begun has not ended.
    ended = {"finished_after", "finished_before"}
    assert options(delete) == FilterQuery.model_fields.keys() - ended
    assert options(events) - {"task", "last_event_id"} == EventQuery.model_fields.keys() - {
        "task_id"
    }


def test_file_takes_its_place_when_it_is_whole(
    service: ServiceProcess, store: Backend, tmp_path: Path
) -> None:
    store.insert_tasks(10_001, run_at=later(3600))
    file = tmp_path / "out" / "tasks.ndjson"
    file.parent.mkdir()
    file.write_text("older")
    link = tmp_path / "link"
    link.symlink_to(file)
    told = typed(service.url, "export", "-o", str(link))
    assert told.stdout == ""
    assert told.stderr == f"10000 tasks …\n10001 tasks are in {link}.\n"
    assert len({json.loads(line)["task_id"] for line in file.read_text().splitlines()}) == 10_001
    assert link.is_symlink()
    assert [each.name for each in file.parent.iterdir()] == ["tasks.ndjson"]


def test_export_that_is_cut_off_leaves_no_file(
    service: ServiceProcess, store: Backend, tmp_path: Path
) -> None:
    store.insert_tasks(60_000, run_at=later(3600))
    file = tmp_path / "out" / "tasks.ndjson"
    file.parent.mkdir()
    file.write_text("older")
    with following(service.url, "export", "-o", str(file)) as exporting:
        assert exporting.stderr is not None
        assert exporting.stderr.readline() == "10000 tasks …\n"
        service.process.terminate()
        _, complaints = exporting.communicate(timeout=30)
    service.process.wait(20)
    assert exporting.returncode == 3
    assert "/tasks/export was cut off after " in complaints
    assert "They are not all: begin anew." in complaints
    assert file.read_text() == "older"
    assert [each.name for each in file.parent.iterdir()] == ["tasks.ndjson"]


def test_place_that_cannot_be_written_is_told(url: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "file"
    refused = typed(url, "export", "-o", str(missing), exit_status=1)
    assert refused.stderr == f"{missing} cannot be written (No such file or directory).\n"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused = typed(url, "export", "-o", str(pipe), exit_status=2)
    assert "is no file: leave it out, and redirect" in " ".join(
        refused.stderr.replace("│", " ").split()
    )
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


# ----------------------------------------------------------------------------- import


def test_exported_file_is_imported(url: str, client: Client, tmp_path: Path) -> None:
    tag = str(uuid4())
    tasks = [client.create("greet", run_at=FAR, tags=[tag]) for _ in range(3)]
    file = tmp_path / "tasks.ndjson"
    typed(url, "export", "--tag", tag, "-o", str(file))
    assert client.delete_many(tag=tag) == 3
    told = typed(url, "import", str(file))
    assert told.stdout == TITLES + "3      3        0        0        0\n"
    assert told.stderr == ""
    assert {task.task_id for task in client.list(tag=tag)} == {task.task_id for task in tasks}
    again = answered(url, "import", str(file))
    assert (again["created"], again["present"]) == (0, 3)


def test_refused_lines_are_told_of_by_the_exit_status_too(url: str, client: Client) -> None:
    name = str(uuid4())
    good = json.dumps({"name": name, "run_at": FAR, "webhook": {"url": "https://example.com/"}})
    bad = json.dumps({"name": "greet", "run_at": "soon", "priority": 9})
    piped = "\n".join([good, "{", bad, good])
    done = process(url, "import", "-", "--dry-run", input=piped)
    assert done.returncode == 1
    assert done.stdout == TITLES + "4      0        0        0        2\n"
    first, *fields, last = done.stderr.splitlines()
    assert first.startswith("line 2: ")
    assert [line.split(":")[1].strip() for line in fields] == ["run_at", "priority"]
    assert all(line.startswith("line 3: ") for line in fields)
    assert last == "This was a dry run: nothing is stored."
    assert list(client.list(name=name)) == []
    done = process(url, "import", "-", "--json", "--idempotency-key", name, input=piped)
    assert (done.returncode, json.loads(done.stdout)["created"]) == (1, 2)
    done = process(url, "import", "-", "--json", "--idempotency-key", name, input=piped)
    assert (done.returncode, json.loads(done.stdout)["present"]) == (1, 2)
    assert len(list(client.list(name=name))) == 2


def test_long_import_tells_how_far_it_is(url: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text('["no object, but a line"]\n' * 20_500)
    told = typed(url, "import", str(file), exit_status=1)
    lines = told.stderr.splitlines()
    far = [int(line.split()[0]) // 10_000 for line in lines if line.endswith(" lines …")]
    assert far == [1, 2]
    assert lines[-1] == "20400 more lines were refused."
    assert len(lines) == 103
    assert told.stdout == TITLES + "20500  0        0        0        20500\n"


def test_file_is_sent_from_its_beginning_when_it_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text(LINE * 10_001)
    counts = dict.fromkeys(("lines", "created", "present", "skipped", "refused"), 1)
    with Receiver([503, 200]) as receiver:
        receiver.headers = {"Retry-After": "0"}
        report = counts | {"problems": [], "refused": 0, "dry_run": False}
        receiver.answer = report | {"error_code": "DATABASE_503", "detail": "Try again."}
        told = typed(receiver.url, "import", str(file))
    assert told.stdout == TITLES + "1      1        1        1        0\n"
    first, second = receiver.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_import_that_finds_nobody_is_told_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text(LINE)
    nobody = f"http://127.0.0.1:{find_free_port()}"
    away = typed(nobody, "import", str(file), exit_status=3)
    assert away.stderr.startswith(f"{nobody} cannot be reached (")
    assert "Repeated with idempotency_key='" in away.stderr
    missing = typed(nobody, "import", str(tmp_path / "missing"), exit_status=2)
    assert "No such file or directory" in " ".join(missing.stderr.replace("│", " ").split())


# ----------------------------------------------------------------------------- events


def some_event(url: str, store: Backend) -> Event:
    """A change that has been told of."""
    with Client(url) as client:
        changes = client.events(on_open=lambda _: store.insert_task("earlier"))
        event = next(changes)
        changes.close()
    return event


def test_changes_are_followed_over_a_restart(store: Backend, tmp_path: Path) -> None:
    command = ("-m", "job_scheduler", "serve", "--port", str(find_free_port()))
    with service_process(tmp_path, store.environment(), *command) as service:
        service.start().close()
        event = some_event(service.url, store)
        after = ("--last-event-id", event.id, "--name", "probe")
        with following(service.url, "events", *after) as process:
            first = store.insert_task()
            line = next_line(process)
            store.insert_task("other")
            service.stop()
            second = store.insert_task()
            service.start().close()
            store.sql("DELETE FROM scheduled_tasks")
            told = [next_line(process) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=30)
    assert line[20:] == f"  {first}  new       → scheduled  probe\n"
    assert line[:20].endswith("Z")
    assert told[0].split()[2:] == [second, "new", "→", "scheduled", "probe"]
    assert {tuple(each.split()[2:]) for each in told[1:]} == {
        (each, "scheduled", "→", "removed", "probe") for each in (first, second)
    }
    assert (process.returncode, complaints) == (130, "")


def test_events_go_on_after_one_and_tell_of_a_gap(service: ServiceProcess, store: Backend) -> None:
    event = some_event(service.url, store)
    ids = [store.insert_task() for _ in range(3)]
    after = ("events", "--last-event-id", event.id)
    with following(service.url, *after, "--json") as process:
        events = [json.loads(next_line(process)) for _ in ids]
    assert [each["task_id"] for each in events] == ids
    assert events[0].keys() == {"id", "task_id", "name", "status", "former", "attempt", "at"}
    with following(service.url, *after, "--task", ids[2]) as process:
        assert ids[2] in next_line(process)
    store.sql("UPDATE event_watch SET until = :at", at=later(-1))
    with following(service.url, *after) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert told == "Changes may be missing here: `list` tells how tasks stand.\n"
    assert "task_id.0" in typed(service.url, "events", "--task", "7", exit_status=1).stderr


# ------------------------------------------------------------------- delete by filters


def test_tasks_are_removed_by_filters(url: str, client: Client) -> None:
    tag = str(uuid4())
    kept = client.create("greet", run_at=FAR, tags=[tag, "kept"])
    for _ in range(2):
        client.create("probe", run_at=FAR, tags=[tag])
    filters = ("--tag", tag, "--name", "probe")
    assert typed(url, "delete", *filters, "--dry-run").stdout == "2 tasks would be removed.\n"
    assert answered(url, "delete", *filters, "--dry-run") == {"tasks": 2, "dry_run": True}
    assert len(list(client.list(tag=tag))) == 3
    assert typed(url, "delete", *filters).stdout == "2 tasks are removed.\n"
    assert list(client.list(tag=tag)) == [kept]
    refused = typed(url, "delete", "--tag", tag, "--text", "", exit_status=1)
    assert "q: Must not be empty." in refused.stderr
    assert answered(url, "delete", "--tag", tag) == {"tasks": 1, "dry_run": False}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Give the ids of tasks, or filters."),
        (("--dry-run",), "Give the ids of tasks, or filters."),
        ((str(uuid4()), "--tag", "a"), "Give the ids of tasks, or filters."),
        ((str(uuid4()), "--dry-run"), "--dry-run: Goes with filters."),
    ],
)
def test_what_to_remove_is_said_in_one_way(arguments: tuple[str, ...], complaint: str) -> None:
    refused = typed("http://192.0.2.1", "delete", *arguments, exit_status=2)
    assert complaint in " ".join(refused.stderr.replace("│", " ").split())
