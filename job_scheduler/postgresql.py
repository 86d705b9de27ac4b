"""Connections to PostgreSQL: every wait is bounded, and each can be cut off while it waits."""

import re
import weakref
from collections.abc import Mapping
from typing import Any

from psycopg2 import InterfaceError, OperationalError
from psycopg2.extensions import connection, cursor, new_type, register_type
from sqlalchemy.engine import URL, ExecutionContext

from job_scheduler.calls import Line
from job_scheduler.constants import PREPARED

CONNECT_SECONDS = 5

_UUID_OID = 2950
_UUID_AS_TEXT = new_type((_UUID_OID,), "UUID", lambda value, _: value)
"""Ids are text here: to build a UUID of each, and text of that, was a fifth of a sweep's work."""


class CuttableConnection(connection):
    """A connection whose waiting another thread can end, by giving up the call that uses it.

    The wait for the connection itself is bounded by the C library (``connect_timeout``).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prepared: dict[str, str] = {}
        """What is executed in place of a statement that is prepared already."""
        self._line = Line(self.fileno())
        # Also when it is dropped without being closed.
        weakref.finalize(self, self._line.close)

    def cursor(self, *arguments: Any, **options: Any) -> cursor:  # type: ignore[override]
        """Open a cursor; whoever asks for one is about to wait, and later for the commit."""
        self._line.use()
        opened: cursor = super().cursor(*arguments, **options)
        return opened

    def set_isolation_level(self, level: Any) -> None:
        """Set it, or close: whoever asks next is told that the connection was lost.

        SQLAlchemy does this, too, as it takes a connection back. An error there would come in place
        of an answer that is complete, and the place in the pool would never be free again.
        """
        try:
            super().set_isolation_level(level)
        except (OperationalError, InterfaceError):
            self.close()

    def close(self) -> None:
        """Close; this waits for nobody."""
        self._line.close()
        super().close()


def configure(connected: connection, _record: object) -> None:
    """Set a new connection up, after SQLAlchemy has."""
    register_type(_UUID_AS_TEXT, connected)


_PARAMETER = re.compile(r"%\((?P<name>\w+)\)s|%%")


def execute_prepared(
    cursor: cursor, statement: str, parameters: Mapping[str, Any], context: ExecutionContext
) -> bool:
    """Execute a statement that is to be ``PREPARED``; False for any other, which is left alone.

    To plan one of ours takes PostgreSQL as long as to carry it out for a single task. The driver
    prepares nothing by itself: see PostgreSQL's "PREPARE". It lasts as long as the connection.
    """
    if not context.execution_options.get(PREPARED):
        return False
    prepared = cursor.connection.prepared  # type: ignore[attr-defined]
    if statement not in prepared:
        names = [name for name in dict.fromkeys(_PARAMETER.findall(statement)) if name]
        numbered = _PARAMETER.sub(
            lambda found: f"${names.index(found['name']) + 1}" if found["name"] else "%", statement
        )
        name = f"statement_{len(prepared) + 1}"
        cursor.execute(f"PREPARE {name} AS {numbered}")
        prepared[statement] = f"EXECUTE {name} ({', '.join(f'%({each})s' for each in names)})"
    cursor.execute(prepared[statement], parameters)
    return True


def connect_arguments(url: URL, connect_seconds: int = CONNECT_SECONDS) -> dict[str, Any]:
    """Bound every wait: a server that vanished without a word is a failure within seconds.

    See libpq's "Connection Control Functions" and PostgreSQL's "Client Connection Defaults".
    """
    # A process that is paused in the middle of a transaction keeps the row of its instance locked:
    # nobody can bury it before the server has ended that transaction.
    options = (
        "-c default_transaction_isolation=read\\ committed "
        "-c statement_timeout=15s -c lock_timeout=10s "
        "-c idle_in_transaction_session_timeout=5s "
        # What was answered 201 survives a crash of the server, whatever its own default is.
        "-c synchronous_commit=on "
        # Our joins lead from a few ids to their rows: without statistics, or in a small table,
        # the planner would rather read all rows for each batch.
        "-c enable_hashjoin=off -c enable_mergejoin=off "
        # Compiling a statement takes longer than any of ours runs.
        "-c jit=off "
        # The driver would else ask for it, beyond the bound of connect_timeout.
        "-c datestyle=ISO"
    )
    return {
        "connection_factory": CuttableConnection,
        "connect_timeout": connect_seconds,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "application_name": "job-scheduler",
        # What the URL itself asks for comes last, and so wins.
        **url.query,
        # But for the time zone: what the driver makes of a time is shown as it stands.
        "options": f"{options} {url.query.get('options', '')} -c timezone=UTC",
    }
