"""Start and stop: what the lifespan builds, starts, recovers, drains and closes."""

import asyncio
import gc
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi.testclient import TestClient
from sqlalchemy.engine import make_url

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.config import load_settings
from job_scheduler.constants import RecoverPastTasks
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.exceptions import ConfigurationError, SchemaError, StartError
from job_scheduler.main import create_app
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    finished,
    later,
    post,
    running,
    service_process,
    services_of,
)
from tests.support.services import find_free_port, temporary_database, wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


@pytest.fixture
def empty_database(postgresql_database: str) -> Iterator[Backend]:
    """A PostgreSQL database without any table."""
    with temporary_database(postgresql_database) as url:
        yield Backend(url)


def own_threads() -> set[threading.Thread]:
    """The threads of this process at this moment."""
    return set(threading.enumerate())


# ------------------------------------------------------------------------ start


@pytest.mark.parametrize(
    ("policy", "status", "missed"),
    [("run", "done", False), ("fail", "failed", False), ("skip", "scheduled", True)],
)
def test_start_applies_the_policy_to_overdue_tasks(
    backend: Backend, policy: str, status: str, missed: bool
) -> None:
    task_id = backend.insert_task(run_at=later(-60))
    with running(backend, recover_past_tasks=policy) as client:
        task = client.get(f"/tasks/{task_id}").json()
        if policy == "run":
            task = finished(client, task_id)
    assert task["status"] == status
    assert (task["missed_at"] is not None) is missed


def test_policy_is_run_unless_said_otherwise() -> None:
    assert load_settings(_env_file=None).recover_past_tasks is RecoverPastTasks.Run


def test_start_fails_the_runs_that_were_cut_off(
    store: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    task_id = store.insert_task(run_at=later(-60), status="running")
    with running(store) as client:
        task = client.get(f"/tasks/{task_id}").json()
    assert task["status"] == "failed"
    assert task["result"].startswith("interrupted: ")
    assert "1 runs had been cut off" in capfd.readouterr().err


def test_scheduler_runs_exactly_as_long_as_the_service(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        assert scheduler.running
        post(client, run_at=later(3))
        assert len(scheduler.get_jobs()) == 1
    assert not scheduler.running


def test_what_lies_beyond_the_lookahead_is_not_held_in_memory(store: Backend) -> None:
    store.insert_tasks(500, run_at=later(3600))
    with running(store) as client:
        wait_until(lambda: services_of(client).sweep.last_at)
        post(client, run_at=later(6))
        assert client.get("/health").json()["scheduler"]["held"] == 0


def test_one_app_can_be_started_again(backend: Backend, registry: HandlerRegistry) -> None:
    app = create_app(backend.settings(), registry=registry)
    for _ in range(2):
        with TestClient(app) as client:
            task = post(client, run_at=later(0))
            assert finished(client, task["task_id"])["status"] == "done"
    assert len(backend.sql("SELECT * FROM instances")) == 2


def test_settings_come_from_the_environment(
    store: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_URL", store.db_url)
    monkeypatch.setenv("THREADS", "3")
    (tmp_path / ".env").write_text("MAX_RUNNING=7\nTHREADS=9\n")
    with TestClient(create_app()) as client:
        settings = services_of(client).settings
        assert (settings.threads, settings.max_running) == (3, 7)
        assert client.get("/health").json()["database"]["backend"] == store.dialect


def test_bad_setting_stops_the_start_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADS", "many")
    app = create_app()
    with (
        pytest.raises(ConfigurationError, match=r"THREADS: .* \(found: 'many'\)"),
        TestClient(app),
    ):
        pass
    assert str(app.state.start_failure).startswith("Configuration error: THREADS: ")


# -------------------------------------------------------------- task modules


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of the test's own; modules imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("jobs_of_"):
            del sys.modules[name]


def test_task_modules_are_imported_from_the_working_directory(
    store: Backend, working_directory: Path
) -> None:
    (working_directory / "jobs_of_one.py").write_text(
        "from job_scheduler import task\n"
        "import jobs_of_registry\n"
        "jobs_of_registry.registry.task('hello')(lambda: 'Hello')\n"
    )
    (working_directory / "jobs_of_registry.py").write_text(
        "from job_scheduler.core.handlers.registry import HandlerRegistry\n"
        "registry = HandlerRegistry()\n"
    )
    (working_directory / "jobs_of_two.py").write_text("")
    for _ in range(2):  # a module is imported once, however often the service starts
        with running(store, task_modules=" jobs_of_one, jobs_of_two ,"):
            assert {"jobs_of_one", "jobs_of_two"} <= set(sys.modules)
    assert sys.path.count(str(working_directory)) == 1
    assert sys.modules["jobs_of_registry"].registry.names() == ["hello"]


def test_missing_task_module_is_named(store: Backend, working_directory: Path) -> None:
    (working_directory / "jobs_of_one").mkdir()
    for missing in ("jobs_of_none", "jobs_of_one.none"):
        with (
            pytest.raises(
                ConfigurationError, match=f"TASK_MODULES: there is no module '{missing}'"
            ),
            running(store, task_modules=missing),
        ):
            pass


def test_broken_task_module_shows_its_own_error(store: Backend, working_directory: Path) -> None:
    (working_directory / "jobs_of_broken.py").write_text("import no_such_library\n")
    with (
        pytest.raises(ModuleNotFoundError, match="no_such_library"),
        running(store, task_modules="jobs_of_broken"),
    ):
        pass


# -------------------------------------------------------------------- the schema


@pytest.mark.postgresql
def test_missing_schema_stops_the_start_and_says_what_to_run(empty_database: Backend) -> None:
    with (
        pytest.raises(SchemaError, match=r"lacks revision 0001.* Run: python migrate.py"),
        running(empty_database),
    ):
        pass


@pytest.mark.postgresql
def test_auto_migrate_creates_the_schema(empty_database: Backend) -> None:
    with running(empty_database, auto_migrate=True) as client:
        assert post(client)["status"] == "scheduled"


@pytest.mark.postgresql
def test_missing_database_stops_the_start_and_is_created_with_auto_migrate(
    empty_database: Backend,
) -> None:
    url = make_url(empty_database.db_url)
    name = f"{url.database}_more"
    missing = Backend(url.set(database=name).render_as_string(hide_password=False))
    with (
        pytest.raises(SchemaError, match=r"database is missing .* python migrate.py") as caught,
        running(missing),
    ):
        pass
    assert "\n" not in str(caught.value)
    with running(missing, auto_migrate=True) as client:
        assert client.get("/tasks").json() == []
    with empty_database.database() as database:
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_embedded_database_migrates_itself(tmp_path: Path) -> None:
    with running(Backend(f"sqlite:///{tmp_path}/new file.db")) as client:
        assert post(client)["status"] == "scheduled"
    assert (tmp_path / "new file.db").exists()


def test_schema_of_a_newer_release_is_refused(store: Backend) -> None:
    store.sql("UPDATE alembic_version SET version_num = '9999'")
    try:
        with pytest.raises(SchemaError, match=r"9999.*newer release"), running(store):
            pass
    finally:
        store.sql("UPDATE alembic_version SET version_num = '0001'")


def test_unreachable_database_stops_the_start_after_the_wait(
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = f"postgresql+psycopg2://someone:secret@127.0.0.1:{find_free_port()}/tasks"
    with (
        pytest.raises(StartError, match=r"cannot be reached .* Check DB_URL") as caught,
        running(Backend(url), database_wait=0.2),
    ):
        pass
    assert "\n" not in str(caught.value)
    log = capfd.readouterr().err
    assert "waiting for the database" in log
    assert "secret" not in log + str(caught.value)


@only_postgresql
def test_start_waits_for_the_database(store: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    with Proxy.before(store.db_url) as proxy:
        proxy.cut()
        healing = threading.Timer(0.5, proxy.heal)
        healing.start()
        with running(Backend(proxy.url_for(store.db_url))) as client:
            assert client.get("/health").json()["status"] == "ok"
        healing.join()
    assert "waiting for the database" in capfd.readouterr().err


# ------------------------------------------------------------------------- stop


def test_stop_lets_running_tasks_end_and_leaves_no_thread(
    backend: Backend, registry: HandlerRegistry
) -> None:
    begun = threading.Semaphore(0)

    @registry.task("plain")
    def plain() -> str:
        begun.release()
        threading.Event().wait(0.4)
        return "ended"

    @registry.task("async")
    async def on_the_loop() -> str:
        begun.release()
        await asyncio.sleep(0.4)
        return "ended"

    before = own_threads()
    with running(backend, registry) as client:
        tasks = [post(client, name=name, run_at=later(0)) for name in ("plain", "async") * 3]
        queued = backend.insert_task(run_at=later(3600))
        for _ in tasks:
            assert begun.acquire(timeout=10)
    rows = [backend.row(task["task_id"]) for task in tasks]
    assert {(row["status"], row["result"]) for row in rows} == {("done", "ended")}
    assert backend.row(queued)["status"] == "scheduled"
    assert {row["state"] for row in backend.sql("SELECT state FROM instances")} == {"dead"}
    wait_until(lambda: own_threads() <= before, what="the end of the service's threads")


def test_stop_cuts_off_what_outlasts_the_grace_period(
    backend: Backend, registry: HandlerRegistry
) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)
    cleaned_up = False

    @registry.task("plain")
    def plain() -> str:
        begun.release()
        gate.wait(60)
        return "nobody waits for this"

    @registry.task("async")
    async def on_the_loop() -> None:
        nonlocal cleaned_up
        begun.release()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned_up = True

    before = own_threads()
    try:
        with running(backend, registry, shutdown_grace=0.2, threads=2) as client:
            tasks = [post(client, name=name, run_at=later(0)) for name in ("async", *["plain"] * 4)]
            for _ in range(3):
                assert begun.acquire(timeout=10)
            wait_until(lambda: services_of(client).dispatcher.queued == 2)
        rows = [backend.row(task["task_id"]) for task in tasks]
        cut_off, waiting = rows[:3], rows[3:]
        assert {(row["status"], row["result"]) for row in cut_off} == {
            ("failed", "interrupted: the service stopped before it finished")
        }
        # What had not started is left for the next start.
        assert {(row["status"], row["attempt"]) for row in waiting} == {("scheduled", 0)}
        assert cleaned_up
        # Handlers that are stuck keep their threads, which nobody joins.
        stuck = own_threads() - before
        assert {thread.daemon for thread in stuck} == {True}
    finally:
        gate.set()
    wait_until(lambda: own_threads() <= before, what="the end of the handlers' threads")
    assert backend.count("status = 'running'") == 0


@only_postgresql
def test_stop_ends_when_results_cannot_be_written(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, gate = threading.Event(), threading.Event()

    @registry.task("probe")
    def probe() -> str:
        begun.set()
        gate.wait(60)
        return "lost with the database"

    with Proxy.before(store.db_url) as proxy:
        with running(Backend(proxy.url_for(store.db_url)), registry, shutdown_grace=0) as client:
            task = post(client, run_at=later(0))
            assert begun.wait(10)
            proxy.cut()
        gate.set()
    log = capfd.readouterr().err
    assert "1 results could not be written: others mark these runs" in log
    assert "the others will find this instance gone" in log
    with running(store, registry) as client:
        row = client.get(f"/tasks/{task['task_id']}").json()
    assert row["status"] == "running"  # this very process lives, and its result may yet come
    assert row["attempt"] == 1


HANGING = """
import asyncio, time
from pathlib import Path
from job_scheduler import task

@task("plain")
def plain() -> None:
    Path("plain").touch()
    time.sleep(600)

@task("async")
async def on_the_loop() -> None:
    Path("async").touch()
    await asyncio.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_by_itself_though_a_handler_hangs(
    store: Backend, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "handlers.py").write_text(HANGING)
    environment = store.environment() | {"TASK_MODULES": "handlers", "SHUTDOWN_GRACE": "0.3"}
    with service_process(tmp_path, environment) as service:
        with service.start() as client:
            tasks = [post(client, name=name, run_at=later(0)) for name in ("plain", "async")]
            wait_until(lambda: all((tmp_path / name).exists() for name in ("plain", "async")))
        service.process.send_signal(number)
        service.process.wait(timeout=20)
        assert "Traceback" not in service.output()
        assert re.search(r"waiting up to 0.3 s for 2 running tasks", service.output())
    for task in tasks:
        row = store.row(task["task_id"])
        assert (row["status"], row["result"]) == (
            "failed",
            "interrupted: the service stopped before it finished",
        )
    assert {row["state"] for row in store.sql("SELECT state FROM instances")} == {"dead"}


def test_failed_start_leaves_no_thread_and_no_living_instance(
    store: Backend, registry: HandlerRegistry
) -> None:
    class BrokenScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
        def start(self, *_: object, **__: object) -> None:
            raise RuntimeError("no clock today")

    before = own_threads()
    with (
        pytest.raises(RuntimeError, match="no clock today"),
        running(store, registry, scheduler=BrokenScheduler),
    ):
        pass
    wait_until(lambda: own_threads() <= before)
    assert {row["state"] for row in store.sql("SELECT state FROM instances")} == {"dead"}


def test_loop_is_favoured_while_the_service_runs(store: Backend) -> None:
    def settings() -> tuple[Any, ...]:
        return *gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count() > 0

    before = settings()
    with running(store):
        assert settings() == (10_000, *before[1:3], 0.001, True)
    assert settings() == before
