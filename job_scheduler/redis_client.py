"""Redis: the connection, and the lock that all instances share.

redis-py's own retries are off: they would block for a minute when Redis hangs, and a repeated
``SET NX`` whose first reply was lost answers "taken" to the very owner. Here one short try is
made, and a lock that the token holds already is granted to it.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock
from job_scheduler.exceptions import Unavailable
from job_scheduler.identifiers import new_token
from job_scheduler.threads import DaemonThreads

_logger = logging.getLogger(__name__)

LOCK_MILLISECONDS = 1_000
"""From lock to claim takes less by far, unless the database stalls. A claimed task's lock is left
to expire, so an instance that is up to so much behind the others finds out here, by the hundred,
and not at the database."""
_TIMEOUT = 0.3
_PAUSE_AFTER_FAILURE = 1.0
# All wishes of a batch in one call, each carried out in one step: a lock is taken if nobody, or
# this very token, holds it (the reply to an earlier try may have been lost), and given back if the
# token still does. The newer command that compares and deletes is not in Debian's Redis.
_SCRIPT = """
local answers = {}
for place, key in ipairs(KEYS) do
    local wish, token = ARGV[2 * place], ARGV[2 * place + 1]
    if wish == 'take' then
        local taken = redis.call('set', key, token, 'NX', 'PX', ARGV[1])
        answers[place] = (taken or redis.call('get', key) == token) and '1' or '0'
    else
        answers[place] = '0'
        if redis.call('get', key) == token then
            redis.call('del', key)
        end
    end
end
return table.concat(answers)
"""


def build_redis(url: str) -> Redis:
    """Build a client whose every call ends within a short time; nothing is opened yet."""
    return Redis.from_url(
        url,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    key: str
    token: str
    release: bool


class RedisTaskLock:
    """The lock for many instances: one key a task, holding its owner's token, with an expiry.

    What many tasks want at one time goes to Redis in one script. When Redis is away, every
    lock is granted: the claim decides. That is logged once, and Redis is tried again after a
    second.
    """

    backend = "redis"

    def __init__(self, client: Redis, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._thread = DaemonThreads(1, "redis")
        self._batcher: Batcher[_Wish, bool] = Batcher(self._flush)
        self._away_since: datetime | None = None
        self._retry_at = 0.0

    async def acquire(self, task_id: str, token: str) -> bool:
        """Try to take the lock of a task; False when another token holds it."""
        try:
            return await self._batcher.submit(_Wish(_key(task_id), token, release=False))
        except Unavailable:
            return True

    def release(self, task_id: str, token: str) -> None:
        """Give the lock back, soon, if `token` still holds it."""
        # Nobody waits for it: should it be lost, the key expires.
        with suppress(Unavailable):
            self._batcher.submit(_Wish(_key(task_id), token, release=True))

    def settle(self, _task_id: str, _token: str) -> None:
        """Let the lock expire: other instances may be about to ask for it."""

    async def away_since(self) -> datetime | None:
        """Try whether Redis can hold a lock: None when it can.

        A lock of nothing is taken and given back: a replica, or a server that is out of memory,
        answers a PING and refuses all that is needed of it.
        """
        token = new_token()
        key = _key(f"probe:{token}")
        probe = [_Wish(key, token, release=False), _Wish(key, token, release=True)]
        try:
            await self._thread.submit(lambda: self._send(probe))
        except RedisError as error:
            self._note_failure(error)
        else:
            self._note_success()
        return self._away_since

    async def close(self) -> None:
        """Send what is still to be released, and disconnect."""
        await self._batcher.drain()
        self._thread.close(2 * _TIMEOUT)
        self._client.close()

    async def _flush(self, wishes: Sequence[_Wish]) -> list[bool]:
        loop = asyncio.get_running_loop()
        if self._away_since is not None and loop.time() < self._retry_at:
            return [True] * len(wishes)
        try:
            granted = await self._thread.submit(lambda: self._send(wishes))
        except RedisError as error:
            self._note_failure(error)
            return [True] * len(wishes)
        self._note_success()
        return granted

    def _send(self, wishes: Sequence[_Wish]) -> list[bool]:
        try:
            return self._ask(wishes)
        except RedisError:
            # The connection may lead to a server that is no longer the one at the address.
            self._client.connection_pool.disconnect()
            raise

    def _ask(self, wishes: Sequence[_Wish]) -> list[bool]:
        keys = [wish.key for wish in wishes]
        given = [
            each for wish in wishes for each in ("give" if wish.release else "take", wish.token)
        ]
        answers: Any = self._client.eval(_SCRIPT, len(keys), *keys, LOCK_MILLISECONDS, *given)
        return [answer == "1" for answer in answers]

    def _note_failure(self, error: RedisError) -> None:
        self._retry_at = asyncio.get_running_loop().time() + _PAUSE_AFTER_FAILURE
        if self._away_since is None:
            self._away_since = self._clock.now()
            _logger.warning(
                "Redis cannot be used (%s): tasks run on under the database's claim alone", error
            )

    def _note_success(self) -> None:
        if self._away_since is not None:
            _logger.warning("Redis is back: it was away since %s", self._away_since.isoformat())
            self._away_since = None


def _key(task_id: str) -> str:
    return f"lock:task:{task_id}"
