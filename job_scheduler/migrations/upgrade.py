"""Bring a database's schema up to date, or say that it is not."""

import asyncio
import logging
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, ProgrammingError

from job_scheduler.calls import bounded
from job_scheduler.config import Settings
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import DatabaseUnavailable, SchemaError, StartError

_logger = logging.getLogger(__name__)

_LOCK_KEY = 5_214_786_390_118  # any number that no other program is likely to choose
_POLL_SECONDS = 1.0
_LOOK_SECONDS = 5.0
"""How long a look at the schema may take, if there is no more time to wait for the database."""
_MIGRATE = "Run: python migrate.py (or set AUTO_MIGRATE=true)."


def create_database(url: URL, patience: float | None = None) -> bool:
    """Create the PostgreSQL database of `url` if it is missing and may be; tell whether it was.

    Several callers at once are safe: one creates it, the others find that it exists. It is given
    up after `patience` seconds, if given.
    """
    engine = build_engine(url.set(database="postgres"), pool_size=1)
    try:
        with (
            bounded(patience),
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
            there = connection.scalar(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database}
            )
            if not there:
                quoted = engine.dialect.identifier_preparer.quote(str(url.database))
                connection.execute(text(f"CREATE DATABASE {quoted}"))
    except (OperationalError, ProgrammingError) as error:
        # We may not look, or may not create: connecting to it will say what is the matter.
        _logger.debug("the database %s was not created: %s", url.database, error.orig)
        return False
    else:
        return not there
    finally:
        # The lock ends with the session.
        engine.dispose()


async def prepare(database: Database, settings: Settings) -> None:
    """Wait for the database, within bounds, and bring it up to date or insist that it is.

    The embedded SQLite is always migrated, PostgreSQL with ``AUTO_MIGRATE=true``.

    Raises:
        StartError: it cannot be reached, or its schema is not the one that this code needs.
    """
    deadline = time.monotonic() + settings.database_wait
    migrate = settings.embedded or settings.auto_migrate
    while reason := await asyncio.to_thread(
        _prepare_once,
        database,
        settings.database,
        max(_LOOK_SECONDS, settings.database_wait),
        migrate=migrate,
    ):
        if "does not exist" in reason:
            raise SchemaError(f"The database is missing ({reason}). {_MIGRATE}")
        if time.monotonic() >= deadline:
            raise StartError(
                f"The database cannot be reached ({reason}). Check DB_URL, and that it runs."
            )
        _logger.warning("waiting for the database: %s", reason)
        await asyncio.sleep(_POLL_SECONDS)


def _prepare_once(database: Database, url: URL, patience: float, *, migrate: bool) -> str | None:
    """Return None when all is as it should be, or why the database cannot be reached.

    A migration may take as long as it must; all else is given up after `patience` seconds.
    """
    try:
        if migrate and database.dialect == "postgresql":
            create_database(url, patience)
        with database.reading(patience) as connection:
            if not migrate:
                insist_on_schema(connection)
            missing = missing_revisions(connection)
        if missing:
            upgrade(database)
    except DatabaseUnavailable as error:
        return reason_of(error)
    return None


def insist_on_schema(connection: Connection) -> None:
    """Check that the connection's schema is the one that this code needs.

    Raises:
        SchemaError: it is missing, older or newer.
    """
    if missing := missing_revisions(connection):
        raise SchemaError(f"The database's schema lacks revision {', '.join(missing)}. {_MIGRATE}")


def reason_of(error: DatabaseUnavailable) -> str:
    """Return the driver's own words, on one line (they never hold a password)."""
    driver = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return " ".join(str(driver).split())


def upgrade(database: Database) -> list[str]:
    """Apply the migrations that are missing; return their revisions, oldest first.

    One transaction, one at a time over all processes: repeating it changes nothing.

    Raises:
        SchemaError: the schema is newer than this code.
        DatabaseUnavailable: the database cannot be reached.
    """
    with database.writing() as connection:
        if database.dialect == "postgresql":
            # A long CREATE INDEX is no hung statement, and a second migrator waits for it.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        missing = missing_revisions(connection)
        if missing:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return missing


def missing_revisions(connection: Connection) -> list[str]:
    """Return the revisions that the connection's schema lacks, oldest first.

    Raises:
        SchemaError: the schema is newer than this code.
    """
    current = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]
    known.reverse()
    if current is None:
        return known
    if current not in known:
        raise SchemaError(
            f"The database's schema has revision {current}, which this release does not know: "
            "it belongs to a newer release. Start that one."
        )
    return known[known.index(current) + 1 :]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
