"""The command line: serve, migrate, exit statuses, and one readable line when it cannot start."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import make_url

from job_scheduler.cli import _announcement, _listen
from job_scheduler.exceptions import StartError
from tests.support.app import ROOT, Backend, finished, later, post, service_process
from tests.support.services import find_free_port, temporary_database, wait_until

MIGRATE = (str(ROOT / "migrate.py"),)
MODULE = ("-m", "job_scheduler")


@pytest.fixture
def missing_database(postgresql_database: str) -> Iterator[Backend]:
    """A PostgreSQL database that does not exist, and is removed if it should at the end."""
    url = make_url(postgresql_database).set(database=f"js_test_{uuid4().hex}")
    try:
        yield Backend(url.render_as_string(hide_password=False))
    finally:
        with Backend(postgresql_database).database() as database:
            engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command, with no settings but these."""
    kept = ("PATH", "HOME", "TMPDIR", "LANG")
    inherited = {
        name: value for name, value in os.environ.items() if name in kept or name.startswith("COV")
    }
    return inherited | {"PYTHONPATH": str(ROOT)} | dict(settings)


def run(directory: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ----------------------------------------------------------------------- migrate


@pytest.mark.postgresql
def test_migrate_creates_database_and_schema_and_can_be_run_again(
    missing_database: Backend, tmp_path: Path
) -> None:
    settings = {"DB_URL": missing_database.db_url}
    url = make_url(missing_database.db_url)

    refused = run(tmp_path, *MODULE, "serve", "--port", "0", **settings)
    assert refused.returncode == 2
    assert "The database is missing" in refused.stderr
    assert "python migrate.py" in refused.stderr
    assert "Traceback" not in refused.stderr

    first = run(tmp_path, *MIGRATE, **settings)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == [
        f"Created the database {url.database}.",
        f"Migrated {url.render_as_string(hide_password=True)}: applied 0001.",
    ]
    second = run(tmp_path, *MIGRATE, **settings)
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == f"{url.render_as_string(hide_password=True)} is up to date.\n"
    assert missing_database.insert_task()


@pytest.mark.parametrize("command", [MIGRATE, (*MODULE, "migrate")])
def test_migrate_makes_the_embedded_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    first = run(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "Migrated sqlite:///job_scheduler.db: applied 0001.\n"
    assert run(tmp_path, *command).stdout == "sqlite:///job_scheduler.db is up to date.\n"
    assert Backend(f"sqlite:///{tmp_path}/job_scheduler.db").insert_task()


@pytest.mark.postgresql
def test_several_migrations_at_once_are_safe(missing_database: Backend, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, *MIGRATE],
            cwd=tmp_path,
            env=environment({"DB_URL": missing_database.db_url}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    together = "".join(outputs)
    assert together.count("Created the database") == 1
    assert together.count("applied 0001") == 1
    assert together.count("is up to date") == 2


@pytest.mark.parametrize(
    ("db_url", "complaint"),
    [
        ("postgresql://me:secret@127.0.0.1:{port}/tasks", "The database cannot be reached"),
        ("mysql://me:secret@localhost/tasks", "Configuration error: DB_URL: must be postgresql"),
        ("sqlite:////no/such/directory/tasks.db", "unable to open database file"),
    ],
)
def test_migrate_that_cannot_says_why_in_one_line(
    tmp_path: Path, db_url: str, complaint: str
) -> None:
    refused = run(tmp_path, *MIGRATE, DB_URL=db_url.format(port=find_free_port()))
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert "secret" not in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_migrate_refuses_a_newer_schema(store: Backend, tmp_path: Path) -> None:
    store.sql("UPDATE alembic_version SET version_num = '0815'")
    try:
        refused = run(tmp_path, *MIGRATE, DB_URL=store.db_url)
    finally:
        store.sql("UPDATE alembic_version SET version_num = '0001'")
    assert refused.returncode == 2
    assert "belongs to a newer release" in refused.stderr
    assert refused.stdout == ""


# ------------------------------------------------------------------------- serve


@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("serve", "--port", "0", "--host", "::1")]
)
def test_serve_announces_itself_and_works(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    if "::1" in arguments and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    with service_process(tmp_path, {}, *MODULE, *arguments) as service:
        with service.start() as client:
            ended = finished(client, post(client, run_at=later(0))["task_id"])
            assert ended["status"] == "done"
        assert f"{service.url}/docs" in service.output()
        assert f"curl {service.url}/tasks" in service.output()
        service.process.send_signal(signal.SIGINT)
        service.process.wait(timeout=20)
        assert "Traceback" not in service.output()
    assert (tmp_path / "job_scheduler.db").exists()


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_announced_curl_line_schedules_a_task(tmp_path: Path) -> None:
    with service_process(tmp_path, {}) as service, service.start() as client:
        found = re.search(r"    (curl .*?\n.*?)\n    curl", service.output(), re.DOTALL)
        assert found
        line = found.group(1).replace("curl ", "curl --silent --show-error --noproxy '*' ")
        shown = subprocess.run(
            ["sh", "-c", line],  # noqa: S607 (a person's shell, wherever it is)
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert '"name":"send_report"' in shown.stdout, shown.stderr
        [task] = client.get("/tasks").json()
        assert finished(client, task["task_id"])["status"] == "done"


def test_help_names_the_commands(tmp_path: Path) -> None:
    shown = run(tmp_path, *MODULE, "--help")
    assert shown.returncode == 0
    assert "serve" in shown.stdout
    assert "migrate" in shown.stdout
    assert "recovery-plan" in shown.stdout


def test_no_command_means_serve(tmp_path: Path) -> None:
    # Without a port of its own it takes 8000, or says that it is taken.
    with service_process(tmp_path, {"DB_URL": "sqlite:///a.db"}, *MODULE) as service:
        service.launch()
        wait_until(
            lambda: service.process.poll() is not None or "is ready: " in service.output(), 30
        )
        assert re.search(r"is ready: http://127.0.0.1:8000|127.0.0.1:8000 \(", service.output())
        service.stop()


def test_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run(tmp_path, *MODULE, "serve", "--port", str(port))
    assert refused.returncode == 2
    assert refused.stdout == ""
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"Cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert f"make run PORT={port + 1}" in line
    assert not (tmp_path / "job_scheduler.db").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "::ffff"])
def test_address_that_cannot_be_listened_on_is_said(host: str) -> None:
    with pytest.raises(StartError, match=f"Cannot listen on {host}"):
        _listen(host, 0)


@pytest.mark.parametrize("port", [-1, 65_536, 10**9])
def test_impossible_port_is_said_in_a_few_words(tmp_path: Path, port: int) -> None:
    refused = run(tmp_path, *MODULE, "serve", f"--port={port}")
    assert refused.returncode == 2
    assert "--port" in refused.stderr
    assert "Traceback" not in refused.stderr


BAD_SETTINGS = [
    ("RECOVER_PAST_TASKS", "perhaps", "'run', 'fail' or 'skip' (found: 'perhaps')"),
    ("THREADS", "0", "greater than or equal to 1 (found: '0')"),
    ("LEASE_SECONDS", "1.9", "greater than or equal to 2 (found: '1.9')"),
    ("DB_URL", "mysql://me:secret@localhost/x", "must be postgresql+psycopg2://"),
    ("REDIS_URL", "http://:secret@localhost", "must be empty, redis://"),
]


@pytest.mark.parametrize(("variable", "value", "complaint"), BAD_SETTINGS)
def test_bad_setting_is_said_in_one_line(
    tmp_path: Path, variable: str, value: str, complaint: str
) -> None:
    refused = run(tmp_path, *MODULE, "serve", "--port", "0", **{variable: value})
    assert (refused.returncode, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"Configuration error: {variable}: ")
    assert complaint in line
    assert "secret" not in line


def test_bad_setting_under_plain_uvicorn_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    refused = run(tmp_path, "-m", "uvicorn", "job_scheduler.main:app", "--port=0", THREADS="many")
    assert refused.returncode == 3  # uvicorn's own status for a start that failed
    assert "Traceback" not in refused.stderr
    assert refused.stderr.count("Configuration error: THREADS: ") == 1


@pytest.mark.postgresql
@pytest.mark.parametrize("uvicorn", [True, False])
def test_missing_schema_is_one_line_without_a_traceback(
    postgresql_database: str, tmp_path: Path, uvicorn: bool
) -> None:
    arguments = ("-m", "uvicorn", "job_scheduler.main:app", "--port=0")
    if not uvicorn:
        arguments = (*MODULE, "serve", "--port=0")
    with temporary_database(postgresql_database) as url:
        refused = run(tmp_path, *arguments, DB_URL=url)
    assert refused.returncode == (3 if uvicorn else 2)
    assert "Traceback" not in refused.stderr
    assert refused.stderr.count("lacks revision 0001. Run: python migrate.py") == 1


def test_broken_task_module_ends_the_start_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("import no_such_library\n")
    refused = run(tmp_path, *MODULE, "serve", "--port=0", TASK_MODULES="jobs")
    assert refused.returncode != 0
    assert "No module named 'no_such_library'" in refused.stderr
    assert "jobs.py" in refused.stderr


def test_plain_uvicorn_serves_the_app(tmp_path: Path) -> None:
    port = find_free_port()
    arguments = ("-m", "uvicorn", "job_scheduler.main:app", "--port", str(port))
    with service_process(tmp_path, {}, *arguments) as service:
        service.launch()

        def ready() -> bool:
            assert service.process.poll() is None, service.output()
            return "Uvicorn running on" in service.output()

        wait_until(ready, 30)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            ended = finished(client, post(client, run_at=later(0))["task_id"])
            assert ended["status"] == "done"


def test_announcement_is_for_people() -> None:
    text = _announcement("http://[::1]:8000")
    assert "is ready: http://[::1]:8000" in text
    assert "curl http://[::1]:8000/tasks" in text
