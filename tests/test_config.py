"""Configuration: what is allowed is understood, what is not is named in one line."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from job_scheduler.config import Settings, load_settings
from job_scheduler.constants import RecoverPastTasks, TaskStatus, UnknownTasks
from job_scheduler.exceptions import ConfigurationError
from job_scheduler.webhook_allow import Allowed
from tests.support.app import ROOT


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a `.env` file of this machine's configures anything."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_everything_has_a_default() -> None:
    settings = load_settings()
    assert settings.db_url.get_secret_value() == "sqlite:///job_scheduler.db"
    assert settings.embedded
    assert settings.redis_url is None
    assert settings.recover_past_tasks is RecoverPastTasks.Run
    assert (settings.recovery_rate, settings.recovery_hold_above) == (1_000.0, 0)
    assert settings.unknown_tasks is UnknownTasks.Timer
    assert settings.modules == []
    assert settings.auto_migrate is False
    assert (settings.threads, settings.max_running) == (16, 200)
    assert (settings.processes, settings.process_memory_bytes) == (4, None)
    assert (settings.allowed_commands, settings.command_variables) == ([], [])
    assert (settings.lease_seconds, settings.shutdown_grace) == (15.0, 8.0)
    assert settings.database_wait == 30.0
    month = timedelta(days=30)
    assert settings.retention == dict.fromkeys(
        (TaskStatus.Done, TaskStatus.Failed, TaskStatus.Cancelled), month
    )
    assert (settings.max_result_bytes, settings.show_tracebacks) == (1024 * 1024, False)
    assert (settings.webhooks_allowed, settings.webhook_keys) == (Allowed(), ())
    assert settings.log_level == "INFO"


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("RECOVER_PAST_TASKS", "skip", "recover_past_tasks", RecoverPastTasks.Skip),
        ("RECOVER_PAST_TASKS", "fail", "recover_past_tasks", RecoverPastTasks.Fail),
        ("recover_past_tasks", "fail", "recover_past_tasks", RecoverPastTasks.Fail),
        ("RECOVERY_RATE", "2.5", "recovery_rate", 2.5),
        ("RECOVERY_HOLD_ABOVE", "1", "recovery_hold_above", 1),
        ("UNKNOWN_TASKS", "reject", "unknown_tasks", UnknownTasks.Reject),
        ("AUTO_MIGRATE", "true", "auto_migrate", True),
        ("AUTO_MIGRATE", "0", "auto_migrate", False),
        ("THREADS", "1", "threads", 1),
        ("MAX_RUNNING", "10000", "max_running", 10_000),
        ("PROCESSES", "1000", "processes", 1_000),
        ("PROCESS_MEMORY", "", "process_memory_bytes", None),
        ("PROCESS_MEMORY", "0", "process_memory_bytes", None),
        ("PROCESS_MEMORY", "128", "process_memory_bytes", 128 * 1024 * 1024),
        ("COMMAND_ALLOW", " ls, /bin/a b ,,", "allowed_commands", ["ls", "/bin/a b"]),
        ("COMMAND_ENV", "PGHOST, _a1", "command_variables", ["PGHOST", "_a1"]),
        ("LEASE_SECONDS", "2.5", "lease_seconds", 2.5),
        ("SHUTDOWN_GRACE", "0", "shutdown_grace", 0.0),
        ("DATABASE_WAIT", "0", "database_wait", 0.0),
        ("RETENTION_DAYS", "0", "retention", {}),
        (
            "RETENTION_DAYS",
            "done=0.5,failed=0,cancelled=1",
            "retention",
            {TaskStatus.Done: timedelta(hours=12), TaskStatus.Cancelled: timedelta(days=1)},
        ),
        ("LOG_LEVEL", "DEBUG", "log_level", "DEBUG"),
        ("TASK_MODULES", " a.b, c ,,", "modules", ["a.b", "c"]),
        ("REDIS_URL", "", "redis_url", None),
    ],
)
def test_variable_of_the_environment_is_understood(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, attribute: str, value: Any
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), attribute) == value


@pytest.mark.parametrize(
    ("given", "understood", "embedded"),
    [
        ("sqlite:///tasks.db", "sqlite:///tasks.db", True),
        ("sqlite+pysqlite:////data/tasks.db", "sqlite+pysqlite:////data/tasks.db", True),
        ("postgresql://u:p%40ss@db/tasks", "postgresql+psycopg2://u:p%40ss@db/tasks", False),
        ("postgres://u@db:5433/tasks", "postgresql+psycopg2://u@db:5433/tasks", False),
        ("postgresql://u@/d?host=%2Frun", "postgresql+psycopg2://u@/d?host=%2Frun", False),
    ],
)
def test_database_is_sqlite_or_postgresql(
    monkeypatch: pytest.MonkeyPatch, given: str, understood: str, embedded: bool
) -> None:
    monkeypatch.setenv("DB_URL", given)
    settings = load_settings()
    assert settings.database.render_as_string(hide_password=False) == understood
    assert settings.embedded is embedded


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://:pw@h/1", "unix:///run/redis.sock"])
def test_redis_is_reached_by_network_or_socket(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    settings = load_settings()
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("RECOVER_PAST_TASKS", "maybe", "'run', 'fail' or 'skip'"),
        ("RECOVER_PAST_TASKS", "", "'run', 'fail' or 'skip'"),
        ("RECOVERY_RATE", "0.9", "greater than or equal to 1"),
        ("RECOVERY_RATE", "1000001", "less than or equal to 1000000"),
        ("RECOVERY_HOLD_ABOVE", "-1", "greater than or equal to 0"),
        ("RECOVERY_HOLD_ABOVE", "some", "integer"),
        ("UNKNOWN_TASKS", "ignore", "'timer' or 'reject'"),
        ("AUTO_MIGRATE", "perhaps", "boolean"),
        ("THREADS", "many", "integer"),
        ("THREADS", "0", "greater than or equal to 1"),
        ("THREADS", "1001", "less than or equal to 1000"),
        ("MAX_RUNNING", "0", "greater than or equal to 1"),
        ("MAX_RUNNING", "10001", "less than or equal to 10000"),
        ("MAX_RUNNING", "1.5", "integer"),
        ("PROCESSES", "0", "greater than or equal to 1"),
        ("PROCESSES", "1001", "less than or equal to 1000"),
        ("PROCESS_MEMORY", "-1", "greater than or equal to 0"),
        ("PROCESS_MEMORY", "127", "must be 0 (no limit), or at least 128"),
        ("PROCESS_MEMORY", "16777217", "less than or equal to 16777216"),
        ("PROCESS_MEMORY", "2G", "integer"),
        ("COMMAND_ALLOW", "ls,bin/backup", "names of programs or absolute paths, by comma"),
        ("COMMAND_ENV", "PGHOST=db", "names of variables, by comma, such as PGHOST,PGPASSFILE"),
        ("COMMAND_ENV", "1A", "names of variables"),
        ("LEASE_SECONDS", "1.9", "greater than or equal to 2"),
        ("LEASE_SECONDS", "3601", "less than or equal to 3600"),
        ("LEASE_SECONDS", "nan", "less than or equal to 3600"),
        ("SHUTDOWN_GRACE", "-1", "greater than or equal to 0"),
        ("SHUTDOWN_GRACE", "inf", "less than or equal to 86400"),
        ("DATABASE_WAIT", "-0.1", "greater than or equal to 0"),
        ("DATABASE_WAIT", "soon", "number"),
        ("RETENTION_DAYS", "", "a number of days from 0 to 36500 (0 keeps for ever)"),
        ("RETENTION_DAYS", "for ever", "such as done=7,failed=90,unknown=0"),
        ("LOG_LEVEL", "info", "WARNING"),
    ],
)
def test_bad_value_is_named_with_what_is_allowed_and_what_was_found(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert line.startswith(f"Configuration error: {variable}: ")
    assert allowed in line
    assert f"(found: {text!r})" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("variable", "url", "allowed"),
    [
        (
            "DB_URL",
            "",
            "must be postgresql+psycopg2://user:password@host:5432/database or sqlite:///",
        ),
        ("DB_URL", "hunter2", "must be postgresql+psycopg2://"),
        ("DB_URL", "mysql://u:hunter2@h/d", "must be postgresql+psycopg2://"),
        ("DB_URL", "postgresql+asyncpg://u:hunter2@h/d", "must be postgresql+psycopg2://"),
        ("DB_URL", "postgresql://u:hunter2@h:port/d", "must be postgresql+psycopg2://"),
        ("DB_URL", "sqlite://", "must name a file: an in-memory database forgets every task"),
        ("DB_URL", "sqlite:///:memory:", "must name a file"),
        ("DB_URL", "sqlite:///file:a?mode=memory&uri=true", "must name a file"),
        ("REDIS_URL", "http://:hunter2@h", "must be empty, redis://"),
        ("REDIS_URL", "hunter2", "must be empty, redis://"),
        ("REDIS_URL", "redis://:hunter2@h:port/0", "must be empty, redis://"),
        ("REDIS_URL", "redis://:hunter2@h:6379/one", "must be empty, redis://"),
        ("DB_URL", "postgresql://u:hunter2@h/d?ssl=on", 'invalid connection option "ssl"'),
    ],
)
def test_bad_url_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert line.startswith(f"Configuration error: {variable}: {allowed}")
    assert "hunter2" not in line
    assert "\n" not in line
    # Neither does the traceback, which a log may show.
    assert refusal.value.__suppress_context__


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADS", "many")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("DB_URL", "oracle://u:hunter2@h/d")
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert [name in line for name in ("THREADS", "LOG_LEVEL", "DB_URL")] == [True] * 3
    assert line.count("; ") == 2
    assert "hunter2" not in line


def test_secrets_do_not_show_where_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@h")
    settings = load_settings()
    assert "hunter2" not in f"{settings} {settings!r} {settings.model_dump()}"


def test_env_file_configures_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "THREADS=3\nMAX_RUNNING=4\n# a comment\nTASK_MODULES='ä, b'\nOF_ANOTHER_PROGRAM=1\n"
    )
    monkeypatch.setenv("MAX_RUNNING", "5")
    settings = load_settings()
    assert (settings.threads, settings.max_running) == (3, 5)
    assert settings.modules == ["ä", "b"]


def test_bad_value_ends_the_start_in_one_line_with_status_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "job_scheduler", "serve", "--port", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "MAX_RUNNING": "lots", "REDIS_URL": "amqp://:hunter2@h"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert "MAX_RUNNING" in line
    assert "(found: 'lots')" in line
    assert "hunter2" not in line


def test_env_file_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"TASK_MODULES=\xff\n")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        load_settings(_env_file=file)
