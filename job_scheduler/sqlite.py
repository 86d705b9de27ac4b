"""Connections to SQLite: how they are set up, and how their transactions begin."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL

from job_scheduler.exceptions import ConfigurationError

_WAL_SECONDS = 5.0
_WAL_PAUSE_SECONDS = 0.02
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "fuse.sshfs")
_MOUNTS = Path("/proc/self/mounts")


def configure(connection: Any, _record: object) -> None:
    """Set a new connection up, so that nothing is lost and nobody is refused at once."""
    # Without this, Python 3.11's driver begins transactions by itself, too late and deferred.
    connection.isolation_level = None
    # Another program may have written text that is not UTF-8: one bad row is not to hide the rest.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 10000")
    switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def switch_to_wal(cursor: sqlite3.Cursor, patience: float = _WAL_SECONDS) -> None:
    """Of several that switch a new file at once SQLite refuses all but one, without waiting."""
    deadline = time.monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            threading.Event().wait(_WAL_PAUSE_SECONDS)
        else:
            return


def begin(connection: Connection) -> None:
    """Begin a transaction, as the driver does not."""
    # A transaction that reads first and writes later fails with SQLITE_BUSY when another has
    # written in between; one that begins IMMEDIATE waits its turn instead.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def refuse_network_file_system(url: URL, mounts: Path = _MOUNTS) -> None:
    """SQLite's locks do not work on network file systems (sqlite.org, "How To Corrupt")."""
    if not mounts.exists():
        return
    file = Path(url.database or "").resolve()
    entries = (line.split() for line in mounts.read_text().splitlines())
    holding = [
        (len(Path(entry[1]).parts), entry[2]) for entry in entries if file.is_relative_to(entry[1])
    ]
    _, kind = max(holding, default=(0, ""))
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        raise ConfigurationError(
            f"Configuration error: DB_URL: {file} lies on a network file system ({kind}), where "
            "SQLite loses data. Choose a local path, or PostgreSQL."
        )
