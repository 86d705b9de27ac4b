"""Outages of the database told from mistakes of ours, and what an outage leaves to be done."""

import logging
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from job_scheduler.calls import is_given_up
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable

_logger = logging.getLogger(__name__)

_READ_ONLY_TRANSACTION = "25006"
# Serialization failure, deadlock: the server has rolled the transaction back.
_ROLLED_BACK = ("40001", "40P01")


def as_outage(error: DBAPIError | PoolTimeoutError, failure: DatabaseUnavailable) -> Exception:
    """Tell an outage (to be reported as `failure`) from a mistake of ours (raised as it is)."""
    if isinstance(error, PoolTimeoutError | InterfaceError) or error.connection_invalidated:
        return failure
    if _code(error) in _ROLLED_BACK:
        return DatabaseUnavailable()  # at COMMIT, too: nothing was changed
    if _code(error) == _READ_ONLY_TRANSACTION:
        return failure
    # SQLite's general code stands for a wrong statement; its outages have codes of their own.
    mistake = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    if isinstance(error, OperationalError) and not mistake:
        _logger.debug("database unavailable", exc_info=error)
        return failure
    return error


def was_lost(outage: DatabaseUnavailable) -> bool:
    """Tell whether the connection was lost, most likely long before, and nothing was changed.

    No connection is tried before it is used, which would double the round trips. All others in
    the pool are dropped with the first that fails, so the next one is new (unless the machine's
    clock was put back).
    """
    lost = getattr(outage.__cause__, "connection_invalidated", False)
    return lost and not isinstance(outage, CommitOutcomeUnknown) and not is_given_up()


def is_rolled_back(outage: DatabaseUnavailable) -> bool:
    """Tell whether the server has rolled the transaction back for the sake of another one."""
    return _code(outage.__cause__) in _ROLLED_BACK


def _code(error: BaseException | None) -> str | None:
    code: str | None = getattr(getattr(error, "orig", None), "pgcode", None)
    return code
