"""Measures the database's clock, which decides when tasks run."""

from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from job_scheduler.clock import Clock, DatabaseClock, SystemClock

_FIRST_MEASUREMENTS = 5


def build_clock(connection: Connection) -> Clock:
    """Return the clock of this database: on SQLite the machine's own, else one measured now."""
    if connection.dialect.name == "sqlite":
        return SystemClock()
    clock = DatabaseClock(partial(_read, connection))
    for _ in range(_FIRST_MEASUREMENTS - 1):
        measure(connection, clock)
    return clock


def measure(connection: Connection, clock: Clock) -> None:
    """Compare a clock with the database's, if it is one that has to be measured."""
    if isinstance(clock, DatabaseClock):
        clock.measure(partial(_read, connection))


def _read(connection: Connection) -> datetime:
    # Not the statement's time as elsewhere: it has to lie between question and answer, and on a
    # connection that has just been opened the driver may ask for more than this statement.
    told: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return told
