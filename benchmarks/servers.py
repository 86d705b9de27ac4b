"""PostgreSQL and Redis: a database of its own for each measurement, and a server of our own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import redis
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

DATABASES_OF_REDIS = 16


class NoServer(Exception):
    """A server that is needed does not answer, or cannot be had; the text says why."""


@dataclass(frozen=True)
class Servers:
    """Where they are. Without `db_url`: a SQLite file for each measurement, and no peers."""

    db_url: str | None
    redis_url: str | None

    @contextmanager
    def database(self, directory: Path) -> Iterator[URL]:
        """An empty database, dropped in the end."""
        if self.db_url is None:
            yield make_url(f"sqlite:///{directory / 'tasks.db'}")
            return
        url = make_url(self.db_url)
        name = f"bench_{uuid4().hex}"
        engine = administration(url)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        try:
            yield url.set(database=name)
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def redis(self) -> Iterator[str]:
        """One of Redis' databases that is empty, and is emptied again in the end."""
        assert self.redis_url is not None
        for number in reversed(range(DATABASES_OF_REDIS)):
            url = make_url(self.redis_url).set(database=str(number))
            text_url = url.render_as_string(hide_password=False)
            client = redis.Redis.from_url(text_url)
            if client.dbsize() == 0:
                break
        else:
            raise NoServer("all databases of this Redis have keys; give another --redis-url")
        try:
            yield text_url
        finally:
            client.flushdb()
            client.close()

    def versions(self) -> dict[str, str]:
        """Versions and the settings that matter, for the report."""
        found = {}
        if self.db_url is not None:
            with administration(make_url(self.db_url)).connect() as connection:
                names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
                values = {
                    name: str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())
                    for name in names
                }
            number = values.pop("server_version").split()[0]
            found["PostgreSQL"] = f"{number} ({', '.join(f'{k} {v}' for k, v in values.items())})"
        if self.redis_url is not None:
            with redis.Redis.from_url(self.redis_url) as client:
                info = client.info("server")
                appendonly = client.config_get("appendonly")["appendonly"]
            found["Redis"] = f"{info['redis_version']} (appendonly {appendonly})"
        return found


def administration(url: URL) -> Engine:
    """Connections of the benchmark's own: each closed after use, each statement on its own."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def statement_counter(server: Engine, database: str) -> Callable[[int], dict[str, float]]:
    """Count statements (where pg_stat_statements is loaded), commits and WAL from now on."""
    with server.connect() as connection:
        loaded = connection.exec_driver_sql("SHOW shared_preload_libraries").scalar_one()
        if "pg_stat_statements" not in loaded:
            return lambda _tasks: {}
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        connection.exec_driver_sql("SELECT pg_stat_statements_reset()")
        begin = connection.execute(_WAL).scalar_one()

    def end(tasks: int) -> dict[str, float]:
        with server.connect() as connection:
            written = connection.execute(_WAL).scalar_one() - begin
            done = connection.execute(_STATEMENTS, {"name": database}).one()
        return {
            "statements_per_task": int(done.statements) / tasks,
            "inner_per_task": int(done.inside) / tasks,
            "transactions_per_task": int(done.transactions) / tasks,
            "wal_bytes_per_task": float(written) / tasks,
        }

    return end


_WAL = text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
_STATEMENTS = text(
    """
    SELECT
        coalesce(sum(calls) FILTER (WHERE toplevel AND NOT control), 0) AS statements,
        coalesce(sum(calls) FILTER (WHERE NOT toplevel), 0) AS inside,
        coalesce(sum(calls) FILTER (WHERE query ~* '^ *commit'), 0) AS transactions
    FROM (
        SELECT *, query ~* '^ *(begin|commit|rollback|start transaction)' AS control
        FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid
    ) AS seen
    WHERE datname = :name
    """
)
