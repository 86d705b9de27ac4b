"""Failed runs: whether and when they are repeated, and tasks that are no longer worth starting."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from job_scheduler import Fail, RetryLater, RunContext
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.retry import Backoff
from job_scheduler.identifiers import new_token
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until

# ---------------------------------------------------------------------------- how long


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (1000, 10.0)]
)
def test_delay_is_doubled_up_to_its_limit_and_a_random_part_of_it_waited(
    attempt: int, longest: float
) -> None:
    backoff = Backoff(2.0, 10.0)
    assert backoff.seconds_after(attempt, 1.0) == longest
    assert backoff.seconds_after(attempt, 0.25) == longest / 4
    assert backoff.seconds_after(attempt, 0.0) == 0


def test_list_of_delays_is_followed_and_its_last_one_repeated() -> None:
    backoff = Backoff([1, 30.5], max_delay=2)
    assert [backoff.seconds_after(attempt, 0.1) for attempt in (1, 2, 3, 9)] == [
        1,
        30.5,
        30.5,
        30.5,
    ]


# ------------------------------------------------------------------------------ whether


@pytest.mark.parametrize("lane", ["plain", "async"])
def test_failed_run_is_repeated_until_it_succeeds(
    backend: Backend, registry: HandlerRegistry, lane: str
) -> None:
    def plain(context: RunContext) -> int:
        if context.attempt < 3:
            raise ValueError(f"not yet: {context.attempt}")
        return context.attempt

    async def asynchronous(context: RunContext) -> int:
        return plain(context)

    registry.task("probe")(plain if lane == "plain" else asynchronous)
    with running(backend, registry) as client:
        task = post(client, run_at=later(0), max_attempts=5, retry_delay=[0.3, 0.6])
        ended = finished(client, task["task_id"])
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()
    assert (ended["status"], ended["result"], ended["attempt"]) == ("done", 3, 3)
    assert [(run["attempt"], run["outcome"], run["result"]) for run in runs] == [
        (1, "failed", "ValueError: not yet: 1"),
        (2, "failed", "ValueError: not yet: 2"),
        (3, "done", 3),
    ]
    # The next attempt is due so long after the end of the last one, and never starts earlier.
    for before, after, delay in zip(runs, runs[1:], (0.3, 0.6), strict=False):
        due = datetime.fromisoformat(after["scheduled_for"])
        ended_at = datetime.fromisoformat(before["finished_at"])
        # SQLite counts in milliseconds, and writes the two by two statements.
        waited = (due - ended_at).total_seconds()
        assert delay - 0.002 < waited < delay + 1
        assert datetime.fromisoformat(after["started_at"]) >= due
    assert ended["run_at"] == task["run_at"]  # the user's time stays


def test_waiting_task_says_when_it_is_tried_again(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe", max_attempts=3, retry_delay=1000, retry_max_delay=500)
    def probe() -> None:
        raise ValueError

    with running(store, registry) as client:
        task = post(client, run_at=later(0))
        shown = f"/tasks/{task['task_id']}"
        wait_until(lambda: client.get(shown).json()["retry_at"])
        waiting = client.get(shown).json()
    assert (waiting["status"], waiting["attempt"], waiting["max_attempts"]) == ("scheduled", 1, 3)
    assert (waiting["result"], waiting["started_at"], waiting["finished_at"]) == (None, None, None)
    until = datetime.fromisoformat(waiting["retry_at"]) - datetime.now(UTC)  # noqa: TID251
    assert until <= timedelta(seconds=500)


class Permanent(Exception):
    """What no repetition mends."""


def raising(error: Callable[[], BaseException]) -> Callable[[], None]:
    """A handler that raises."""

    def probe() -> None:
        raise error()

    return probe


@pytest.mark.parametrize(
    ("error", "attempts", "result"),
    [
        (lambda: ValueError("why"), 2, "ValueError: why"),
        (lambda: Fail("the account is closed"), 1, "the account is closed"),
        (lambda: Permanent("gone"), 1, "tests.test_retries.Permanent: gone"),
        (lambda: RetryLater(0, "busy"), 2, "busy"),
        (lambda: RetryLater(timedelta(seconds=0.1)), 2, "the handler asked for a retry"),
    ],
)
def test_handler_decides_what_follows_on_its_failure(
    store: Backend,
    registry: HandlerRegistry,
    error: Callable[[], BaseException],
    attempts: int,
    result: str,
) -> None:
    register = registry.task("probe", max_attempts=2, retry_delay=[0], no_retry_for=[Permanent])
    register(raising(error))
    with running(store, registry) as client:
        task = post(client, run_at=later(0))
        ended = finished(client, task["task_id"])
        assert len(client.get(f"/tasks/{task['task_id']}/runs").json()) == attempts
    assert (ended["status"], ended["attempt"], ended["result"]) == ("failed", attempts, result)


@pytest.mark.parametrize("after", [-1, 1e9, timedelta(days=400)])
def test_retry_beyond_all_reason_is_refused(after: Any) -> None:
    with pytest.raises(ValueError, match="after must be from 0 to 31622400 seconds"):
        RetryLater(after)


# ------------------------------------------------------------------ whose choice it is


def test_task_says_so_itself_or_leaves_it_to_its_handler(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe", max_attempts=7)(lambda: None)
    with running(store, registry) as client:
        assert post(client)["max_attempts"] == 7
        assert post(client, max_attempts=2)["max_attempts"] == 2
        assert post(client, name="unknown")["max_attempts"] == 1
        batch = {"tasks": [task_body(), task_body(max_attempts=3, retry_delay=1.5)]}
        created = client.post("/tasks/batch", json=batch).json()
        assert [task["max_attempts"] for task in created] == [7, 3]
        assert [task["retry_delay"] for task in created] == [None, 1.5]
        [shown] = [each for each in client.get("/handlers").json() if each["name"] == "probe"]
    assert (shown["max_attempts"], shown["retry_delay"], shown["retry_max_delay"]) == (7, 5, 3600)


def test_repeated_request_is_the_same_though_the_handlers_defaults_have_changed(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe", max_attempts=7)(lambda: None)
    body = task_body(retry_delay=[1, 2.5], retry_max_delay=60, start_before=later(7200))
    key = {"Idempotency-Key": "one"}
    with running(store, registry) as client:
        first = client.post("/tasks", json=body, headers=key).json()
    changed = HandlerRegistry()
    changed.task("probe", max_attempts=9)(lambda: None)
    with running(store, changed) as client:
        again = client.post("/tasks", json=body, headers=key)
        assert (again.status_code, again.json()) == (201, first)
        for other in (
            {"max_attempts": 9},
            {"retry_delay": [1]},
            {"retry_max_delay": 61},
            {"start_before": later(7300)},
        ):
            response = client.post("/tasks", json=body | other, headers=key)
            assert_problem(response, 422, "IDEMPOTENCY_422")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"retry_delay": -1}, "retry_delay"),
        ({"retry_delay": "5"}, "retry_delay"),
        ({"retry_delay": []}, "retry_delay"),
        ({"retry_delay": [1, True]}, "retry_delay"),
        ({"retry_delay": 1e9}, "retry_delay"),
        ({"retry_max_delay": -0.5}, "retry_max_delay"),
        ({"start_before": later(-60)}, "start_before"),
        ({"start_before": 7}, "start_before"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    store: Backend, members: dict[str, Any], field: str
) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(**members))
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert {fault["field"].split(".")[0] for fault in problem["errors"]} == {field}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_attempts": 0}, "max_attempts: "),
        ({"retry_delay": "soon"}, "retry_delay: "),
        ({"retry_max_delay": -1}, "retry_max_delay: "),
        ({"no_retry_for": ["ValueError"]}, "no_retry_for: 'ValueError' is no type of exception"),
    ],
)
def test_option_of_a_handler_that_cannot_be_used_is_refused(
    registry: HandlerRegistry, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.task("probe", **options)


def test_delays_that_were_written_by_hand_and_make_no_sense_do_no_harm(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("probe", retry_delay=[0])(raising(ValueError))
    with running(store, registry) as client:
        task_id = store.insert_task(run_at=later(-1), max_attempts=2, retry_delay='["soon"]')
        ended = finished(client, task_id)
    assert (ended["status"], ended["attempt"]) == ("failed", 2)


# ------------------------------------------------------------------- not worth starting


def test_task_that_could_not_be_started_in_time_is_expired(
    backend: Backend, registry: HandlerRegistry
) -> None:
    calls = []
    registry.task("probe", max_attempts=3)(lambda: calls.append(1))
    expired = backend.insert_task(run_at=later(-60), start_before=later(-30))
    timer = backend.insert_task("unknown", run_at=later(-60), start_before=later(-30))
    in_time = backend.insert_task(run_at=later(-60), start_before=later(60))
    with running(backend, registry) as client:
        ended = finished(client, expired)
        assert finished(client, in_time)["status"] == "done"
        assert finished(client, timer)["result"].startswith("expired: ")
        runs = client.get(f"/tasks/{expired}/runs").json()
    assert (ended["status"], ended["attempt"], ended["started_at"]) == ("failed", 0, None)
    assert ended["finished_at"] is not None
    assert ended["result"].startswith("expired: it was to be started before 2")
    assert runs == []
    assert calls == [1]


def test_repetition_that_comes_too_late_is_not_started(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe", max_attempts=9, retry_delay=[1.0])
    async def probe() -> None:
        await asyncio.sleep(0)
        raise ValueError("why")

    with running(store, registry) as client:
        task = post(client, run_at=later(0), start_before=later(0.5))
        ended = finished(client, task["task_id"])
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()
    assert (ended["status"], ended["attempt"]) == ("failed", 1)
    assert ended["result"].startswith("expired: ")
    assert [run["result"] for run in runs] == ["ValueError: why"]


# ----------------------------------------------------------------------------- in its time


TIMED_OUT = "timed out: it had not ended after {} s"


def test_async_handler_is_cancelled_when_its_time_is_over(
    backend: Backend, registry: HandlerRegistry
) -> None:
    cancelled = []

    @registry.task("probe", timeout=0.2)
    async def probe(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(seconds)
            raise
        return "in time"

    with running(backend, registry) as client:
        late = post(client, run_at=later(0), payload={"seconds": 60})
        early = post(client, run_at=later(0), payload={"seconds": 0.01})
        longer = post(client, run_at=later(0), payload={"seconds": 0.4}, timeout=30)
        ended = finished(client, late["task_id"])
        assert finished(client, early["task_id"])["result"] == "in time"
        assert finished(client, longer["task_id"])["result"] == "in time"
        assert client.get("/health").json()["scheduler"]["lost"] == 0
    assert (ended["status"], ended["result"]) == ("failed", TIMED_OUT.format(0.2))
    assert cancelled == [60]


def test_run_that_has_timed_out_is_repeated_while_attempts_are_left(
    store: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe", timeout=0.1, max_attempts=2, retry_delay=[0])
    async def probe(context: RunContext) -> int:
        await asyncio.sleep(60 if context.attempt == 1 else 0)
        return context.attempt

    with running(store, registry) as client:
        task = post(client, run_at=later(0))
        assert finished(client, task["task_id"])["result"] == 2
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()
    assert [run["result"] for run in runs] == [TIMED_OUT.format(0.1), 2]


@pytest.mark.parametrize("lane", ["plain", "async"])
def test_handler_that_does_not_end_in_time_loses_its_place_until_it_does(
    backend: Backend, registry: HandlerRegistry, lane: str, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()
    stopped = []

    @registry.task("plain", timeout=0.1)
    def plain(context: RunContext) -> str:
        gate.wait(30)
        stopped.append(context.should_stop)
        return "too late"

    @registry.task("async", timeout=0.1)
    async def stubborn(context: RunContext) -> str:
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        stopped.append(context.should_stop)
        return "too late"

    @registry.task("next")
    def following() -> None: ...

    with running(backend, registry, threads=1, max_running=1) as client:

        def scheduler() -> dict[str, Any]:
            return dict(client.get("/health").json()["scheduler"])

        task = post(client, name=lane, run_at=later(0))
        ended = finished(client, task["task_id"])
        assert (ended["status"], ended["result"]) == ("failed", TIMED_OUT.format(0.1))
        assert (scheduler()["lost"], scheduler()["running"]) == (1, 0)
        waiting = post(client, name="next", run_at=later(0))
        wait_until(lambda: scheduler()["queued"] == 1)
        assert client.get(f"/tasks/{waiting['task_id']}").json()["status"] == "scheduled"
        gate.set()
        assert finished(client, waiting["task_id"])["status"] == "done"
        wait_until(lambda: scheduler()["lost"] == 0)
        # What came after the end is not heard.
        assert client.get(f"/tasks/{task['task_id']}").json() == ended
        assert len(client.get(f"/tasks/{task['task_id']}/runs").json()) == 1
    assert stopped == [True]
    assert "goes on: its place is lost until it ends" in capfd.readouterr().err


@pytest.mark.parametrize("timeout", [0, -1, True, "30", 1e9])
def test_time_that_cannot_be_meant_is_refused(
    store: Backend, registry: HandlerRegistry, timeout: Any
) -> None:
    with running(store) as client:
        assert_problem(
            client.post("/tasks", json=task_body(timeout=timeout)), 422, "VALIDATION_422"
        )
    with pytest.raises(ValueError, match="timeout: "):
        registry.task("probe", timeout=timeout)


# --------------------------------------------------------------------------- by a person


def test_failed_task_is_run_again_by_request(backend: Backend, registry: HandlerRegistry) -> None:
    broken = [True]

    @registry.task("probe")
    def probe(context: RunContext) -> int:
        if broken:
            raise ValueError("why")
        return context.attempt

    with running(backend, registry) as client:
        task = post(client, run_at=later(0))
        assert finished(client, task["task_id"])["status"] == "failed"
        broken.clear()
        again = client.post(f"/tasks/{task['task_id']}/retry")
        assert again.status_code == 200
        shown = again.json()
        assert (shown["status"], shown["attempt"], shown["result"]) == ("scheduled", 1, None)
        assert (shown["started_at"], shown["finished_at"]) == (None, None)
        ended = finished(client, task["task_id"])
        assert (ended["status"], ended["result"], ended["attempt"]) == ("done", 2, 2)
        runs = client.get(f"/tasks/{task['task_id']}/runs").json()
        assert [run["outcome"] for run in runs] == ["failed", "done"]
        # Late is reckoned from the request, not from the first time.
        assert runs[1]["scheduled_for"] == shown["retry_at"]


def test_lock_is_free_for_the_next_run_as_soon_as_one_has_failed(
    backend: Backend, registry: HandlerRegistry
) -> None:
    @registry.task("probe")
    async def probe() -> None:
        raise Fail("no")

    with running(backend, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        assert finished(client, task_id)["status"] == "failed"
        lock, portal = services_of(client).lock, client.portal
        assert portal is not None
        # By itself it would expire a second after the claim.
        wait_until(lambda: portal.call(lock.acquire, task_id, new_token()), 0.4)


@pytest.mark.parametrize("status", ["scheduled", "done", "failed", "unknown"])
def test_only_what_has_failed_or_is_unknown_can_be_run_again(store: Backend, status: str) -> None:
    task_id = store.insert_task(status=status, run_at=later(3600))
    with running(store) as client:
        answer = client.post(f"/tasks/{task_id}/retry")
        if status in ("failed", "unknown"):
            assert (answer.status_code, answer.json()["status"]) == (200, "scheduled")
            assert finished(client, task_id)["status"] == "done"
        else:
            problem = assert_problem(answer, 409, "TASK_RETRY_409")
            assert f"is {status}" in problem["detail"]
        missing = client.post("/tasks/01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61/retry")
        assert_problem(missing, 404, "TASK_404")


def test_call_that_no_thread_has_taken_up_in_its_time_is_given_back(
    store: Backend, registry: HandlerRegistry
) -> None:
    gate = threading.Event()
    called = []
    registry.task("blocking")(lambda: gate.wait(30))
    registry.task("probe", timeout=0.1)(lambda: called.append(1))
    blocking = [store.insert_task("blocking", run_at=later(-1)) for _ in range(16)]
    task_id = store.insert_task(run_at=later(-1))

    async def scenario() -> None:
        async with bench(store, registry) as one:
            runs = [asyncio.ensure_future(one.runner.run_task(each)) for each in blocking]
            await asyncio.to_thread(wait_until, lambda: store.count("status = 'running'") == 16)
            await one.runner.run_task(task_id)
            row = store.row(task_id)
            assert (row["status"], row["attempt"], called) == ("scheduled", 0, [])
            gate.set()
            await asyncio.gather(*runs)

    asyncio.run(scenario())
