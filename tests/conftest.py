"""Fixtures: each test runs on SQLite and PostgreSQL, with the in-process lock and with Redis."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job_scheduler.client import Client
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, ServiceProcess, migrate
from tests.support.clients import Awaited, Make
from tests.support.remote import served
from tests.support.services import (
    RedisProcess,
    Service,
    ServiceMissing,
    postgresql_server,
    redis_server,
    skip_or_fail,
    temporary_database,
)

# Each request that a test makes is no news; what the service logs about it is.
logging.getLogger("httpx2").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

SQLITE = pytest.param("sqlite")
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.postgresql)
IN_PROCESS = pytest.param("in-process")
REDIS = pytest.param("redis", marks=pytest.mark.redis)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The PostgreSQL server of this run, if there is one."""
    with postgresql_server(tmp_path_factory.mktemp("postgresql")) as service:
        yield service


@pytest.fixture(scope="session")
def redis_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The Redis server of this run, if there is one."""
    with redis_server(tmp_path_factory.mktemp("redis")) as service:
        yield service


@pytest.fixture(scope="session")
def postgresql_database(postgresql: Service) -> Iterator[str]:
    """A migrated database of this run's own (of this worker's, when there are several)."""
    if postgresql.url is None:
        skip_or_fail(f"no PostgreSQL: {postgresql.reason}")
    with temporary_database(postgresql.url) as url:
        migrate(url)
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty migrated database of each kind."""
    if request.param == "sqlite":
        file = tmp_path / "tasks.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        return f"sqlite:///{file}"
    url: str = request.getfixturevalue("postgresql_database")
    Backend(url).sql(
        "TRUNCATE scheduled_tasks, task_runs, catch_up, instances, task_events, event_watch"
    )
    return url


@pytest.fixture(params=[IN_PROCESS, REDIS])
def redis_url(request: pytest.FixtureRequest) -> str | None:
    """Each kind of lock: None for the one in the process."""
    if request.param == "in-process":
        return None
    service: Service = request.getfixturevalue("redis_service")
    if service.url is None:
        skip_or_fail(f"no Redis: {service.reason}")
    return service.url


@pytest.fixture
def backend(db_url: str, redis_url: str | None) -> Backend:
    """Each database with each lock."""
    return Backend(db_url, redis_url)


@pytest.fixture
def store(db_url: str) -> Backend:
    """Each database with the in-process lock, for what no lock has to do with."""
    return Backend(db_url)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that the test may take away."""
    try:
        process = RedisProcess(tmp_path)
    except ServiceMissing as missing:
        skip_or_fail(str(missing))
    with process:
        yield process


@pytest.fixture
def registry() -> HandlerRegistry:
    """An empty registry of task handlers."""
    return HandlerRegistry()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service behind a port, which the tests of a module share."""
    with served(tmp_path_factory.mktemp("remote")) as service:
        yield service


@pytest.fixture(params=["client", "async client"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Each kind of client; they are closed at the end."""
    made: list[Any] = []

    def build(*arguments: Any, **options: Any) -> Any:
        kind: Any = Client if request.param == "client" else Awaited
        made.append(kind(*arguments, **options))
        return made[-1]

    yield build
    for each in made:
        each.close() if isinstance(each, Client) else each.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let no line be covered by a browser alone: Chromium may be missing."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.no_cover)
