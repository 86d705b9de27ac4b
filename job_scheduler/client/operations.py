"""What a client can ask of the service; each question is written once, for both clients."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from math import inf
from typing import Any, Unpack
from uuid import UUID

from job_scheduler.client.answers import (
    explanation_of,
    forecast_of,
    handlers_of,
    health_of,
    message_of,
    moments_of,
    page_of,
    preview_of,
    runs_of,
    task_of,
    understood,
)
from job_scheduler.client.errors import NotEnded
from job_scheduler.client.exchange import Ask, Steps, exchange
from job_scheduler.client.members import (
    WHEN,
    Place,
    TaskChange,
    TaskMembers,
    as_json,
    key_header,
    path_of,
)
from job_scheduler.client.operations_many import OperationsOnMany
from job_scheduler.client.running import operation
from job_scheduler.client.shapes import Explanation, Forecast, Handler, Moment, Preview, Run, Task
from job_scheduler.client.streams import Streams
from job_scheduler.clock import SystemClock
from job_scheduler.constants import LIST_DEFAULT_LIMIT
from job_scheduler.identifiers import new_token

_WAIT_SECONDS = 30
"""For how long one request waits for a task's end; what stands in between may end a longer one."""
_LOOK_SECONDS = 1.0
"""How often a task is looked at where the service does not let its callers wait."""


class Operations(OperationsOnMany, Streams):
    """The operations of a client."""

    # ------------------------------------------------------------------- making tasks

    @operation
    def create(
        self,
        name: str,
        *,
        task_id: str | UUID | None = None,
        idempotency_key: str | None = None,
        **members: Unpack[TaskMembers],
    ) -> Steps[Task]:
        """Schedule a task. Without `run_at`, `cron` and `interval_seconds` it runs now, by this
        machine's clock.

        Repetitions after an outage make one task: a key is made for each call where you give
        neither `idempotency_key` nor `task_id`. Give one of your own, and the time, where your
        program itself may make the call twice.
        """
        body: dict[str, Any] = {"name": name, **members}
        if all(members.get(each) is None for each in WHEN):
            body["run_at"] = SystemClock().now()
        if task_id is not None:
            body["task_id"] = task_id
        elif idempotency_key is None:
            idempotency_key = new_token()
        ask = Ask("POST", "/tasks", body=as_json(body), headers=key_header(idempotency_key))
        return (yield from self._ask(ask, task_of))

    @operation
    def preview(self, name: str, *, n: int = 5, **members: Unpack[TaskMembers]) -> Steps[Preview]:
        """Tell the next `n` times of a task that is not made, in words too, and warnings."""
        body = as_json({"name": name, **members})
        ask = Ask("POST", "/tasks/preview", [("n", str(n))], body)
        return (yield from self._ask(ask, preview_of))

    # ---------------------------------------------------------------- looking at them

    @operation
    def get(self, task_id: str | UUID, *, wait: int = 0) -> Steps[Task]:
        """Return a task: as it stands, or when it has ended, but after `wait` seconds at most."""
        return (yield from self._look(task_id, wait))

    @operation
    def wait(self, task_id: str | UUID, timeout: float | None = None) -> Steps[Task]:
        """Return a task when it has ended, whatever came of it; `timeout` is in seconds.

        Raises:
            NotEnded: it has not ended in time.
        """
        end = inf if timeout is None else time.monotonic() + timeout
        pause = 0.0
        while True:
            begin = time.monotonic()
            wait = int(max(0, min(end - begin, _WAIT_SECONDS)))
            task = yield from self._look(task_id, wait, pause)
            if task.ended:
                return task
            now = time.monotonic()
            if now >= end:
                raise NotEnded(task)
            # It answers early when too many wait, and when it is about to stop.
            pause = 0.0 if 0 < wait <= now - begin else min(_LOOK_SECONDS, end - now)

    @operation
    def runs(self, task_id: str | UUID, *, limit: int = LIST_DEFAULT_LIMIT) -> Steps[list[Run]]:
        """List a task's last attempts, the oldest first."""
        ask = Ask("GET", f"{path_of(task_id)}/runs", [("limit", str(limit))])
        return (yield from self._ask(ask, runs_of))

    @operation
    def next_times(self, task_id: str | UUID, *, n: int = 10) -> Steps[list[Moment]]:
        """List the next `n` times at which a task is still to run."""
        ask = Ask("GET", f"{path_of(task_id)}/next", [("n", str(n))])
        return (yield from self._ask(ask, moments_of))

    @operation
    def _page(self, place: Place) -> Steps[tuple[list[Task], Place | None]]:
        """Return some tasks of a list, and where it goes on (None: it is complete)."""
        query = [each for each in place.query if each[0] != "limit" or place.left is None]
        if place.left is not None:
            query.append(("limit", str(min(place.left, LIST_DEFAULT_LIMIT))))
        page, following = yield from self._ask(Ask("GET", "/tasks", query), page_of)
        left = None if place.left is None else place.left - len(page)
        return page, None if following is None or left == 0 else Place(following, left)

    # -------------------------------------------------------------------- acting on them

    @operation
    def change(
        self,
        task_id: str | UUID,
        *,
        if_match: str | None = None,
        **members: Unpack[TaskChange],
    ) -> Steps[Task]:
        """Change a task that is scheduled or paused: what is given replaces what was.

        None takes away. With the `etag` of a task as `if_match`, this raises Conflict when somebody
        else has changed it since.
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        # Once it is done, the version that was read is no more: a repetition would be refused.
        ask = Ask("PATCH", path_of(task_id), (), as_json(members), headers, if_match is None)
        return (yield from self._ask(ask, task_of))

    @operation
    def pause(self, task_id: str | UUID) -> Steps[Task]:
        """Keep a task from starting until it is resumed."""
        return (yield from self._act(task_id, "pause", repeatable=True))

    @operation
    def resume(self, task_id: str | UUID) -> Steps[Task]:
        """Let a paused task start again."""
        return (yield from self._act(task_id, "resume", repeatable=True))

    @operation
    def run(self, task_id: str | UUID) -> Steps[Task]:
        """Run a task now; of a recurring one return the extra run, a task of its own."""
        return (yield from self._act(task_id, "run"))

    @operation
    def cancel(self, task_id: str | UUID) -> Steps[Task]:
        """Cancel a task. One that is running is being ended: `wait` tells when it is over."""
        return (yield from self._act(task_id, "cancel"))

    @operation
    def retry(self, task_id: str | UUID) -> Steps[Task]:
        """Run a task that is failed or unknown once more, now."""
        return (yield from self._act(task_id, "retry"))

    @operation
    def delete(self, task_id: str | UUID) -> Steps[str]:
        """Remove a task that has not started, and return what the service says.

        It never runs, and nothing of it is kept.
        """
        ask = Ask("DELETE", path_of(task_id), repeatable=False)
        return (yield from self._ask(ask, message_of))

    # ----------------------------------------------------------------------- the service

    @operation
    def handlers(self) -> Steps[list[Handler]]:
        """List what tasks can run, by name."""
        ask = Ask("GET", "/handlers")
        return (yield from self._ask(ask, handlers_of))

    @operation
    def explain(self, task_id: str | UUID) -> Steps[Explanation]:
        """Tell why a task has not run, ran late, ran twice or was skipped, and what to do."""
        return (yield from self._ask(Ask("GET", f"{path_of(task_id)}/explain"), explanation_of))

    @operation
    def forecast(self, *, hours: int = 24) -> Steps[Forecast]:
        """Tell how many tasks fall due in the next hours, and which names make the peaks."""
        return (yield from self._ask(Ask("GET", "/forecast", [("hours", str(hours))]), forecast_of))

    @operation
    def health(self) -> Steps[Mapping[str, Any]]:
        """Tell how the service does, as ``GET /health`` has it, also when it can do no work."""
        answer = yield from exchange(Ask("GET", "/health"), self._address, self._retries)
        return understood(answer, health_of, also=HTTPStatus.SERVICE_UNAVAILABLE)

    def _look(self, task_id: str | UUID, wait: int, after: float = 0.0) -> Steps[Task]:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        ask = Ask("GET", path_of(task_id), headers=headers, wait=wait, after=after)
        return (yield from self._ask(ask, task_of))

    def _act(self, task_id: str | UUID, verb: str, *, repeatable: bool = False) -> Steps[Task]:
        ask = Ask("POST", f"{path_of(task_id)}/{verb}", repeatable=repeatable)
        return (yield from self._ask(ask, task_of))
