"""Settings, read from the environment and from ``.env`` when the service starts."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from job_scheduler.constants import RESULT_MAX_BYTES, RecoverPastTasks, TaskStatus, UnknownTasks
from job_scheduler.exceptions import ConfigurationError
from job_scheduler.retention_days import parse_retention_days
from job_scheduler.webhook_allow import Allowed, parse_webhook_allow
from job_scheduler.webhook_keys import parse_webhook_secret

_DATABASE_FORMS = "postgresql+psycopg2://user:password@host:5432/database or sqlite:///file.db"
_MEBIBYTE = 1024 * 1024
_WORKER_MIN_MEBIBYTES = 128
"""What a worker process needs for itself, and a little more."""
_REDIS_FORMS = "redis://host:6379/0, rediss://… or unix://…"


def _database_url(value: SecretStr) -> SecretStr:
    """Accept PostgreSQL by psycopg2 (also in its short forms) and SQLite in a file."""
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError(f"must be {_DATABASE_FORMS}") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg2")
    if url.drivername not in ("postgresql+psycopg2", "sqlite", "sqlite+pysqlite"):
        raise ValueError(f"must be {_DATABASE_FORMS}")
    if url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    ):
        raise ValueError("must name a file: an in-memory database forgets every task")
    if url.get_backend_name() == "postgresql":
        try:
            make_dsn(**{name: str(option) for name, option in url.query.items()})
        except ProgrammingError as error:
            option = str(error).removeprefix("invalid dsn: ").strip()
            raise ValueError(f"{option}: must be {_DATABASE_FORMS}") from None
    return SecretStr(url.render_as_string(hide_password=False))


def _redis_url(value: SecretStr | None) -> SecretStr | None:
    text = value.get_secret_value() if value else ""
    if not text:
        return None
    try:
        parse_url(text)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        database = urlsplit(text).path.strip("/")
    except ValueError:
        raise ValueError(f"must be empty, {_REDIS_FORMS}") from None
    if not text.startswith("unix://") and database and not database.isdecimal():
        raise ValueError(f"must be empty, {_REDIS_FORMS}")
    return value


def _retention_days(text: str) -> str:
    parse_retention_days(text)
    return text


def _webhook_allow(text: str) -> str:
    parse_webhook_allow(text)
    return text


def _webhook_secret(value: SecretStr | None) -> SecretStr | None:
    return value if value and parse_webhook_secret(value.get_secret_value()) else None


def _memory(mebibytes: int) -> int:
    if 0 < mebibytes < _WORKER_MIN_MEBIBYTES:
        raise ValueError(f"must be 0 (no limit), or at least {_WORKER_MIN_MEBIBYTES}")
    return mebibytes


def _programs(text: str) -> str:
    if any("/" in name and not name.startswith("/") for name in _listed(text)):
        raise ValueError(
            "must be names of programs or absolute paths, by comma, such as "
            "pg_dump,/usr/local/bin/backup"
        )
    return text


def _variables(text: str) -> str:
    if not all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) for name in _listed(text)):
        raise ValueError("must be names of variables, by comma, such as PGHOST,PGPASSFILE")
    return text


def _listed(text: str) -> list[str]:
    """Return what stands in a list with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


class Settings(BaseSettings):
    """All that can be configured; ``.env.sample`` documents each with its default."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    db_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr(
        "sqlite:///job_scheduler.db"
    )
    redis_url: Annotated[SecretStr | None, AfterValidator(_redis_url)] = None
    recover_past_tasks: RecoverPastTasks = RecoverPastTasks.Run
    recovery_rate: float = Field(default=1_000.0, ge=1, le=1_000_000)
    recovery_hold_above: int = Field(default=0, ge=0, le=1_000_000_000)
    auto_migrate: bool = False
    task_modules: str = ""
    unknown_tasks: UnknownTasks = UnknownTasks.Timer
    threads: int = Field(default=16, ge=1, le=1_000)
    processes: int = Field(default=4, ge=1, le=1_000)
    process_memory: Annotated[
        int,
        Field(ge=0, le=16 * _MEBIBYTE),
        BeforeValidator(lambda value: value or 0),
        AfterValidator(_memory),
    ] = 0
    command_allow: Annotated[str, AfterValidator(_programs)] = ""
    command_env: Annotated[str, AfterValidator(_variables)] = ""
    max_running: int = Field(default=200, ge=1, le=10_000)
    lease_seconds: float = Field(default=15.0, ge=2, le=3_600)
    loop_stall_seconds: float = Field(default=300.0, ge=1, le=86_400)
    shutdown_grace: float = Field(default=8.0, ge=0, le=86_400)
    database_wait: float = Field(default=30.0, ge=0, le=86_400)
    retention_days: Annotated[str, AfterValidator(_retention_days)] = "30"
    max_result_bytes: int = Field(default=RESULT_MAX_BYTES, ge=1_000, le=RESULT_MAX_BYTES)
    show_tracebacks: bool = False
    webhook_allow: Annotated[str, AfterValidator(_webhook_allow)] = ""
    webhook_secret: Annotated[SecretStr | None, AfterValidator(_webhook_secret)] = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def database(self) -> URL:
        """Where the tasks are kept."""
        return make_url(self.db_url.get_secret_value())

    @property
    def embedded(self) -> bool:
        """Whether the database is a SQLite file of this machine's."""
        return self.database.get_backend_name() == "sqlite"

    @property
    def retention(self) -> dict[TaskStatus, timedelta]:
        """After how long finished tasks are removed, by their status."""
        return parse_retention_days(self.retention_days)

    @property
    def webhooks_allowed(self) -> Allowed:
        """Which inside hosts and networks webhooks may reach."""
        return parse_webhook_allow(self.webhook_allow)

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """What webhooks are signed with."""
        secret = self.webhook_secret
        return () if secret is None else parse_webhook_secret(secret.get_secret_value())

    @property
    def modules(self) -> list[str]:
        """The modules that register the user's task handlers."""
        return _listed(self.task_modules)

    @property
    def process_memory_bytes(self) -> int | None:
        """How much address space a worker process may take, if that is limited."""
        return self.process_memory * _MEBIBYTE or None

    @property
    def allowed_commands(self) -> list[str]:
        """The programs that commands may run."""
        return _listed(self.command_allow)

    @property
    def command_variables(self) -> list[str]:
        """The variables of the service's own environment that commands get, beside the usual."""
        return _listed(self.command_env)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: in one line, each variable that is wrong, what is allowed, and
            what was found (the values of URLs and secrets are not shown).
    """
    try:
        return Settings(**overrides)
    except UnicodeDecodeError:
        raise ConfigurationError("Configuration error: .env is not UTF-8. Save it so.") from None
    except ValidationError as error:
        problems = "; ".join(_problem(dict(details)) for details in error.errors())
        raise ConfigurationError(f"Configuration error: {problems}.") from None


def _problem(details: dict[str, Any]) -> str:
    variable = str(details["loc"][0])
    secret = variable.endswith(("_url", "_secret"))
    found = "" if secret else f" (found: {details['input']!r})"
    expected = str(details["msg"]).removeprefix("Value error, ")
    return f"{variable.upper()}: {expected[:1].lower()}{expected[1:]}{found}"
