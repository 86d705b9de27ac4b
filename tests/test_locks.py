"""The locks: one suite for both kinds, and what Redis adds: expiry and absence."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.clock import SystemClock
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.locks import InProcessLock, TaskLock
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from job_scheduler.redis_client import LOCK_MILLISECONDS, RedisTaskLock, build_redis
from tests.support.app import Backend, finished, later, post, running
from tests.support.services import RedisProcess, redis_client, wait_until


def redis_lock(url: str) -> RedisTaskLock:
    """A lock of one more instance."""
    return RedisTaskLock(build_redis(url), SystemClock())


def with_lock(redis_url: str | None, scenario: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a lock of the wanted kind."""

    async def run() -> None:
        lock: TaskLock = InProcessLock() if redis_url is None else redis_lock(redis_url)
        try:
            await scenario(lock)
        finally:
            await lock.close()

    asyncio.run(run())


def key_of(task_id: str) -> str:
    """Where Redis keeps the lock of a task."""
    return f"lock:task:{task_id}"


# --------------------------------------------------------------------- both kinds


def test_one_of_those_who_ask_gets_the_lock(redis_url: str | None) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_ids = [new_token() for _ in range(300)]
        tokens = [new_token() for _ in range(3)]
        answers = await asyncio.gather(
            *(lock.acquire(task_id, token) for task_id in task_ids for token in tokens)
        )
        assert list(answers) == [True, False, False] * len(task_ids)

    with_lock(redis_url, scenario)


def test_owner_that_asks_again_is_recognised(redis_url: str | None) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_id, token = new_token(), new_token()
        assert await lock.acquire(task_id, token)
        assert await lock.acquire(task_id, token)
        assert not await lock.acquire(task_id, new_token())

    with_lock(redis_url, scenario)


def test_released_lock_can_be_taken_by_another(redis_url: str | None) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_id, first, second = new_token(), new_token(), new_token()
        assert await lock.acquire(task_id, first)
        lock.release(task_id, first)
        assert await lock.acquire(task_id, second)
        assert not await lock.acquire(task_id, first)

    with_lock(redis_url, scenario)


def test_only_the_owner_releases_the_lock(redis_url: str | None) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_id, owner, stranger = new_token(), new_token(), new_token()
        assert await lock.acquire(task_id, owner)
        lock.release(task_id, stranger)
        lock.release(new_token(), owner)
        assert not await lock.acquire(task_id, stranger)
        assert await lock.acquire(task_id, owner)

    with_lock(redis_url, scenario)


def test_settled_lock_keeps_others_away_only_where_there_are_others(
    redis_url: str | None,
) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_id, owner = new_token(), new_token()
        assert await lock.acquire(task_id, owner)
        lock.settle(task_id, owner)
        assert await lock.acquire(task_id, new_token()) is (redis_url is None)

    with_lock(redis_url, scenario)


def test_lock_at_work_is_not_away(redis_url: str | None) -> None:
    async def scenario(lock: TaskLock) -> None:
        assert await lock.away_since() is None
        assert lock.backend == ("in-process" if redis_url is None else "redis")

    with_lock(redis_url, scenario)


# -------------------------------------------------------------------------- Redis


def test_lock_is_shared_and_its_last_releases_are_sent_before_it_closes(
    own_redis: RedisProcess,
) -> None:
    async def scenario() -> None:
        one, other = redis_lock(own_redis.url), redis_lock(own_redis.url)
        task_id, token = new_token(), new_token()
        assert await one.acquire(task_id, token)
        assert not await other.acquire(task_id, new_token())
        one.release(task_id, token)
        await one.close()
        assert await other.acquire(task_id, new_token())
        await other.close()

    asyncio.run(scenario())


def test_lock_expires_and_a_late_release_does_not_harm_the_next_owner(
    own_redis: RedisProcess,
) -> None:
    async def scenario(lock: TaskLock) -> None:
        task_id, first, second = new_token(), new_token(), new_token()
        with redis_client(own_redis.url) as client:
            assert await lock.acquire(task_id, first)
            left = client.pttl(key_of(task_id))
            assert 0 < left <= LOCK_MILLISECONDS
            assert LOCK_MILLISECONDS == 1_000
            client.pexpire(key_of(task_id), 1)
            wait_until(lambda: not client.exists(key_of(task_id)))
            assert await lock.acquire(task_id, second)
            lock.release(task_id, first)
            assert not await lock.acquire(task_id, first)
            assert client.get(key_of(task_id)) == second

    with_lock(own_redis.url, scenario)


@pytest.mark.parametrize("trouble", ["stop", "pause"])
def test_redis_that_is_away_lets_everyone_through_and_is_used_again_later(
    own_redis: RedisProcess, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")

    async def scenario(lock: TaskLock) -> None:
        loop = asyncio.get_running_loop()
        task_id, token = new_token(), new_token()
        assert await lock.acquire(task_id, token)
        getattr(own_redis, trouble)()
        begin = loop.time()
        for _ in range(50):
            assert await lock.acquire(task_id, new_token())
        # Redis is asked once a second, not by each of them (0.3 s).
        assert loop.time() - begin < 10
        away = await lock.away_since()
        assert away is not None
        lock.release(task_id, token)
        assert await lock.away_since() == away
        own_redis.start() if trouble == "stop" else own_redis.resume()
        for _ in range(1_000):
            if await lock.away_since() is None:
                break
            await asyncio.sleep(0.01)
        owner = new_token()
        assert await lock.acquire(new_token(), owner)
        other = new_token()
        assert await lock.acquire(other, owner)
        assert not await lock.acquire(other, token)

    with_lock(own_redis.url, scenario)
    log = capfd.readouterr().err
    assert log.count("Redis cannot be used") == 1
    assert log.count("Redis is back") == 1


def test_lost_reply_does_not_lock_the_owner_out(own_redis: RedisProcess) -> None:
    async def scenario() -> None:
        with Proxy.before(own_redis.url) as proxy:
            lock = redis_lock(proxy.url_for(own_redis.url))
            task_id, token = new_token(), new_token()
            # Its first SET arrived, and the reply to it did not.
            with redis_client(own_redis.url) as client:
                client.set(key_of(task_id), token, px=60_000)
            assert await lock.acquire(task_id, token)
            assert not await lock.acquire(task_id, new_token())
            proxy.cut()
            assert await lock.acquire(task_id, new_token())
            await lock.close()

    asyncio.run(scenario())


def test_calls_to_a_hung_redis_are_short(own_redis: RedisProcess) -> None:
    client = build_redis(own_redis.url)
    client.ping()
    own_redis.pause()
    attempts: list[float] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        attempts.append(loop.time() - begin)

    asyncio.run(scenario())
    own_redis.resume()
    client.close()
    assert attempts[0] < 5  # redis-py's own default would be a minute


def test_redis_that_cannot_keep_up_holds_nobody_up(own_redis: RedisProcess) -> None:
    async def scenario(lock: TaskLock) -> None:
        waiting = [asyncio.ensure_future(lock.acquire(new_token(), "me")) for _ in range(20_100)]
        await asyncio.sleep(0)
        lock.release(new_token(), "me")
        assert all(await asyncio.gather(*waiting))

    with_lock(own_redis.url, scenario)


@pytest.mark.parametrize("trouble", ["stop", "pause"])
def test_service_goes_on_without_redis_and_says_so(
    store: Backend, registry: HandlerRegistry, own_redis: RedisProcess, trouble: str
) -> None:
    calls: list[str] = []

    @registry.task("probe")
    async def probe(label: str) -> None:
        calls.append(label)

    with running(Backend(store.db_url, own_redis.url), registry) as client:

        def run(label: str) -> str:
            task = post(client, run_at=later(0.05), payload={"label": label})
            return str(finished(client, task["task_id"])["status"])

        assert run("before") == "done"
        getattr(own_redis, trouble)()
        assert run("meanwhile") == "done"
        answer = client.get("/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "degraded"
        assert answer.json()["lock"]["status"] == "degraded"
        assert answer.json()["lock"]["since"] is not None
        assert client.get("/readyz").status_code == 200
        own_redis.start() if trouble == "stop" else own_redis.resume()
        wait_until(lambda: client.get("/health").json()["status"] == "ok")
        assert run("after") == "done"
    assert calls == ["before", "meanwhile", "after"]


def test_service_starts_without_redis(
    store: Backend, registry: HandlerRegistry, own_redis: RedisProcess
) -> None:
    own_redis.stop()
    with running(Backend(store.db_url, own_redis.url), registry) as client:
        assert client.get("/health").json()["lock"]["status"] == "degraded"
        task = post(client, run_at=later(0))
        assert finished(client, task["task_id"])["status"] == "done"
