"""`enqueue`: a task in the caller's own transaction, by the rules of POST /tasks."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import UUID, uuid4

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from job_scheduler.client import enqueue
from job_scheduler.clock import SystemClock
from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.core.dispatcher import Dispatcher
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.lanes import Lane
from job_scheduler.core.places import Place
from job_scheduler.core.store import DueTask
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.timer import Timer
from job_scheduler.core.wakeups import Wakeups
from job_scheduler.database import build_engine
from job_scheduler.exceptions import TaskConflict, UniqueKeyTaken
from tests.conftest import POSTGRESQL
from tests.support.app import ROOT, Backend, finished, running, statements
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(store: Backend) -> Iterator[Engine]:
    """An engine as another program has it: none of this service's settings."""
    engine = create_engine(make_url(store.db_url), poolclass=NullPool)
    yield engine
    engine.dispose()


def test_task_runs_if_and_only_if_the_transaction_commits(
    store: Backend, registry: HandlerRegistry, engine: Engine
) -> None:
    ran: list[int] = []
    registry.task("note")(lambda number: ran.append(number))
    with running(store, registry) as client:
        with Session(engine) as session:
            enqueue(session, "note", payload={"number": 1})
            session.rollback()
        with Session(engine) as session, session.begin():
            task_id = enqueue(session, "note", payload={"number": 2})
        with engine.connect() as connection:
            enqueue(connection, "note", payload={"number": 3})
        task = finished(client, task_id)
        assert (task["status"], task["payload"]) == ("done", {"number": 2})
        started, run_at = (datetime.fromisoformat(task[name]) for name in ("started_at", "run_at"))
        assert timedelta() <= started - run_at < timedelta(seconds=1)
        with engine.begin() as connection:
            last = enqueue(connection, "note", payload={"number": 4})
        finished(client, last)
    assert ran == [2, 4]
    assert store.count() == 2


def test_nothing_is_committed_and_the_callers_work_goes_along(
    store: Backend, engine: Engine
) -> None:
    with Session(engine) as session:
        task_id = enqueue(session, "probe", NOON)
        assert session.in_transaction()
        assert session.execute(text("SELECT count(*) FROM scheduled_tasks")).scalar_one() == 1
        with Session(engine) as other:
            assert other.execute(text("SELECT count(*) FROM scheduled_tasks")).scalar_one() == 0
        session.commit()
    assert store.row(task_id)["status"] == "scheduled"


@pytest.mark.parametrize("kind", ["session", "scoped", "connection"])
def test_row_is_what_post_would_have_made(store: Backend, engine: Engine, kind: str) -> None:
    wanted: dict[str, Any] = {
        "payload": {"to": "Ada", "deep": [{"é": 1.5}, None, True, 2**63 - 1]},
        "max_attempts": 3,
        "on_crash": "hold",
        "retry_delay": [1, 2.5],
        "retry_max_delay": 60.0,
        "start_before": NOON,
        "timeout": 2.5,
        "priority": 2,
        "concurrency_key": "k",
        "max_running": 3,
        "on_done": {"url": "https://example.com/done", "headers": {"X-A": "b"}},
        "on_failed": {"url": "https://example.com/failed"},
        "tags": ["billing", "é"],
    }
    if kind == "connection":
        with engine.begin() as connection:
            task_id = enqueue(connection, "probe", NOON, **wanted)
    elif kind == "session":
        with Session(engine) as session, session.begin():
            task_id = enqueue(session, "probe", NOON, **wanted)
    else:
        scoped = scoped_session(sessionmaker(engine))
        task_id = enqueue(scoped, "probe", NOON, **wanted)
        scoped.commit()
        scoped.remove()
    row = store.row(task_id)
    assert UUID(task_id).version == 7
    assert (row["name"], row["run_at"], row["status"]) == ("probe", NOON, "scheduled")
    assert {name: row[name] for name in wanted} == wanted
    webhook = {"url": "https://example.com/", "method": "PUT", "body": [1, 1.5]}
    with engine.begin() as connection:
        request = enqueue(connection, "probe", NOON, webhook=webhook)
        program = enqueue(connection, "probe", NOON, command=("ls", "-l"))
    assert store.row(request)["webhook"] == webhook
    assert store.row(program)["command"] == ["ls", "-l"]
    with engine.begin() as connection:
        task_id = enqueue(connection, "probe", NOON)
    plain = store.row(task_id)
    assert (plain["payload"], plain["max_attempts"], plain["on_crash"]) == (None, 1, None)


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is not UTC."""
    with monkeypatch.context() as environment:
        environment.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_time_is_read_as_post_reads_it(store: Backend, engine: Engine) -> None:
    given: list[tuple[datetime, datetime]] = [
        (datetime(2027, 7, 1, 12), NOON),  # noqa: DTZ001 (a naive time is what is tried)
        (datetime(2027, 7, 1, 12, tzinfo=Unsure()), NOON),
        (datetime(2027, 7, 1, 14, tzinfo=timezone(timedelta(hours=2))), NOON),
        (datetime(2027, 7, 1, 12, 19, 32, 1, timezone(timedelta(minutes=19, seconds=32))), NOON),
    ]
    for run_at, expected in given:
        with engine.begin() as connection:
            task_id = enqueue(connection, "probe", run_at)
        assert store.row(task_id)["run_at"] - expected < timedelta(microseconds=2)
        assert store.row(task_id)["run_at"] >= expected


class Unsure(tzinfo):
    """A time zone that does not know."""

    def utcoffset(self, _moment: datetime | None) -> None:
        """Say nothing."""

    def dst(self, _moment: datetime | None) -> None:
        """Say nothing."""

    def tzname(self, _moment: datetime | None) -> None:
        """Say nothing."""


def test_no_time_is_now_by_the_database(store: Backend, engine: Engine) -> None:
    with engine.begin() as connection:
        task_id = enqueue(connection, "probe")
    row = store.row(task_id)
    assert timedelta() <= row["created_at"] - row["run_at"] < timedelta(seconds=1)


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"deeper": DEEP}
BOTTOMLESS: list[Any] = []
for _ in range(100_000):
    BOTTOMLESS = [BOTTOMLESS]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "name: empty": ({"name": ""}, "^name: Must not be empty.$"),
    "name: long": ({"name": "a" * 256}, "^name: Must have at most 255 characters.$"),
    "name: NUL": ({"name": "a\0b"}, "^name: Must not contain NUL"),
    "name: no text": ({"name": 5}, "^name: Must be text"),
    "name: surrogate": ({"name": "\ud800"}, "^name: Must be text without halves"),
    "run_at: text": ({"run_at": "2027-07-01"}, "^run_at: Must be a datetime, or None for now.$"),
    "run_at: date": ({"run_at": date(2027, 7, 1)}, "^run_at: Must be a datetime"),
    "run_at: year 0": (
        {"run_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
        "^run_at: There is no such date and time in UTC. Write it like 2027",
    ),
    "payload: no object": ({"payload": ["a"]}, "^payload: It has no JSON form .*Pass a dict"),
    "payload: text": ({"payload": "text"}, "^payload: It has no JSON form"),
    "payload: set": ({"payload": {"a": {1}}}, "^payload: It has no JSON form .*set.*Pass a dict"),
    "payload: cycle": ({"payload": CYCLE}, "^payload: It has no JSON form .*Circular"),
    "payload: bottomless": ({"payload": {"a": BOTTOMLESS}}, "^payload: It has no JSON form"),
    "payload: deep": ({"payload": DEEP}, "^payload: .*more than 100 levels deep. Flatten it.$"),
    "payload: NaN": ({"payload": {"a": float("nan")}}, "^payload: NaN is not JSON"),
    "payload: large number": (
        {"payload": {"a": {"b": [2**63]}}},
        "^payload.a.b.0: The number 9223372036854775808 needs more than 64 bits. Send one",
    ),
    "payload: NUL": ({"payload": {"a": {"b": "\0"}}}, r"^payload.a.b: Text may not contain NUL"),
    "payload: surrogate": ({"payload": {"a": "\ud800"}}, r"^payload.a: Text may not contain NUL"),
    "payload: keys": ({"payload": {1: 2, "1": 3}}, r"^payload.1: The same key stands here twice"),
    "payload: large": ({"payload": {"a": "a" * BODY_MAX_BYTES}}, "^payload: As JSON .* 1048576"),
    "task_id": ({"task_id": "5"}, "^task_id: Not a UUID. Write it like 0198"),
    "max_attempts: 0": ({"max_attempts": 0}, "^max_attempts: .*greater than or equal to 1$"),
    "max_attempts: True": ({"max_attempts": True}, "^max_attempts: "),
    "on_crash": ({"on_crash": "ask"}, "^on_crash: .*'fail', 'retry' or 'hold'$"),
    "priority": ({"priority": 4}, "^priority: .*less than or equal to 3$"),
    "max_running": ({"max_running": 4}, "^max_running: Needs a concurrency_key"),
    "webhook": ({"webhook": {"url": "ftp://a.example/"}}, "^webhook.url: "),
    "webhook: no object": ({"webhook": 5}, "^webhook: It has no JSON form"),
    "webhook: NaN": ({"webhook": {"url": "u", "body": float("nan")}}, "^webhook: NaN is not JSON"),
    "command": ({"command": "ls"}, "^command: Must be a JSON array"),
    "both": (
        {"command": ["ls"], "webhook": {"url": "https://a.example/"}},
        "^command: Cannot stand beside webhook",
    ),
    "on_done": (
        {"on_done": {"url": "https://a.example/", "body": 1}},
        "^on_done.body: There is no",
    ),
    "two": ({"name": " ", "task_id": "5"}, "^name: .* alone.; task_id: Not a UUID"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_argument_is_named_with_a_remedy(store: Backend, engine: Engine, what: str) -> None:
    arguments, message = REFUSED[what]
    with engine.begin() as connection:
        with pytest.raises(ValueError, match=message):
            enqueue(connection, **({"name": "probe"} | arguments))
        # The caller's transaction is as good as before.
        kept = enqueue(connection, "probe", NOON)
    assert store.row(kept)
    assert store.count() == 1


def test_largest_payload_is_taken(store: Backend, engine: Engine) -> None:
    payload = {"a": "a" * (BODY_MAX_BYTES - len('{"a":""}'))}
    with engine.begin() as connection:
        task_id = enqueue(connection, "probe", NOON, payload=payload)
    assert store.row(task_id)["payload"] == payload


def test_what_is_no_session_is_refused() -> None:
    for session in (None, "postgresql://", AsyncSession()):
        with pytest.raises(ValueError, match=r"^session: Must be a Session or a Connection"):
            enqueue(session, "probe")  # type: ignore[arg-type]  # what is tried
    engine = create_engine("sqlite://")
    engine.dialect.name = "mysql"  # which is not installed
    with (
        engine.connect() as connection,
        pytest.raises(ValueError, match=r"^session: Its database is mysql\. Use the one"),
    ):
        enqueue(connection, "probe")
    engine.dispose()


# ------------------------------------------------------------------------ created once


def test_repetition_inserts_nothing_and_another_body_conflicts(
    store: Backend, engine: Engine
) -> None:
    task_id = uuid4()
    wanted: dict[str, Any] = {"name": "probe", "run_at": NOON, "payload": {"a": 1}}
    for given in (task_id, str(task_id), str(task_id).upper()):
        with Session(engine) as session, session.begin():
            assert enqueue(session, **wanted, task_id=given) == str(task_id)
    others: list[dict[str, Any]] = [
        {"name": "other"},
        {"run_at": NOON + timedelta(seconds=1)},
        {"payload": {"a": 1.0}},
        {"max_attempts": 2},
        {"on_crash": "hold"},
    ]
    with Session(engine) as session, session.begin():
        for other in others:
            with pytest.raises(TaskConflict):
                enqueue(session, **(wanted | other), task_id=task_id)
        # The conflict leaves the transaction as it was.
        kept = enqueue(session, "probe", NOON)
    assert store.row(kept)
    assert store.count() == 2


def test_repetition_without_a_time_leaves_the_first_one(store: Backend, engine: Engine) -> None:
    task_id = str(uuid4())
    with engine.begin() as connection:
        enqueue(connection, "probe", task_id=task_id)
    first = store.row(task_id)
    with engine.begin() as connection:
        assert enqueue(connection, "probe", task_id=task_id) == task_id
        with pytest.raises(TaskConflict):
            enqueue(connection, "other", task_id=task_id)
    assert store.row(task_id) == first


@only_postgresql
@pytest.mark.parametrize("after", ["INSERT", "SELECT scheduled_tasks.task_id"])
def test_id_of_a_row_that_vanishes_meanwhile_is_free(
    store: Backend, engine: Engine, after: str
) -> None:
    task_id = str(uuid4())
    with engine.begin() as connection:
        enqueue(connection, "other", NOON, task_id=task_id)
    vanished = False

    def delete(*arguments: Any) -> None:
        nonlocal vanished
        if arguments[2].startswith(after) and not vanished:
            vanished = True
            store.sql("DELETE FROM scheduled_tasks")

    event.listen(engine, "after_cursor_execute", delete)
    with engine.begin() as connection:
        assert enqueue(connection, "probe", task_id=task_id) == task_id
    assert vanished
    assert store.row(task_id)["name"] == "probe"


@only_postgresql
def test_two_transactions_at_once_make_one_task(store: Backend, engine: Engine) -> None:
    task_id = str(uuid4())
    with ThreadPoolExecutor() as threads, engine.begin() as connection:
        enqueue(connection, "probe", task_id=task_id)

        def second() -> str:
            with engine.begin() as other:
                return enqueue(other, "probe", task_id=task_id)

        waiting = threads.submit(second)
        wait_until(
            lambda: store.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        )
        connection.commit()
        assert waiting.result() == task_id
    assert store.count() == 1


# ------------------------------------------------------------------- the notification


def test_notification_is_asked_for_on_postgresql_alone(store: Backend, engine: Engine) -> None:
    for notify in (True, False):
        with statements(engine) as sent, engine.begin() as connection:
            enqueue(connection, "probe", notify=notify)
        asked = any("pg_notify" in statement for statement in sent)
        assert asked == (notify and store.dialect == "postgresql")


@only_postgresql
@pytest.mark.parametrize(
    ("seconds", "notified"), [(None, True), (-60, True), (1, True), (3, False), (3600, False)]
)
def test_only_what_is_due_soon_is_announced(
    engine: Engine, seconds: float | None, notified: bool
) -> None:
    run_at = None if seconds is None else SystemClock().now() + timedelta(seconds=seconds)
    with engine.connect() as listener:
        listener = listener.execution_options(isolation_level="AUTOCOMMIT")
        listener.exec_driver_sql("LISTEN job_scheduler")
        with engine.begin() as connection:
            enqueue(connection, "probe", run_at)
        listener.exec_driver_sql("SELECT 1")
        driver: Any = listener.connection.dbapi_connection
        assert len(driver.notifies) == notified


@only_postgresql
def test_notification_starts_a_task_long_before_the_sweep_would(
    store: Backend, engine: Engine
) -> None:
    async def scenario() -> None:
        begun: list[str] = []
        both = asyncio.Event()

        async def run(task: DueTask, _place: Place) -> None:
            begun.append(task.task_id)
            if len(begun) == 2:
                both.set()

        lane = Lane(10)
        dispatcher = Dispatcher(run, lambda _: lane, 10, lambda: None)
        scheduler = AsyncIOScheduler()
        timer = Timer(scheduler, SystemClock(), SystemClock(), dispatcher.offer)
        with store.database() as database:
            sweep = Sweep(database, timer, dispatcher, SystemClock(), interval=3600)
            listening = asyncio.Event()

            def wake() -> None:
                sweep.wake()
                listening.set()

            wakeups = Wakeups(build_engine(make_url(store.db_url), pool_size=1), wake)
            timer.start()
            looping = asyncio.ensure_future(sweep.run())
            wakeups.start()
            await listening.wait()
            await asyncio.sleep(0.3)  # the sweeps of the start are over

            def insert(**options: Any) -> str:
                with Session(engine) as session, session.begin():
                    return enqueue(session, "probe", **options)

            def roll_back() -> None:
                with Session(engine) as session:
                    enqueue(session, "probe")

            await asyncio.to_thread(roll_back)
            silent = await asyncio.to_thread(insert, notify=False)
            await asyncio.sleep(0.3)
            assert begun == []
            announced = await asyncio.to_thread(insert)
            await asyncio.wait_for(both.wait(), 1)
            assert begun == [silent, announced]
            looping.cancel()
            timer.stop()
            wakeups.stop()

    asyncio.run(scenario())


# ------------------------------------------------------------------------ the import


def test_importing_the_client_is_light() -> None:
    heavy = ("fastapi", "starlette", "uvicorn", "apscheduler", "redis", "psycopg2", "alembic")
    code = (
        "import sys, threading, job_scheduler.client\n"
        f"print([name for name in {heavy} if name in sys.modules], threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] 1\n"


# ------------------------------------------------------------------------------- keys


def test_key_of_another_task_is_met_as_it_is_asked_for(store: Backend, engine: Engine) -> None:
    with engine.begin() as connection:
        first = enqueue(connection, "probe", NOON, unique_key="one")
        for _ in range(2):
            assert enqueue(connection, "x", unique_key="one", on_conflict="return") == first
        with pytest.raises(UniqueKeyTaken):
            enqueue(connection, "x", unique_key="one")
        moved = enqueue(
            connection, "x", NOON + timedelta(days=1), unique_key="one", on_conflict="reschedule"
        )
        assert moved == first
        with pytest.raises(ValueError, match="on_conflict"):
            enqueue(connection, "x", unique_key="one", on_conflict="odd")
    row = store.row(first)
    assert (row["name"], row["run_at"]) == ("probe", NOON + timedelta(days=1))
    assert store.count() == 1
