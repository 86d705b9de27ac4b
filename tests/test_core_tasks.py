"""run_task: what is run, how often, when, and what is kept of it."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.clock import SystemClock
from job_scheduler.constants import InstanceState
from job_scheduler.core import claims
from job_scheduler.core.claims import Claim, ClaimRequest
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.locks import InProcessLock, TaskLock
from job_scheduler.core.outcomes import Failed, Succeeded, decide
from job_scheduler.core.records import Record, record
from job_scheduler.core.store import DueTask
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable
from job_scheduler.identifiers import new_token
from job_scheduler.redis_client import RedisTaskLock, build_redis
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    Bench,
    CountingLock,
    OpenLock,
    bench,
    finished,
    later,
    post,
    refused,
    running,
    services_of,
)
from tests.support.logs import logged
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def lock_of(backend: Backend) -> TaskLock:
    """The lock that the service would use."""
    if backend.redis_url is None:
        return InProcessLock()
    return RedisTaskLock(build_redis(backend.redis_url), SystemClock())


def run_once(backend: Backend, registry: HandlerRegistry, task_id: str) -> list[DueTask]:
    """Call `run_task` for one task and return what was put back."""

    async def scenario() -> list[DueTask]:
        async with bench(backend, registry, lock_of(backend)) as one:
            await one.runner.run_task(task_id)
            return one.put_back

    return asyncio.run(scenario())


# ----------------------------------------------------------------- what is run


def test_unknown_task_is_not_run_and_leaves_nothing(
    backend: Backend, registry: HandlerRegistry
) -> None:
    calls: list[str] = []
    registry.task("probe")(lambda: calls.append("called"))

    assert run_once(backend, registry, str(uuid4())) == []

    assert calls == []
    assert backend.count() == 0


def test_scheduled_task_is_run_and_done_with_its_result(
    backend: Backend, registry: HandlerRegistry
) -> None:
    seen: list[str] = []

    @registry.task("probe")
    async def probe(label: str) -> dict[str, str]:
        seen.append(backend.row(task_id)["status"])
        return {"hello": label}

    task_id = backend.insert_task(run_at=later(-1), payload='{"label": "Ada"}')
    assert run_once(backend, registry, task_id) == []

    row = backend.row(task_id)
    assert seen == ["running"]
    assert (row["status"], row["result"], row["attempt"]) == ("done", {"hello": "Ada"}, 1)
    assert row["run_at"] <= row["started_at"] <= row["finished_at"]
    assert row["instance_id"] is not None


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "running"},
        {"status": "done", "result": '"first"'},
        {"status": "failed", "result": '"first"'},
        {"missed_at": later(-1)},
    ],
    ids=["running", "done", "failed", "missed"],
)
def test_task_that_is_not_scheduled_is_not_run(
    store: Backend, registry: HandlerRegistry, columns: dict[str, str]
) -> None:
    calls: list[str] = []
    registry.task("probe")(lambda: calls.append("called"))
    task_id = store.insert_task(run_at=later(-1), **columns)
    before = store.row(task_id)

    assert run_once(store, registry, task_id) == []

    assert calls == []
    assert store.row(task_id) == before


def test_task_is_not_run_before_its_time(store: Backend, registry: HandlerRegistry) -> None:
    task_id = store.insert_task(run_at=later(0.5))

    [put_back] = run_once(store, registry, task_id)

    row = store.row(task_id)
    assert (put_back.task_id, put_back.due, put_back.name) == (task_id, row["run_at"], "probe")
    assert (row["status"], row["attempt"]) == ("scheduled", 0)


def test_retry_time_counts_instead_of_run_at(store: Backend, registry: HandlerRegistry) -> None:
    task_id = store.insert_task(run_at=later(-60), retry_at=later(60))

    [put_back] = run_once(store, registry, task_id)

    assert put_back.due == store.row(task_id)["retry_at"]
    assert store.row(task_id)["status"] == "scheduled"


@pytest.mark.parametrize("state", [InstanceState.Starting, InstanceState.Dead])
def test_instance_that_is_not_alive_claims_nothing(
    store: Backend, registry: HandlerRegistry, state: InstanceState
) -> None:
    task_id = store.insert_task(run_at=later(-1))

    async def scenario() -> list[DueTask]:
        async with bench(store, registry, state=state) as one:
            await one.runner.run_task(task_id)
            return one.put_back

    assert [task.task_id for task in asyncio.run(scenario())] == [task_id]
    assert store.row(task_id)["status"] == "scheduled"


class ShiftedClock:
    """A wall clock that is wrong by some seconds."""

    error = timedelta()

    def __init__(self, seconds: float) -> None:
        self._shift = timedelta(seconds=seconds)

    def now(self) -> datetime:
        """Return a wrong time."""
        return datetime.now(UTC) + self._shift  # noqa: TID251 (a clock, too)


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_database_clock_decides_when_a_task_starts(
    store: Backend, registry: HandlerRegistry, shift: float
) -> None:
    with running(store, registry, clock=ShiftedClock(shift)) as client:
        task = post(client, run_at=later(0.8))
        ended = finished(client, task["task_id"])
    row = store.row(ended["task_id"])
    assert timedelta(0) <= row["started_at"] - row["run_at"] < timedelta(seconds=5)
    assert row["attempt"] == 1


# ------------------------------------------------------- what becomes of a run


class Unprintable(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Abort(BaseException):
    """An error that is no Exception."""


ERRORS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "exception": (lambda: ValueError("no such customer"), "ValueError: no such customer"),
    "no text": (KeyError, "KeyError"),
    "exit": (lambda: SystemExit(3), "SystemExit: 3"),
    "generator exit": (GeneratorExit, "GeneratorExit"),
    "own base": (lambda: Abort("stop"), "tests.test_core_tasks.Abort: stop"),
    "unprintable": (Unprintable, "tests.test_core_tasks.Unprintable: <exception str() failed>"),
    "surrogate": (lambda: ValueError("half \ud800"), "ValueError: half \N{REPLACEMENT CHARACTER}"),
    "NUL": (lambda: ValueError("a\0b"), "ValueError: a\0b"),
}


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("case", ERRORS)
def test_error_of_the_handler_fails_the_task(
    store: Backend,
    registry: HandlerRegistry,
    case: str,
    kind: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, text = ERRORS[case]

    def plain() -> None:
        raise make()

    async def on_the_loop() -> None:
        raise make()

    registry.task("probe")(plain if kind == "plain" else on_the_loop)
    task_id = store.insert_task(run_at=later(-1))
    run_once(store, registry, task_id)

    row = store.row(task_id)
    assert (row["status"], row["result"]) == ("failed", text)
    assert row["finished_at"] is not None
    log = capfd.readouterr().err
    assert f"task {task_id} (probe) failed" in log
    assert "Traceback" in log
    assert "raise make()" in log


def test_stop_iteration_of_a_plain_handler_fails_the_task(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe")(lambda: next(iter(())))
    task_id = store.insert_task(run_at=later(-1))
    run_once(store, registry, task_id)
    row = store.row(task_id)
    assert (row["status"], row["result"]) == ("failed", "StopIteration")


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_handler_that_cancels_itself_fails_the_task(
    store: Backend, registry: HandlerRegistry, kind: str
) -> None:
    def plain() -> None:
        raise asyncio.CancelledError

    async def on_the_loop() -> None:
        raise asyncio.CancelledError

    registry.task("probe")(plain if kind == "plain" else on_the_loop)
    task_id = store.insert_task(run_at=later(-1))
    run_once(store, registry, task_id)
    row = store.row(task_id)
    assert row["status"] == "failed"
    assert "ancelled" in row["result"]


def test_wrong_payload_fails_the_task_and_names_the_argument(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe")(lambda customer: customer)
    task_id = store.insert_task(run_at=later(-1), payload='{"client": 7}')
    run_once(store, registry, task_id)
    row = store.row(task_id)
    assert row["status"] == "failed"
    assert "client" in row["result"]


class Unshowable:
    """A value with neither a JSON form nor a repr."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


def nested(levels: int) -> list[Any]:
    """A list inside a list inside a list …"""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


RESULTS: dict[str, tuple[Callable[[], Any], Callable[[Any], bool]]] = {
    "nothing": (lambda: None, lambda kept: kept is None),
    "false": (lambda: False, lambda kept: kept is False),
    "text": (lambda: "done ✓ \0", lambda kept: kept == "done ✓ \0"),
    "large integer": (lambda: 2**200, lambda kept: kept == 2**200),
    "integer of 10,000 digits": (lambda: 10**10_000, lambda kept: "unserializable" in kept),
    "members in order": (
        lambda: {"b": 1, "a": [1.5, None, {"c": True}]},
        lambda kept: str(kept) == "{'b': 1, 'a': [1.5, None, {'c': True}]}",
    ),
    "date": (lambda: datetime(2027, 7, 1, tzinfo=UTC), lambda kept: kept == "2027-07-01T00:00:00Z"),
    "NaN": (lambda: {"x": float("nan")}, lambda kept: kept == {"x": "NaN"}),
    "infinity": (lambda: [float("-inf")], lambda kept: kept == ["-Infinity"]),
    "surrogate": (lambda: ["half \udc00"], lambda kept: kept == ["half \N{REPLACEMENT CHARACTER}"]),
    "surrogate in a key": (lambda: {"\udc00": 1}, lambda kept: "unserializable" in kept),
    "object": (object, lambda kept: kept["unserializable"].startswith("<object object")),
    "no repr": (Unshowable, lambda kept: "Unshowable" in kept["unserializable"]),
    "deep": (lambda: nested(500), lambda kept: kept["unserializable"].startswith("[[[")),
    "very deep": (lambda: nested(20_000), lambda kept: "list" in kept["unserializable"]),
    "two megabytes": (
        lambda: "x" * 2_000_000,
        lambda kept: kept["truncated"] and kept["bytes"] == 2_000_002,
    ),
}


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("case", RESULTS)
def test_result_is_kept_as_json(
    store: Backend, registry: HandlerRegistry, case: str, kind: str
) -> None:
    make, is_kept = RESULTS[case]

    async def on_the_loop() -> Any:
        return make()

    registry.task("probe")(make if kind == "plain" else on_the_loop)
    task_id = store.insert_task(run_at=later(-1))
    run_once(store, registry, task_id)
    row = store.row(task_id)
    assert row["status"] == "done", row["result"]
    assert is_kept(row["result"]), row["result"]


def test_results_of_every_kind_are_shown(store: Backend, registry: HandlerRegistry) -> None:
    for case, (make, _) in RESULTS.items():
        registry.task(case)(make)
    with running(store, registry) as client:
        created = [post(client, name=case, run_at=later(0)) for case in RESULTS]
        statuses = {finished(client, task["task_id"])["status"] for task in created}
        assert statuses == {"done"}
        assert len(client.get("/tasks").json()) == len(RESULTS)


def test_bad_result_in_a_batch_spoils_no_other(store: Backend, registry: HandlerRegistry) -> None:
    @registry.task("good")
    async def good() -> str:
        return "fine"

    @registry.task("bad")
    async def bad() -> Any:
        return nested(5_000)

    names = ["good", "bad"] * 20
    tasks = [store.insert_task(name, run_at=later(-1)) for name in names]

    async def scenario() -> None:
        async with bench(store, registry) as one:
            await asyncio.gather(*(one.runner.run_task(task_id) for task_id in tasks))

    asyncio.run(scenario())
    rows = [store.row(task_id) for task_id in tasks]
    assert {row["status"] for row in rows} == {"done"}
    assert Counter(row["result"] == "fine" for row in rows) == {True: 20, False: 20}


# ----------------------------------------------------------------- exactly once


def test_lock_held_by_another_keeps_a_task_from_being_claimed(
    backend: Backend, registry: HandlerRegistry
) -> None:
    task_id = backend.insert_task(run_at=later(-1))
    lock = lock_of(backend)
    another = lock_of(backend) if backend.redis_url else lock

    async def scenario() -> None:
        owner = new_token()
        assert await another.acquire(task_id, owner)
        counting = CountingLock(lock)
        async with bench(backend, registry, counting) as one:
            await one.runner.run_task(task_id)
            assert (counting.granted, counting.refused) == (0, 1)
            assert backend.row(task_id)["status"] == "scheduled"
            another.release(task_id, owner)
            # On the same connection as the release, when there is one.
            assert await another.acquire(new_token(), owner)
            await one.runner.run_task(task_id)
            assert (counting.granted, counting.refused) == (1, 1)
        await another.close()

    asyncio.run(scenario())
    row = backend.row(task_id)
    assert (row["status"], row["attempt"]) == ("done", 1)


@pytest.mark.parametrize("locked", [True, False], ids=["with the lock", "with no lock at all"])
def test_two_runners_run_each_task_once(
    backend: Backend, registry: HandlerRegistry, locked: bool
) -> None:
    calls = 0
    number = 300

    @registry.task("probe")
    async def probe() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)

    backend.insert_tasks(number, run_at=later(-1))
    task_ids = [str(row["task_id"]) for row in backend.sql("SELECT task_id FROM scheduled_tasks")]
    shared = lock_of(backend)
    locks: list[TaskLock] = [OpenLock(), OpenLock()]
    if locked:
        locks = [shared, lock_of(backend) if backend.redis_url else shared]
    counted = [CountingLock(lock) for lock in locks]

    async def scenario() -> None:
        async with (
            bench(backend, registry, counted[0]) as one,
            bench(backend, registry, counted[1]) as other,
        ):
            runs = [each.runner.run_task(task_id) for task_id in task_ids for each in (one, other)]
            await asyncio.gather(*runs)

    asyncio.run(scenario())
    assert calls == number
    assert backend.count("status = 'done' AND attempt = 1") == number
    granted = sum(lock.granted for lock in counted)
    refused = sum(lock.refused for lock in counted)
    assert (granted, refused) == ((number, number) if locked else (2 * number, 0))


@pytest.mark.parametrize("holds_lease", [True, False], ids=["ended", "given back"])
def test_lock_in_redis_outlives_the_run_until_the_task_is_to_be_had_again(
    backend: Backend, registry: HandlerRegistry, holds_lease: bool
) -> None:
    registry.task("probe")(lambda: None)
    task_id = backend.insert_task(run_at=later(-1))
    lock = lock_of(backend)
    other = lock_of(backend) if backend.redis_url else lock

    async def scenario() -> None:
        async with bench(backend, registry, lock, holds_lease=lambda _: holds_lease) as one:
            await one.runner.run_task(task_id)
        # Who comes late is kept from the database; who is to run it again is let through.
        is_kept = backend.redis_url is not None and holds_lease
        assert await other.acquire(task_id, new_token()) is not is_kept
        await other.close()

    asyncio.run(scenario())
    assert backend.row(task_id)["status"] == ("done" if holds_lease else "scheduled")


def test_runner_with_no_lock_started_twice_for_a_task_runs_it_once(
    store: Backend, registry: HandlerRegistry
) -> None:
    calls = 0

    @registry.task("probe")
    async def probe() -> None:
        nonlocal calls
        calls += 1

    task_id = store.insert_task(run_at=later(-1))

    async def scenario() -> None:
        async with bench(store, registry, OpenLock()) as one:
            await asyncio.gather(one.runner.run_task(task_id), one.runner.run_task(task_id))

    asyncio.run(scenario())
    assert calls == 1
    assert store.row(task_id)["attempt"] == 1


@pytest.mark.parametrize("lock", [None, OpenLock], ids=["with the lock", "with no lock at all"])
def test_two_services_run_each_task_once(
    backend: Backend, registry: HandlerRegistry, lock: type[OpenLock] | None
) -> None:
    number = 400
    calls = 0

    @registry.task("probe")
    async def probe() -> None:
        nonlocal calls
        with counter:
            calls += 1

    counter = threading.Lock()
    locks: list[dict[str, Any]] = [{"lock": lock()} if lock else {} for _ in range(2)]
    with (
        running(backend, registry, **locks[0]) as one,
        running(backend, registry, **locks[1]) as other,
    ):
        assert {one.get("/health").status_code, other.get("/health").status_code} == {200}
        backend.insert_tasks(number, run_at=later(1.2))
        wait_until(lambda: backend.count("status = 'done'") == number, 30, "the end of all")
        instances = backend.sql("SELECT DISTINCT instance_id FROM scheduled_tasks")
    assert calls == number
    assert backend.count("attempt = 1") == number
    assert len(instances) >= 1


def test_tasks_around_the_lookahead_all_run_once(store: Backend, registry: HandlerRegistry) -> None:
    calls: Counter[str] = Counter()

    @registry.task("probe")
    async def probe(label: str) -> None:
        calls[label] += 1

    posted = {
        f"posted {ahead}": ahead for ahead in (0.0, 0.05, 1, 4.95, 4.99, 5, 5.01, 5.05, 6, 6.5)
    }
    inserted = {f"inserted {ahead}": ahead for ahead in (0.0, 2.0, 8.0)}
    with running(store, registry) as client:
        for label, ahead in inserted.items():
            store.insert_task(run_at=later(ahead), payload=f'{{"label": "{label}"}}')
        for label, ahead in posted.items():
            post(client, run_at=later(ahead), payload={"label": label})
        number = len(posted) + len(inserted)
        wait_until(lambda: store.count("status = 'done'") == number, 20, "the end of all")
        rows = client.get("/tasks").json()
    assert calls == dict.fromkeys([*posted, *inserted], 1)
    for row in rows:
        late = datetime.fromisoformat(row["started_at"]) - datetime.fromisoformat(row["run_at"])
        assert timedelta(0) <= late < timedelta(seconds=5), row
        assert row["attempt"] == 1


@pytest.mark.slow
def test_thousands_of_tasks_due_at_one_instant_all_run_once(
    store: Backend, registry: HandlerRegistry
) -> None:
    number = 10_000 if store.dialect == "postgresql" else 2_000
    calls = 0

    @registry.task("probe")
    async def probe() -> None:
        nonlocal calls
        calls += 1

    with running(store, registry):
        store.insert_tasks(number, run_at=later(2))
        wait_until(lambda: store.count("status = 'done'") == number, 90, "the end of all")
    assert calls == number
    assert store.count("attempt = 1 AND started_at >= run_at") == number


# --------------------------------------------------------------------- capacity


def test_no_more_tasks_are_claimed_than_there_are_threads(
    store: Backend, registry: HandlerRegistry
) -> None:
    gate, counter = threading.Event(), threading.Lock()
    now = peak = 0

    @registry.task("plain")
    def plain() -> None:
        nonlocal now, peak
        with counter:
            now += 1
            peak = max(peak, now)
        assert gate.wait(30)
        with counter:
            now -= 1

    @registry.task("quick")
    async def quick() -> str:
        return "not held up"

    try:
        with running(store, registry, threads=2) as client:
            store.insert_tasks(12, "plain", run_at=later(-1))
            wait_until(lambda: now == 2)
            # Async tasks are not held up, and while they run no third one is claimed.
            for _ in range(5):
                ended = finished(client, post(client, name="quick", run_at=later(0))["task_id"])
                assert ended["result"] == "not held up"
                assert store.count("name = 'plain' AND status = 'running'") == 2
            assert client.get("/health").json()["scheduler"]["running"] == 2
            gate.set()
            wait_until(lambda: store.count("name = 'plain' AND status = 'done'") == 12)
    finally:
        gate.set()
    assert peak == 2


def test_no_more_tasks_are_claimed_than_may_run(store: Backend, registry: HandlerRegistry) -> None:
    gate = asyncio.Event()
    now = peak = 0

    @registry.task("probe")
    async def probe() -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await gate.wait()
        now -= 1

    with running(store, registry, max_running=3) as client:
        store.insert_tasks(10, run_at=later(-1))
        wait_until(lambda: now == 3)
        wait_until(lambda: client.get("/health").json()["scheduler"]["queued"] == 7)
        assert store.count("status = 'running'") == 3
        assert client.portal is not None
        client.portal.call(gate.set)
        wait_until(lambda: store.count("status = 'done'") == 10)
    assert peak == 3


# --------------------------------------------------- the statements themselves


def write(one: Bench, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call one of the statements' functions in a transaction."""
    with one.database.writing() as connection:
        return work(connection, *arguments, **options)


def on_bench(
    store: Backend,
    registry: HandlerRegistry,
    scenario: Callable[[Bench], Coroutine[Any, Any, None]],
) -> None:
    """Run a scenario with a bench."""

    async def run() -> None:
        async with bench(store, registry) as one:
            await scenario(one)

    asyncio.run(run())


def test_repeated_claim_finds_what_the_first_one_achieved(
    store: Backend, registry: HandlerRegistry
) -> None:
    task_id = store.insert_task(run_at=later(-1))
    request = ClaimRequest(task_id, new_token())
    stranger = ClaimRequest(task_id, new_token())

    async def scenario(one: Bench) -> None:
        [first] = write(one, claims.claim, one.instance_id, [request])
        [again] = write(one, claims.claim, one.instance_id, [request], repeated=True)
        [nothing] = write(one, claims.claim, one.instance_id, [stranger], repeated=True)
        assert isinstance(first, Claim)
        assert (again, nothing) == (first, None)
        assert first.attempt == 1

    on_bench(store, registry, scenario)


@only_postgresql
def test_repeated_claim_waits_for_the_first_one_and_finds_it(
    store: Backend, registry: HandlerRegistry
) -> None:
    task_id = store.insert_task(run_at=later(-1))
    request = ClaimRequest(task_id, new_token())

    async def scenario(one: Bench) -> None:
        with one.database.writing() as connection:
            [first] = claims.claim(connection, one.instance_id, [request])
            repetition = asyncio.ensure_future(
                one.database.write(claims.claim, one.instance_id, [request], repeated=True)
            )
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
            await asyncio.to_thread(
                wait_until,
                lambda: store.sql(f"{waiting} AND datname = current_database()")[0]["count"],
            )
        assert await repetition == [first]

    on_bench(store, registry, scenario)


def test_task_whose_claim_was_refused_runs_when_the_obstacle_is_gone(
    backend: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe")(lambda: None)
    with running(backend, registry) as client, logged() as log:
        with refused(backend, "NEW.status = 'running'"):
            task_id = backend.insert_task(run_at=later(-1))
            wait_until(lambda: log.count("broke off"))
            assert backend.row(task_id)["status"] == "scheduled"
        assert finished(client, task_id)["status"] == "done"


def test_result_is_only_recorded_under_the_claims_own_token(
    store: Backend, registry: HandlerRegistry
) -> None:
    task_id = store.insert_task(run_at=later(-1))
    token = new_token()

    async def scenario(one: Bench) -> None:
        [mine] = write(one, claims.claim, one.instance_id, [ClaimRequest(task_id, token)])
        assert isinstance(mine, Claim)
        right = Record(mine, decide(Succeeded("right"), 1, 1, None))
        stale = Record(replace(mine, token=new_token()), decide(Failed("wrong"), 1, 1, None))
        assert write(one, record, [stale]) == [False]
        assert store.row(task_id)["status"] == "running"
        assert write(one, record, [stale, right]) == [False, True]
        ended = store.row(task_id)
        # A repetition after an unknown outcome: it had happened.
        assert write(one, record, [right]) == [True]
        assert write(one, record, [stale]) == [False]
        assert store.row(task_id) == ended
        assert (ended["status"], ended["result"]) == ("done", "right")
        entries = store.sql("SELECT outcome FROM task_runs ORDER BY outcome")
        assert [entry["outcome"] for entry in entries] == ["done", "lost"]

    on_bench(store, registry, scenario)


def test_result_of_a_lost_claim_is_kept_in_the_history_alone(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    @registry.task("probe")
    async def probe() -> str:
        store.sql("UPDATE scheduled_tasks SET status = 'failed', claim_token = :t", t=new_token())
        return "too late"

    task_id = store.insert_task(run_at=later(-1))
    run_once(store, registry, task_id)
    row = store.row(task_id)
    assert (row["status"], row["result"]) == ("failed", None)
    assert f"task {task_id}: this run's claim was lost" in capfd.readouterr().err


@only_postgresql
def test_task_whose_row_is_locked_is_put_back_and_runs_later(
    store: Backend, registry: HandlerRegistry
) -> None:
    task_id = store.insert_task(run_at=later(-1))
    with store.database() as database, database.writing() as connection:
        connection.exec_driver_sql("SELECT 1 FROM scheduled_tasks FOR UPDATE")
        assert [task.task_id for task in run_once(store, registry, task_id)] == [task_id]
        with running(store, registry) as client:
            wait_until(lambda: services_of(client).sweep.last_at)
            quick = post(client, run_at=later(0))
            finished(client, quick["task_id"])
            assert store.row(task_id)["status"] == "scheduled"
            connection.rollback()
            ended = finished(client, task_id)
    assert (ended["status"], ended["attempt"]) == ("done", 1)


# --------------------------------------------------------- the database is away


@contextmanager
def commits_break(engine: Engine, statement: str, *, after: bool) -> Iterator[list[str]]:
    """Let the next commit of a `statement` break off, before or after it has taken effect."""
    broken: list[str] = []
    doomed: set[int] = set()

    def note(connection: Connection, _cursor: Any, text: str, *_: Any) -> None:
        if statement in text and not broken:
            doomed.add(id(connection))

    def break_off(connection: Connection) -> None:
        if id(connection) in doomed and not broken:
            broken.append(statement)
            raw = connection.connection.dbapi_connection
            assert raw is not None
            if after:
                raw.commit()
            else:
                raw.rollback()
            raise OperationalError("COMMIT", {}, OSError("the connection is gone"))

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", break_off)
    try:
        yield broken
    finally:
        event.remove(engine, "before_cursor_execute", note)
        event.remove(engine, "commit", break_off)


@pytest.mark.parametrize("after", [True, False], ids=["it had happened", "it had not happened"])
@pytest.mark.parametrize("statement", ["status = 'running',", "status = standing.becomes"])
def test_commit_of_unknown_outcome_neither_repeats_nor_loses_a_run(
    store: Backend, registry: HandlerRegistry, statement: str, after: bool
) -> None:
    calls: Counter[str] = Counter()

    @registry.task("probe")
    async def probe(label: str) -> str:
        calls[label] += 1
        return label

    labels = [str(number) for number in range(20)]
    task_ids = [
        store.insert_task(run_at=later(-1), payload=f'{{"label": "{label}"}}') for label in labels
    ]

    async def scenario(one: Bench) -> None:
        with commits_break(one.database.engine, statement, after=after) as broken:
            runs = asyncio.gather(*(one.runner.run_task(task_id) for task_id in task_ids))
            await asyncio.wait_for(runs, 30)
        assert broken == [statement]
        assert one.put_back == []

    on_bench(store, registry, scenario)
    assert calls == dict.fromkeys(labels, 1)
    for label, task_id in zip(labels, task_ids, strict=True):
        row = store.row(task_id)
        assert (row["status"], row["result"], row["attempt"]) == ("done", label, 1)


def test_database_that_is_away_before_the_claim_leaves_the_task(
    store: Backend, registry: HandlerRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    task_id = store.insert_task(run_at=later(-1))

    async def scenario(one: Bench) -> None:
        def refuse(*_: Any) -> None:
            raise OperationalError("BEGIN", {}, OSError("no route to host"))

        event.listen(one.database.engine, "begin", refuse)
        await one.runner.run_task(task_id)
        event.remove(one.database.engine, "begin", refuse)
        assert one.put_back == []
        assert store.row(task_id)["status"] == "scheduled"
        await one.runner.run_task(task_id)

    on_bench(store, registry, scenario)
    assert store.row(task_id)["status"] == "done"
    assert f"task {task_id} cannot be claimed: the database is away" in capfd.readouterr().err


@contextmanager
def service_behind_proxy(
    store: Backend, registry: HandlerRegistry
) -> Iterator[tuple[TestClient, Proxy]]:
    """A service that reaches the database through a proxy."""
    with (
        Proxy.before(store.db_url) as proxy,
        running(Backend(proxy.url_for(store.db_url)), registry) as client,
    ):
        try:
            yield client, proxy
        finally:
            proxy.heal()


@only_postgresql
@pytest.mark.parametrize("trouble", ["cut", "stall"])
def test_tasks_due_during_an_outage_of_the_database_run_when_it_is_back(
    store: Backend, registry: HandlerRegistry, trouble: str
) -> None:
    calls: Counter[str] = Counter()

    @registry.task("probe")
    async def probe(label: str) -> None:
        calls[label] += 1

    with service_behind_proxy(store, registry) as (client, proxy):
        for number in range(20):
            post(client, run_at=later(0.3 + number / 20), payload={"label": str(number)})
        getattr(proxy, trouble)()
        store.insert_task(run_at=later(0.2), payload='{"label": "inserted"}')
        wait_until(lambda: client.get("/health").status_code == 503, 20, "the outage")
        assert store.count("status = 'done'") < 21
        proxy.heal()
        wait_until(lambda: store.count("status = 'done'") == 21, 20, "the end of all")
        wait_until(lambda: client.get("/health").status_code == 200)
    assert calls == dict.fromkeys([*map(str, range(20)), "inserted"], 1)
    assert store.count("attempt = 1") == 21


@only_postgresql
@pytest.mark.parametrize("trouble", ["cut", "stall"])
def test_results_wait_for_a_database_that_is_away(
    store: Backend, registry: HandlerRegistry, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()
    calls = 0

    @registry.task("probe")
    def probe() -> str:
        nonlocal calls
        calls += 1
        assert gate.wait(30)
        return "kept"

    try:
        with service_behind_proxy(store, registry) as (client, proxy):
            task = post(client, run_at=later(0))
            wait_until(lambda: calls == 1)
            getattr(proxy, trouble)()
            gate.set()
            wait_until(lambda: client.get("/health").status_code == 503, 20, "the outage")
            assert store.row(task["task_id"])["status"] == "running"
            proxy.heal()
            ended = finished(client, task["task_id"])
    finally:
        gate.set()
    assert (ended["status"], ended["result"], ended["attempt"]) == ("done", "kept", 1)
    assert calls == 1
    if trouble == "cut":
        assert "claims and results wait for it" in capfd.readouterr().err


def test_outcome_of_a_broken_commit_is_reported_as_unknown(store: Backend) -> None:
    with (
        store.database() as database,
        commits_break(database.engine, "DELETE", after=True),
        pytest.raises(CommitOutcomeUnknown) as caught,
        database.writing() as connection,
    ):
        connection.exec_driver_sql("DELETE FROM scheduled_tasks")
    assert isinstance(caught.value, DatabaseUnavailable)
