"""The types of columns, and the SQL that differs between the databases."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    String,
    Text,
    TypeDecorator,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from job_scheduler import strict_json


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Hand the driver what the column stores."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware instant in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """JSON as text, for SQLite: its own JSON column would turn a large number into a float."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> str | None:
        """Hand the driver what the column stores."""
        return None if value is None else strict_json.dumps(value)

    def process_result_value(self, value: str | None, _dialect: Dialect) -> Any:
        """Return the parsed document."""
        return None if value is None else strict_json.loads(value)


class database_now(ColumnElement[datetime]):  # noqa: N801 (reads as the SQL function it is)
    """The database's clock at the statement (not at the transaction's begin)."""

    type = UtcDateTime()
    inherit_cache = True


class new_uuid(ColumnElement[str]):  # noqa: N801 (reads as the SQL function it is)
    """A UUIDv7 made by the database (RFC 9562, section 5.7)."""

    type = String(36)
    inherit_cache = True


def database_time(connection: Connection) -> datetime:
    """Return the time by the database's clock."""
    now: datetime = connection.execute(select(database_now())).scalar_one()
    return now


NOW_SQL = {
    "postgresql": "statement_timestamp()",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
}
"""The database's clock, for statements written as text; SQLite's ticks in milliseconds.

It is read once a statement, so that all times which a statement writes agree.
"""


def later_sql(dialect: str, seconds: str) -> str:
    """Return the database's clock plus some `seconds`, for statements written as text."""
    if dialect == "postgresql":
        # Not clock_timestamp(): with a value that changes under way no index could be bounded.
        return f"{NOW_SQL[dialect]} + make_interval(secs => {seconds})"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


def written(moment: datetime, dialect: str) -> str:
    """Return an instant in UTC as text that the database takes, inside JSON for instance."""
    if dialect == "sqlite":
        return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
    return moment.isoformat()


JSON_TYPE_SQL = {"postgresql": "json_typeof", "sqlite": "json_type"}
"""The function that tells the type of a JSON value."""


@compiles(database_now)
def _compile_now(_element: object, compiler: SQLCompiler, **_: Any) -> str:
    # Parentheses: SQLite wants them around a default that is an expression.
    return f"({NOW_SQL[compiler.dialect.name]})"


@compiles(new_uuid, "postgresql")
def _compile_uuid_postgresql(_element: object, _compiler: SQLCompiler, **_: Any) -> str:
    # A random UUID whose first 48 bits are replaced by Unix milliseconds, version bits by 0111.
    milliseconds = "int8send((extract(epoch from clock_timestamp()) * 1000)::bigint)"
    return (
        "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) "
        f"placing substring({milliseconds} from 3) from 1 for 6), 52, 1), 53, 1), 'hex')::uuid"
    )


@compiles(new_uuid, "sqlite")
def _compile_uuid_sqlite(_element: object, _compiler: SQLCompiler, **_: Any) -> str:
    milliseconds = "printf('%012x', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))"
    return (
        f"(lower(substr({milliseconds}, 1, 8) || '-' || substr({milliseconds}, 9, 4) || '-7' || "
        "substr(hex(randomblob(2)), 2) || '-' || substr('89AB', 1 + (random() & 3), 1) || "
        "substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
    )


UUID_TYPE = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
JSON_TYPE = JSON(none_as_null=True).with_variant(JsonText(), "sqlite")
TAGS_TYPE = JSON_TYPE.with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
"""On PostgreSQL it can be indexed."""
