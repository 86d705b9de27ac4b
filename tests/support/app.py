"""The service under test: in this process behind a client, or as a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import make_url

from job_scheduler.clock import SystemClock
from job_scheduler.config import Settings, load_settings
from job_scheduler.constants import InstanceState, UnknownTasks
from job_scheduler.core import instances, store
from job_scheduler.core.handlers.calling import Caller
from job_scheduler.core.handlers.processes.commands import Commands
from job_scheduler.core.handlers.processes.pool import Workers
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.sending import WebhookSender
from job_scheduler.core.handlers.webhook.transport import GuardedTransport
from job_scheduler.core.handlers.works import Works
from job_scheduler.core.instances import Member
from job_scheduler.core.locks import InProcessLock, TaskLock
from job_scheduler.core.progress import ProgressBoard
from job_scheduler.core.store import DueTask
from job_scheduler.core.tasks import TaskRunner
from job_scheduler.database import Database, build_engine
from job_scheduler.dependencies import Services
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from job_scheduler.main import create_app
from job_scheduler.migrations.upgrade import upgrade
from job_scheduler.process import own_identity
from job_scheduler.threads import DaemonThreads
from job_scheduler.webhook_allow import Allowed
from tests.support.services import wait_until

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("done", "failed", "unknown", "cancelled")
START_SECONDS = 30.0


@dataclass(frozen=True)
class Backend:
    """Where the service under test keeps its tasks and its locks."""

    db_url: str
    redis_url: str | None = None

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.db_url.partition("+")[0].partition(":")[0]

    def settings(self, **overrides: Any) -> Settings:
        """Settings for this backend; nothing comes from a `.env` file."""
        given = {"db_url": self.db_url, "redis_url": self.redis_url, "lease_seconds": 2}
        return load_settings(_env_file=None, **(given | overrides))

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A connection of the test's own, beside the service."""
        database = Database(build_engine(self.settings().database, pool_size=2))
        try:
            yield database
        finally:
            database.close()

    def sql(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run a statement of the test's own and return its rows, if it has any."""
        with self.database() as database, database.writing() as connection:
            result = connection.execute(text(statement), parameters)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def insert_task(self, name: str = "probe", **columns: Any) -> str:
        """Insert a task by plain SQL, as any program may; return its id."""
        columns = {"run_at": later(3600)} | columns | {"name": name}
        if columns.get("status") == "running":
            columns = {"claim_token": new_token(), "started_at": later(-1), "attempt": 1} | columns
        rows = self.sql(
            f"INSERT INTO scheduled_tasks ({', '.join(columns)}) "  # noqa: S608 (the test's own)
            f"VALUES ({', '.join(f':{column}' for column in columns)}) "
            "RETURNING CAST(task_id AS text) AS task_id",
            **columns,
        )
        return str(rows[0]["task_id"])

    def insert_tasks(self, number: int, name: str = "probe", run_at: str | None = None) -> None:
        """Insert many tasks of one instant by one plain SQL statement."""
        self.sql(
            "INSERT INTO scheduled_tasks (name, run_at) WITH RECURSIVE numbers(n) AS "
            "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :number) "
            "SELECT :name, :run_at FROM numbers",
            number=number,
            name=name,
            run_at=run_at or later(3600),
        )

    def row(self, task_id: str) -> dict[str, Any]:
        """A task as it stands in the database."""
        with self.database() as database, database.reading() as connection:
            return store.get_task(connection, task_id)

    def count(self, condition: str = "1 = 1") -> int:
        """How many tasks meet a condition in SQL."""
        statement = f"SELECT count(*) AS n FROM scheduled_tasks WHERE {condition}"  # noqa: S608
        return int(self.sql(statement)[0]["n"])

    def environment(self) -> dict[str, str]:
        """The environment of a service process on this backend."""
        return {"DB_URL": self.db_url, "REDIS_URL": self.redis_url or "", "LEASE_SECONDS": "2"}


def migrate(url: str) -> None:
    """Bring a database up to date."""
    database = Database(build_engine(make_url(url)))
    upgrade(database)
    database.close()


def later(seconds: float) -> str:
    """The time in `seconds` (negative: ago), as the API and both databases take it."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: TID251 (tests have a clock too)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f") + "+00:00"


def task_body(**members: Any) -> dict[str, Any]:
    """The body of a POST /tasks, for in an hour unless said otherwise."""
    return {"name": "probe", "run_at": later(3600)} | members


@contextmanager
def running(
    backend: Backend, registry: HandlerRegistry | None = None, **options: Any
) -> Iterator[TestClient]:
    """Run the service in this process; `options` are settings, or arguments of `create_app`."""
    arguments = {
        name: options.pop(name) for name in ("scheduler", "clock", "lock") if name in options
    }
    app = create_app(
        backend.settings(**options), registry=registry or HandlerRegistry(), **arguments
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def shown(client: Any, task_id: str) -> dict[str, Any]:
    """A task as it stands."""
    return dict(client.get(f"/tasks/{task_id}").json())


def services_of(client: TestClient) -> Services:
    """The parts of the service that runs behind a client in this process."""
    services = client.app_state["services"]
    assert isinstance(services, Services)
    return services


class OpenLock(InProcessLock):
    """No lock at all: whoever asks is let through."""

    async def acquire(self, task_id: str, token: str) -> bool:
        """Say yes."""
        return await super().acquire(task_id, token) or True


@dataclass
class CountingLock:
    """A lock as it is, which counts its answers, and is given back only when it is closed."""

    inner: TaskLock
    granted: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        """Pass for the inner lock."""
        self.backend = self.inner.backend
        self.away_since = self.inner.away_since
        self._to_release: list[tuple[str, str]] = []

    async def acquire(self, task_id: str, token: str) -> bool:
        """Ask the inner lock."""
        granted = await self.inner.acquire(task_id, token)
        self.granted += granted
        self.refused += not granted
        return granted

    def release(self, task_id: str, token: str) -> None:
        """Put it off, so that whoever asks later is refused for certain."""
        self._to_release.append((task_id, token))

    settle = release

    async def close(self) -> None:
        """Release all, and close the inner lock."""
        for task_id, token in self._to_release:
            self.inner.release(task_id, token)
        await self.inner.close()


@contextmanager
def refused(store: Backend, condition: str) -> Iterator[None]:
    """Let the database refuse changes of tasks that meet a condition on their NEW row."""
    if store.dialect == "sqlite":
        store.sql(
            f"CREATE TRIGGER refusal BEFORE UPDATE ON scheduled_tasks WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        store.sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'refused'; END$$"
        )
        store.sql(
            f"CREATE TRIGGER refusal BEFORE UPDATE ON scheduled_tasks FOR EACH ROW "
            f"WHEN ({condition}) EXECUTE FUNCTION refuse()"
        )
    try:
        yield
    finally:
        if store.dialect == "sqlite":
            store.sql("DROP TRIGGER refusal")
        else:
            store.sql("DROP FUNCTION refuse CASCADE")


def no_lock(_task_id: str, _token: str) -> None:
    """Give no lock back: there is none."""


@dataclass
class Bench:
    """`run_task` alone, with neither timer nor sweep: the test starts each run."""

    database: Database
    instance_id: str
    caller: Caller
    put_back: list[DueTask]
    runner: TaskRunner


@asynccontextmanager
async def bench(
    backend: Backend,
    registry: HandlerRegistry,
    lock: TaskLock | None = None,
    state: InstanceState = InstanceState.Alive,
    holds_lease: Callable[[str], bool] = lambda _: True,
) -> AsyncIterator[Bench]:
    """A runner of tasks, registered as an instance; `lock` is closed with it."""
    configure_logging("INFO")
    database = Database(build_engine(backend.settings().database))
    threads = DaemonThreads(16, "handler")
    workers = Workers(1, [], None)
    guard = Guard(Allowed())
    sender = WebhookSender(GuardedTransport(guard), (), SystemClock())
    works = Works(registry, guard, sender, Commands((), {}), workers, UnknownTasks.Timer)
    progress = ProgressBoard(database)
    caller = Caller(works, threads, progress.note)
    lock = lock or InProcessLock()
    instance_id = new_token()
    put_back: list[DueTask] = []
    runner = TaskRunner(
        database,
        lock,
        caller,
        lambda: one.instance_id,
        put_back.append,
        holds_lease,
        progress,
        works.limits,
        lambda _: None,
        SystemClock(),
    )
    one = Bench(database, instance_id, caller, put_back, runner)
    try:
        await database.write(instances.register, Member(instance_id, own_identity()), state)
        yield one
    finally:
        await lock.close()
        await sender.close()
        await workers.close()
        threads.close()
        database.close()


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that are executed by an engine inside the block."""
    collected: list[str] = []

    def collect(*arguments: Any) -> None:
        collected.append(" ".join(arguments[2].split()))

    event.listen(engine, "before_cursor_execute", collect)
    try:
        yield collected
    finally:
        event.remove(engine, "before_cursor_execute", collect)


def post(client: TestClient | httpx.Client, **members: Any) -> dict[str, Any]:
    """Create a task and return it."""
    response = client.post("/tasks", json=task_body(**members))
    assert response.status_code == 201, response.text
    return dict(response.json())


def assert_problem(response: Any, status: int, error_code: str) -> dict[str, Any]:
    """Check that a response is a complete problem document (RFC 9457), and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["error_code"]) == (status, error_code), problem
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    return problem


def parse_time(text: str) -> datetime:
    """Parse a time of a response, which ends in Z and nothing else."""
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text)


class SteppedClock:
    """The machine's clock, which a test can put forward, or break."""

    error = timedelta()

    def __init__(self) -> None:
        self._ahead = timedelta()
        self.broken = False

    def now(self) -> datetime:
        """Return the present instant, as far as it has been put forward."""
        if self.broken:
            raise ZeroDivisionError("the clock's own words")
        return datetime.now(UTC) + self._ahead  # noqa: TID251 (tests have a clock too)

    def step(self, seconds: float) -> None:
        """Put the clock forward."""
        self._ahead += timedelta(seconds=seconds)


class StubbornScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler brings no types
    """An APScheduler that takes and gives back jobs only while `willing`."""

    willing = False

    def add_job(self, *arguments: Any, **options: Any) -> Any:
        """Refuse, with words that no caller is to see."""
        if not self.willing:
            raise RuntimeError("the scheduler's own words")
        return super().add_job(*arguments, **options)

    def remove_job(self, job_id: str, jobstore: str | None = None) -> None:
        """Refuse, with words that no caller is to see."""
        if not self.willing:
            raise RuntimeError("the scheduler's own words")
        super().remove_job(job_id, jobstore)


def finished(
    client: TestClient | httpx.Client, task_id: str, timeout: float = 15.0
) -> dict[str, Any]:
    """Wait until the task has ended, and return it."""

    def look() -> dict[str, Any] | None:
        task = client.get(f"/tasks/{task_id}").json()
        return task if task["status"] in FINAL else None

    task = wait_until(look, timeout, f"the end of task {task_id}")
    assert task is not None
    return task


@dataclass
class ServiceProcess:
    """The service as a process of its own, which a test may kill."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("-m", "job_scheduler", "serve", "--port", "0")

    def __post_init__(self) -> None:
        """Prepare; nothing is started yet."""
        self.log = self.directory / "service.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The process that was started last."""
        assert self._process is not None, "not started"
        return self._process

    def launch(self) -> None:
        """Start it, without waiting for anything."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "TMPDIR", "LANG") or name.startswith("COV")
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=self.directory,
                env=inherited | {"PYTHONPATH": str(ROOT)} | dict(self.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start(self) -> httpx.Client:
        """Start it and wait until it answers; return a client for it."""
        self.launch()
        announced = wait_until(self._address, START_SECONDS, "the start of the service")
        assert announced is not None
        self.url = announced
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it in order (SIGTERM) and return its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=30)

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def _address(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the service has ended:\n{self.output()}")
        found = re.search(r"is ready: (\S+)", self.output())
        return found.group(1) if found else None


@contextmanager
def service_process(
    directory: Path, environment: Mapping[str, str], *arguments: str
) -> Iterator[ServiceProcess]:
    """A service process that is surely gone at the end."""
    service = ServiceProcess(directory, environment)
    if arguments:
        service.arguments = arguments
    try:
        yield service
    finally:
        if service._process is not None:
            service.kill()
