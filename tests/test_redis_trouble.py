"""Redis in trouble: it answers with errors, forgets all, is another one, or replies are lost."""

import asyncio
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.clock import SystemClock
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.locks import TaskLock
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from job_scheduler.redis_client import RedisTaskLock, build_redis
from tests.conftest import SQLITE
from tests.support.app import Backend, bench, finished, later, post, running
from tests.support.services import (
    RedisProcess,
    ServiceMissing,
    find_free_port,
    redis_client,
    skip_or_fail,
    wait_until,
)

only_sqlite = pytest.mark.parametrize("db_url", [SQLITE], indirect=True)

Trouble = tuple[Callable[[Any, RedisProcess], Any], Callable[[Any, RedisProcess], Any]]


def refuse_everyone(client: Any, _process: RedisProcess) -> None:
    """Take the service's password away, and its connections."""
    client.config_set("requirepass", "another")
    client.client_kill_filter(_type="normal", skipme=True)


def fail_to_save(client: Any, process: RedisProcess) -> None:
    """Make it unable to write its snapshot, so that it accepts no change."""
    assert process._process is not None
    shutil.rmtree(process._process.home)
    client.config_set("save", "3600 1")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


TROUBLES: dict[str, Trouble] = {
    "READONLY": (
        lambda client, _: client.replicaof("127.0.0.1", find_free_port()),
        lambda client, _: client.replicaof("NO", "ONE"),
    ),
    "OOM": (
        lambda client, _: client.config_set("maxmemory", 1),
        lambda client, _: client.config_set("maxmemory", 0),
    ),
    "password": (
        refuse_everyone,
        lambda client, process: client.config_set("requirepass", process._password),
    ),
    "permission": (
        lambda client, _: client.execute_command("ACL", "SETUSER", "default", "-set"),
        lambda client, _: client.execute_command("ACL", "SETUSER", "default", "+@all"),
    ),
    "MISCONF": (fail_to_save, lambda client, _: client.config_set("save", "")),
}


@only_sqlite
@pytest.mark.parametrize("trouble", TROUBLES)
def test_redis_that_answers_with_errors_degrades_and_is_used_again(
    store: Backend,
    registry: HandlerRegistry,
    own_redis: RedisProcess,
    trouble: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls: list[str] = []

    @registry.task("probe")
    async def probe(label: str) -> None:
        calls.append(label)

    begin, end = TROUBLES[trouble]
    with (
        redis_client(own_redis.url) as administration,
        running(Backend(store.db_url, own_redis.url), registry) as client,
    ):

        def run(label: str) -> str:
            task = post(client, run_at=later(0.05), payload={"label": label})
            return str(finished(client, task["task_id"])["status"])

        assert run("before") == "done"
        begin(administration, own_redis)
        assert run("meanwhile") == "done"
        seen = [client.get("/health").json() for _ in range(3)]
        assert run("still") == "done"
        seen += [client.get("/health").json() for _ in range(3)]
        assert {(one["status"], one["lock"]["status"]) for one in seen} == {("degraded",) * 2}
        assert len({one["lock"]["since"] for one in seen} - {None}) == 1
        end(administration, own_redis)
        wait_until(lambda: client.get("/health").json()["status"] == "ok")
        assert run("after") == "done"
        wait_until(lambda: not administration.keys("lock:*"))
    assert calls == ["before", "meanwhile", "still", "after"]
    log = capfd.readouterr().err
    assert log.count("Redis cannot be used") == 1
    assert log.count("Redis is back") == 1


class Detour(Proxy):
    """Leads new connections elsewhere, answers them itself, or loses the replies to some."""

    answer: bytes | None = None
    lose_replies = False

    def move_to(self, url: str) -> None:
        """The address is another server's from now on; old connections stay where they are."""
        self._target = Proxy.before(url)._target

    async def _carry(self, client: socket.socket) -> None:
        if self.answer is None:
            await super()._carry(client)
            return
        while await self._loop.sock_recv(client, 65536):
            await self._loop.sock_sendall(client, self.answer)

    async def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        data = b"any"
        while data:
            data = await self._loop.sock_recv(source, 65536)
            if self.lose_replies and data[:1] in (b"+", b"$"):
                return
            await self._loop.sock_sendall(sink, data)


def lock_at(url: str) -> RedisTaskLock:
    """A lock of one more instance."""
    return RedisTaskLock(build_redis(url), SystemClock())


async def until_back(lock: TaskLock) -> None:
    """Return when Redis is used again."""
    async with asyncio.timeout(30):
        while await lock.away_since() is not None:
            pass  # each look is a round trip, in a thread


@pytest.mark.parametrize("answer", ["LOADING Redis is loading", "NOAUTH Authentication required."])
def test_redis_that_is_still_loading_is_waited_for(own_redis: RedisProcess, answer: str) -> None:
    async def scenario() -> None:
        with Detour.before(own_redis.url) as detour:
            detour.answer = f"-{answer}\r\n".encode()
            lock = lock_at(detour.url_for(own_redis.url))
            task_id, token = new_token(), new_token()
            assert await lock.acquire(task_id, token)
            assert await lock.away_since() is not None
            detour.answer = None
            await until_back(lock)
            assert await lock.acquire(task_id, token)
            assert not await lock.acquire(task_id, new_token())
            await lock.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("former", ["replica", "gone"])
def test_lock_follows_to_the_empty_server_that_took_over(
    own_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory, former: str
) -> None:
    try:
        successor = RedisProcess(tmp_path_factory.mktemp("successor"))
    except ServiceMissing as missing:
        skip_or_fail(str(missing))
    successor._password = own_redis._password

    async def scenario() -> None:
        with Detour.before(own_redis.url) as detour, successor:
            lock = lock_at(detour.url_for(own_redis.url))
            task_id, token = new_token(), new_token()
            assert await lock.acquire(task_id, token)
            detour.move_to(successor.url)
            if former == "replica":  # and keeps the connections that it has
                with redis_client(own_redis.url) as client:
                    client.replicaof("127.0.0.1", find_free_port())
            else:
                own_redis.stop()
            assert await lock.acquire(new_token(), token)
            await until_back(lock)
            with redis_client(successor.url) as client:
                other = new_token()
                assert await lock.acquire(task_id, other)  # it knows nothing of the first
                assert client.get(f"lock:task:{task_id}") == other
            await lock.close()

    asyncio.run(scenario())


def test_owner_whose_reply_was_lost_is_let_through_and_recognised(own_redis: RedisProcess) -> None:
    configure_logging("INFO")

    async def scenario() -> None:
        with Detour.before(own_redis.url) as detour:
            lock = lock_at(detour.url_for(own_redis.url))
            await lock.away_since()
            task_id, token = new_token(), new_token()
            detour.lose_replies = True
            assert await lock.acquire(task_id, token)
            with redis_client(own_redis.url) as client:
                assert client.get(f"lock:task:{task_id}") == token
                client.persist(f"lock:task:{task_id}")
            detour.lose_replies = False
            await until_back(lock)
            assert not await lock.acquire(task_id, new_token())
            assert await lock.acquire(task_id, token)
            await lock.close()

    asyncio.run(scenario())


class PausedOwner(RedisTaskLock):
    """A lock whose owner is paused when it has it, until the lock has expired and others ran."""

    def __init__(self, client: redis.Redis, meanwhile: Callable[[str], Any]) -> None:
        super().__init__(client, SystemClock())
        self._meanwhile = meanwhile

    async def acquire(self, task_id: str, token: str) -> bool:
        """Take it, and come back much later."""
        granted = await super().acquire(task_id, token)
        await self._meanwhile(task_id)
        return granted


def test_owner_that_was_paused_until_its_lock_expired_starts_nothing(
    store: Backend, registry: HandlerRegistry, own_redis: RedisProcess
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    task_id = store.insert_task("count", run_at=later(-1))

    async def scenario() -> None:
        async with bench(store, registry, lock_at(own_redis.url)) as other:

            async def expire_and_run(task_id: str) -> None:
                with redis_client(own_redis.url) as client:
                    assert client.pexpire(f"lock:task:{task_id}", 1)
                    wait_until(lambda: not client.exists(f"lock:task:{task_id}"))
                await other.runner.run_task(task_id)
                assert runs == [1]

            paused = PausedOwner(build_redis(own_redis.url), expire_and_run)
            async with bench(store, registry, paused) as one:
                await one.runner.run_task(task_id)

    asyncio.run(scenario())
    assert runs == [1]
    assert (store.row(task_id)["status"], store.row(task_id)["attempt"]) == ("done", 1)


def test_redis_that_forgets_everything_under_load_doubles_nothing(
    store: Backend, registry: HandlerRegistry, own_redis: RedisProcess
) -> None:
    runs: Counter[str] = Counter()

    @registry.task("count")
    async def count(label: str) -> None:
        runs[label] += 1

    backend = Backend(store.db_url, own_redis.url)
    labels = [new_token() for _ in range(120)]
    with (
        running(backend, registry) as one,
        running(backend, registry),
        redis_client(own_redis.url) as administration,
    ):
        for place, label in enumerate(labels):
            post(one, task_id=label, name="count", run_at=later(0.1), payload={"label": label})
            if place == 60:
                own_redis.stop()
                own_redis.start()
            elif place % 10 == 0:
                administration.flushall()
        for label in labels:
            assert finished(one, label)["status"] == "done"
    assert runs == Counter(labels)
