"""A PostgreSQL of the benchmark's own, with pg_stat_statements: it counts where times are noisy.

It keeps its promises as the usual one does (fsync on), on the same disk.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.servers import NoServer
from tests.support.services import find_free_port

_INSTALLED = Path("/usr/lib/postgresql")


@contextmanager
def own_postgresql() -> Iterator[str]:
    """Start it, and yield its SQLAlchemy URL.

    Raises:
        NoServer: there are no programs of PostgreSQL's with that extension, or it cannot start.
    """
    programs = _programs()
    home = Path(tempfile.mkdtemp(prefix="bench-postgresql-"))
    data, port = home / "data", find_free_port()
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' "
        "-c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.track=all "
        "-c max_connections=200"
    )
    control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-s"]
    try:
        account = _account(home)
        run = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--encoding=UTF8"]
        _run([*run, "--no-locale", "--auth=trust"], account, home)
        log = str(home / "log")
        try:
            _run([*control, "-l", log, "-o", options, "start"], account, home)
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            with suppress(NoServer):  # it has not even started
                _run([*control, "-m", "immediate", "stop"], account, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _programs() -> Path:
    newest = sorted(_INSTALLED.glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    for programs in newest:
        share = Path("/usr/share/postgresql") / programs.parent.name / "extension"
        if (share / "pg_stat_statements.control").exists():
            return programs
    raise NoServer("no PostgreSQL with pg_stat_statements is installed in /usr/lib/postgresql")


def _account(home: Path) -> list[str]:
    """How to run as another user than root, whom PostgreSQL refuses; none if we are not."""
    if os.geteuid() != 0:
        return []
    shutil.chown(home, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _run(command: list[str], account: list[str], directory: Path) -> None:
    done = subprocess.run(  # noqa: S603 (PostgreSQL's own programs)
        [*account, *command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NoServer(f"{command[0]}: {done.stderr.strip()[-300:]}")
