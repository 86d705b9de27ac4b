"""The database of a chaos run: made beside the user's own, looked at, and dropped in the end.

It is reached directly, by no proxy, and under an application name of its own: the faults are
for the service.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, and_, func, insert, or_, select, text
from sqlalchemy.engine import URL

from job_scheduler.chaos.history import Asked, Row, Run, Sighting
from job_scheduler.chaos.plan import FAR_SECONDS
from job_scheduler.clock import SystemClock
from job_scheduler.constants import RunOutcome, TaskStatus
from job_scheduler.core.columns import database_time
from job_scheduler.core.instances import instances
from job_scheduler.core.records import task_runs
from job_scheduler.core.store import tasks
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import DatabaseUnavailable, StartError
from job_scheduler.migrations.upgrade import create_database, upgrade

_OVERLAP = timedelta(seconds=2)
"""A transaction may commit this much later than the time that it wrote."""
_SOON = timedelta(seconds=FAR_SECONDS / 2)
_SERVICE = "job-scheduler"
_NAME_LENGTH = 40


class Storage:
    """What a run itself does in its database."""

    def __init__(self, url: URL) -> None:
        if url.get_backend_name() == "postgresql":
            url = url.update_query_dict({"application_name": f"{_SERVICE}-chaos"})
        self._database = Database(build_engine(url))
        self._seen_until = datetime.fromtimestamp(0, UTC)

    async def close(self) -> None:
        """Disconnect."""
        self._database.close()

    async def insert(self, asked: Asked) -> None:
        """Add a task by plain SQL, as any program may."""
        await self._database.write(_insert, asked)

    async def cut_connections(self) -> None:
        """End all connections of the service's, whatever they are at (PostgreSQL)."""
        await self._database.read(_cut_connections)

    async def seconds_to_write(self) -> float:
        """Return after how many seconds a write can begin, or is given up."""
        begin = time.monotonic()
        with suppress(DatabaseUnavailable):
            await self._database.write(_begin_to_write)
        return time.monotonic() - begin

    async def changes(self) -> dict[str, Sighting]:
        """Return the tasks that have changed since the last look, and some that have not."""
        seen = await self._database.read(_changed_since, self._seen_until - _OVERLAP)
        if seen:
            self._seen_until = max(changed for changed, _, _ in seen)
        return {task_id: sighting for _, task_id, sighting in seen}

    async def unfinished(self) -> int:
        """Return how many tasks run, or wait and are due by the end of the run's own time."""
        return await self._database.read(_unfinished)

    async def now(self) -> float:
        """Return the database's clock."""
        return await self._database.read(_now)

    async def clock_error(self) -> float:
        """Return by how much the database's clock may differ from this machine's."""
        clock = SystemClock()
        before = clock.now().timestamp()
        shown = await self.now()
        return max(shown - before, clock.now().timestamp() - shown)

    async def rows(self) -> dict[str, Row]:
        """Return all tasks."""
        return await self._database.read(_rows)

    async def runs(self) -> dict[str, list[Run]]:
        """Return the history of all tasks, by the end of the runs."""
        return await self._database.read(_runs)


@contextmanager
def own_database(beside: URL, directory: Path, *, keep: bool) -> Iterator[URL]:
    """Make a database with our schema: on the server of `beside`, or a SQLite file.

    Raises:
        StartError: it cannot be made.
    """
    if beside.get_backend_name() == "sqlite":
        own = beside.set(database=str(directory / "chaos.db"))
        _migrate(own)
        yield own
        return
    own = beside.set(database=f"{str(beside.database)[:_NAME_LENGTH]}_chaos_{secrets.token_hex(4)}")
    if not create_database(own):
        raise StartError(
            f"The database {own.database} cannot be created. Check --db-url, that the server "
            "runs, and that the user may create databases there."
        )
    try:
        _migrate(own)
        yield own
    finally:
        if not keep:
            _drop(own)


def _migrate(url: URL) -> None:
    database = Database(build_engine(url))
    try:
        upgrade(database)
    finally:
        database.close()


def _drop(url: URL) -> None:
    engine = build_engine(url.set(database="postgres"), pool_size=1)
    quoted = engine.dialect.identifier_preparer.quote(str(url.database))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"))
    engine.dispose()


def _insert(connection: Connection, asked: Asked) -> None:
    planned = asked.planned
    connection.execute(
        insert(tasks).values(
            task_id=asked.task_id,
            name=planned.handler.value,
            run_at=datetime.fromtimestamp(asked.run_at, UTC),
            payload={"seconds": planned.seconds, "fails": planned.fails},
            max_attempts=planned.max_attempts,
            on_crash=planned.on_crash,
        )
    )


def _cut_connections(connection: Connection) -> None:
    connection.execute(
        text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = :service"
        ),
        {"service": _SERVICE},
    ).all()


def _begin_to_write(connection: Connection) -> None:
    # A transaction begins with its first statement, and takes SQLite's lock.
    connection.execute(select(1))


def _changed_since(connection: Connection, since: datetime) -> list[tuple[datetime, str, Sighting]]:
    columns = (tasks.c.updated_at, tasks.c.task_id, tasks.c.status, tasks.c.attempt)
    rows = connection.execute(
        select(*columns, tasks.c.claim_token).where(tasks.c.updated_at >= since)
    )
    return [
        (changed, task_id, Sighting(changed.timestamp(), TaskStatus(status), attempt, token))
        for changed, task_id, status, attempt, token in rows
    ]


def _unfinished(connection: Connection) -> int:
    # Those that must not start are due much later; all others are, within seconds.
    now = database_time(connection)
    due = func.coalesce(tasks.c.retry_at, tasks.c.run_at) <= now + _SOON
    return connection.execute(
        select(func.count()).where(
            or_(
                tasks.c.status == TaskStatus.Running.value,
                and_(tasks.c.status == TaskStatus.Scheduled.value, due),
            )
        )
    ).scalar_one()


def _now(connection: Connection) -> float:
    shown = database_time(connection)
    return shown.timestamp()


def _rows(connection: Connection) -> dict[str, Row]:
    rows = connection.execute(select(tasks))
    return {
        row.task_id: Row(
            status=TaskStatus(row.status),
            attempt=row.attempt,
            token=row.claim_token,
            due=(row.retry_at or row.run_at).timestamp(),
            created_at=row.created_at.timestamp(),
            result=row.result,
        )
        for row in rows
    }


def _runs(connection: Connection) -> dict[str, list[Run]]:
    pid = instances.c.pid.label("pid")
    joined = task_runs.outerjoin(instances, task_runs.c.instance_id == instances.c.instance_id)
    rows = connection.execute(
        select(task_runs, pid).select_from(joined).order_by(task_runs.c.finished_at)
    )
    found: dict[str, list[Run]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(
            Run(
                token=row.claim_token,
                attempt=row.attempt,
                outcome=RunOutcome(row.outcome),
                scheduled_for=row.scheduled_for.timestamp(),
                started_at=row.started_at.timestamp(),
                finished_at=row.finished_at.timestamp(),
                pid=row.pid,
            )
        )
    return found
