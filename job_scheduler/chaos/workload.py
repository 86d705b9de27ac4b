"""The callers: they post and cancel tasks over HTTP at any instance, and note each answer.

A caller who gets no answer, or 503, asks again under the same task_id, at another instance: so
it gets one task however often it asked.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import count

import httpx

from job_scheduler.chaos.history import Answer, Asked, Deletion
from job_scheduler.chaos.plan import PlannedTask
from job_scheduler.chaos.storage import Storage
from job_scheduler.clock import SystemClock
from job_scheduler.identifiers import new_task_id

_PATIENCE_SECONDS = 3.0
_FINAL = {"POST": {201}, "DELETE": {200, 404, 409}}
_EXPECTED = {method: answers | {503} for method, answers in _FINAL.items()}
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_CALLERS = 64
"""Questions under way at once; each caller has connections of its own, since httpx spends time
that grows with the square of those that share a pool."""
_SHUN_SECONDS = 1.0
"""For how long an instance that did not answer is left alone, as a load balancer would."""


class Workload:
    """Does what the plan's tasks ask for, from the instant `begin` (Unix time) on.

    `urls` tells where the instances listen at present.
    """

    def __init__(self, storage: Storage, urls: Callable[[], list[str]], begin: float) -> None:
        self._storage = storage
        self._urls = urls
        self._begin = begin
        self._clock = SystemClock()
        self._turn = count()
        self._callers: asyncio.Queue[httpx.AsyncClient] = asyncio.Queue()
        self._shunned: dict[str, float] = {}
        self.asked: dict[str, Asked] = {}
        self.incidents: list[str] = []

    @property
    def accepted(self) -> int:
        """How many tasks were answered 201, or inserted."""
        return sum(asked.accepted_at is not None for asked in self.asked.values())

    async def run(self, planned: Iterable[PlannedTask]) -> None:
        """Carry the plan out; returns when every question has been answered."""
        async with AsyncExitStack() as stack:
            tls = httpx.create_ssl_context()  # unused, and takes long to make for each
            for _ in range(_CALLERS):
                client = httpx.AsyncClient(timeout=_PATIENCE_SECONDS, trust_env=False, verify=tls)
                self._callers.put_nowait(await stack.enter_async_context(client))
            await self._ask_all(planned)

    async def _ask_all(self, planned: Iterable[PlannedTask]) -> None:
        async with asyncio.TaskGroup() as group:
            for task in planned:
                await self._sleep_until(self._begin + task.post_at)
                asked = Asked(new_task_id(self._clock.now()), task, self._begin + task.due_at)
                self.asked[asked.task_id] = asked
                group.create_task(self._ask(asked))

    async def _ask(self, asked: Asked) -> None:
        if asked.planned.by_sql:
            await self._storage.insert(asked)
            self._note(asked, "INSERT committed")
            asked.accepted_at = self._now()
            return
        body = _body(asked)
        tries = await self._until_answered(asked, "POST", "/tasks", body)
        asked.accepted_at = self._now()
        # A request without an answer may be carried out long after, when the instance that has
        # it is no longer held up: it would bring a deleted task back. So a caller who wants to
        # delete must know what became of each of its requests.
        if asked.planned.cancel_at is not None and tries == 1:
            await self._sleep_until(self._begin + asked.planned.cancel_at)
            await self._cancel(asked)

    async def _cancel(self, asked: Asked) -> None:
        asked.deletion = Deletion.Unknown
        path = f"/tasks/{asked.task_id}"
        tries = await self._until_answered(asked, "DELETE", path)
        status = asked.answers[-1].text.split()[1]
        if status == "404" and tries == 1:
            self.incidents.append(f"DELETE {path} was answered 404, and nobody had deleted it")
        asked.deletion = Deletion.Refused if status == "409" else Deletion.Done
        asked.deleted_at = asked.answers[-1].at

    async def _until_answered(
        self, asked: Asked, method: str, path: str, body: object = None
    ) -> int:
        """Ask until it is answered once and for all; return how many requests that took."""
        tries, pause = 0, _FIRST_PAUSE
        while True:
            if (url := self._next()) is not None:
                tries += 1
                status = await self._request(asked, method, url, path, body)
                if status in _FINAL[method]:
                    return tries
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _request(
        self, asked: Asked, method: str, url: str, path: str, body: object
    ) -> int | None:
        """Ask once; return the status, or None when there was no answer."""
        caller = await self._callers.get()
        try:
            response = await caller.request(method, url + path, json=body)
        except httpx.TransportError as error:
            self._shunned[url] = self._now() + _SHUN_SECONDS
            self._note(asked, f"{method} no answer ({type(error).__name__})")
            return None
        finally:
            self._callers.put_nowait(caller)
        self._note(asked, f"{method} {response.status_code}")
        if response.status_code not in _EXPECTED[method]:
            self.incidents.append(
                f"{method} {path} was answered {response.status_code}: {response.text}"
            )
        return response.status_code

    def _next(self) -> str | None:
        """Return an instance to ask, by turns; None when none is ready and has just answered."""
        now = self._now()
        urls = [url for url in self._urls() if self._shunned.get(url, 0.0) <= now]
        return urls[next(self._turn) % len(urls)] if urls else None

    async def _sleep_until(self, instant: float) -> None:
        await asyncio.sleep(max(0.0, instant - self._now()))

    def _note(self, asked: Asked, text: str) -> None:
        asked.answers.append(Answer(self._now(), text))

    def _now(self) -> float:
        return self._clock.now().timestamp()


def _body(asked: Asked) -> dict[str, object]:
    planned = asked.planned
    return {
        "task_id": asked.task_id,
        "name": planned.handler.value,
        "run_at": datetime.fromtimestamp(asked.run_at, UTC).isoformat(),
        "payload": {"seconds": planned.seconds, "fails": planned.fails},
        "max_attempts": planned.max_attempts,
        "on_crash": planned.on_crash,
    }
