"""The faults: what a plan asks for is done to the instances, the database and Redis."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace

from redis import Redis

from job_scheduler.chaos.cluster import Instance
from job_scheduler.chaos.history import Fault
from job_scheduler.chaos.plan import FaultKind, PlannedFault
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.chaos.storage import Storage
from job_scheduler.clock import SystemClock

_READY_SECONDS = 10.0

Steps = dict[FaultKind, Callable[[float], Awaitable[None]]]
"""How each kind of fault is done, which does not concern one instance; they take how long."""


class Saboteur:
    """Carries faults out, from the instant `begin` (Unix time) on, and notes each."""

    def __init__(
        self, instances: list[Instance], storage: Storage, steps: Steps, begin: float
    ) -> None:
        self._instances = instances
        self._storage = storage
        self._steps = steps
        self._begin = begin
        self._clock = SystemClock()
        self.done: list[Fault] = []

    async def run(self, tracks: list[list[PlannedFault]]) -> None:
        """Carry out all tracks at once; return when the last fault is over."""
        async with asyncio.TaskGroup() as group:
            for track in tracks:
                group.create_task(self._track(track))

    async def _track(self, track: list[PlannedFault]) -> None:
        for fault in track:
            await asyncio.sleep(max(0.0, self._begin + fault.at - self._now()))
            self.done += await self._do(fault)

    async def _do(self, fault: PlannedFault) -> list[Fault]:
        if fault.instance is not None:
            instance = self._instances[fault.instance]
            # On a slow machine it may still be starting; a fault would hit nothing then.
            with suppress(TimeoutError):
                await asyncio.wait_for(instance.ready.wait(), _READY_SECONDS)
            if fault.kind is FaultKind.Pause:
                return await self._pause(instance, fault.lasts)
            end = instance.kill if fault.kind is FaultKind.Kill else instance.restart
            return [await end(fault.lasts)]
        begin = self._now()
        await self._steps[fault.kind](fault.lasts)
        return [Fault(fault.kind, begin, self._now())]

    async def _pause(self, instance: Instance, seconds: float) -> list[Fault]:
        """Pause an instance. On SQLite, one that is stopped while it writes keeps all others from
        writing for as long: that is a fault of the database, too.
        """
        pause, waited = await asyncio.gather(
            instance.pause(seconds), self._storage.seconds_to_write()
        )
        stall = replace(pause, kind=FaultKind.StallDatabase, pid=None)
        return [pause, stall] if waited >= seconds else [pause]

    def _now(self) -> float:
        return self._clock.now().timestamp()


def database_steps(storage: Storage, proxy: Proxy) -> Steps:
    """Return what is done to PostgreSQL: to this run's own database, and the way to it."""

    async def cut_connections(_seconds: float) -> None:
        await storage.cut_connections()

    return {
        FaultKind.CutConnections: cut_connections,
        FaultKind.StallDatabase: lambda seconds: _away(proxy, proxy.stall, seconds),
        FaultKind.CutDatabase: lambda seconds: _away(proxy, proxy.cut, seconds),
    }


def redis_steps(redis: Redis, proxy: Proxy, task_ids: Callable[[], Collection[str]]) -> Steps:
    """Return what is done to Redis: to the locks of `task_ids`, and the way to it.

    Nothing else in this Redis is ours.
    """

    async def flush(_seconds: float) -> None:
        # A key more, so that there is always one: it is nobody's.
        keys = [f"lock:task:{task_id}" for task_id in ("chaos", *task_ids())]
        await asyncio.to_thread(redis.delete, *keys)

    return {
        FaultKind.FlushRedis: flush,
        FaultKind.StallRedis: lambda seconds: _away(proxy, proxy.stall, seconds),
        FaultKind.CutRedis: lambda seconds: _away(proxy, proxy.cut, seconds),
    }


async def _away(proxy: Proxy, take_away: Callable[[], None], seconds: float) -> None:
    await asyncio.to_thread(take_away)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.to_thread(proxy.heal)
