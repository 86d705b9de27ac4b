"""The life of one run: lock, claim, call, decide, record."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from job_scheduler.batching import Batcher
from job_scheduler.clock import Clock
from job_scheduler.constants import TaskStatus
from job_scheduler.core import claims, records
from job_scheduler.core.claims import Claim, ClaimRequest
from job_scheduler.core.handlers.calling import Caller
from job_scheduler.core.limited import claim_within_limits
from job_scheduler.core.limits import Limits
from job_scheduler.core.locks import TaskLock
from job_scheduler.core.outcomes import Failed, NotStarted, Outcome, Spawned
from job_scheduler.core.places import Place
from job_scheduler.core.progress import ProgressBoard
from job_scheduler.core.records import Record
from job_scheduler.core.store import DueTask
from job_scheduler.database import Database
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable
from job_scheduler.identifiers import new_claim_token

_logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_RECORDS_MAX = 100
"""Records in a batch, at most: each may bring a result of a megabyte."""
_UNSTORABLE = Failed("it ended, but its result could not be stored; the service's log says why")

T = TypeVar("T")


class RunsUnderWay:
    """The tokens of this process's runs, from before the claim until the record."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._unrecorded: set[str] = set()

    def __contains__(self, token: str) -> bool:
        """Tell whether the run of this token is under way here."""
        return token in self._tokens

    def is_unrecorded(self, token: str) -> bool:
        """Tell whether this run was here, and how it ended could not be stored."""
        return token in self._unrecorded

    def add(self, token: str) -> None:
        """Begin."""
        self._tokens.add(token)

    def remove(self, token: str) -> None:
        """End."""
        self._tokens.discard(token)

    def note_unrecorded(self, token: str) -> None:
        """Remember that the handler was called, though nothing in the database says so."""
        self._unrecorded.add(token)


class TaskRunner:
    """Runs tasks: `run_task` is started for one that is due.

    `instance_id` tells under whose name claims are made; `put_back` takes a task that is still
    scheduled but was not to be had at this moment. A claim whose instance may have been
    taken for dead meanwhile, as `holds_lease` tells, is given back unused. What a run has last said
    of its `progress` is stored before its result. `limits` are those of handlers; `on_room` is
    called with the claim when a run has ended that may have been under one.
    """

    def __init__(
        self,
        database: Database,
        lock: TaskLock,
        caller: Caller,
        instance_id: Callable[[], str],
        put_back: Callable[[DueTask], None],
        holds_lease: Callable[[str], bool],
        progress: ProgressBoard,
        limits: Limits,
        on_room: Callable[[Claim], None],
        clock: Clock,
    ) -> None:
        self._database = database
        self._lock = lock
        self._caller = caller
        self._instance_id = instance_id
        self._put_back = put_back
        self._holds_lease = holds_lease
        self._progress = progress
        self._on_room = on_room
        self._clock = clock
        self._claims: Batcher[ClaimRequest, Claim | DueTask | None] = Batcher(
            partial(self._flush_claims, claims.claim)
        )
        self._limited_claims: Batcher[ClaimRequest, Claim | DueTask | None] = Batcher(
            partial(self._flush_claims, partial(claim_within_limits, limits=limits))
        )
        self._records: Batcher[Record, bool] = Batcher(self._flush_records, _RECORDS_MAX)
        self.under_way = RunsUnderWay()

    async def run_task(
        self, task_id: str, place: Place | None = None, *, is_limited: bool = True
    ) -> None:
        """Run the task if it exists, is scheduled and due, and nobody else runs it.

        `place` is given back as soon as the handler has ended: what is left to do needs none.
        Unless `is_limited` tells that no limit is on the task, it is claimed with a look at them.
        Its status and result are in the database when this returns. A database that is away
        before the claim leaves the task to a later sweep; one that is away after the run is
        waited for.
        """
        place = place or Place()
        token = new_claim_token(self._clock.now())
        self.under_way.add(token)
        try:
            if not await self._lock.acquire(task_id, token):
                return
            claim = await self._claim(task_id, token, is_limited)
            if claim is None:
                return
            outcome: Outcome
            if not self._holds_lease(claim.instance_id):
                outcome = NotStarted()
            elif claim.is_pattern:
                outcome = Spawned()
            else:
                outcome = await self._caller.call(claim, place)
            place.free()
            await self._progress.settle(claim)
            await self._record(claim, outcome)
            if is_limited:
                self._on_room(claim)
        finally:
            self.under_way.remove(token)

    async def _claim(self, task_id: str, token: str, is_limited: bool) -> Claim | None:
        claims = self._limited_claims if is_limited else self._claims
        try:
            answer = await claims.submit(ClaimRequest(task_id, token))
        except DatabaseUnavailable:
            _logger.warning("task %s cannot be claimed: the database is away", task_id)
            answer = None
        except BaseException:
            self._lock.release(task_id, token)
            raise
        if isinstance(answer, Claim):
            # From here on the claim protects the run: no lock can expire under it.
            self._lock.settle(task_id, token)
            return answer
        self._lock.release(task_id, token)
        if answer is not None:
            self._put_back(answer)
        return None

    async def _record(self, claim: Claim, outcome: Outcome) -> None:
        record = Record.of(claim, outcome)
        is_over = record.decision.status in (TaskStatus.Done, TaskStatus.Cancelled)
        if not is_over or record.ends_occurrence:
            # Before the record: whoever sees it scheduled again, by a person even, finds it free.
            self._lock.release(claim.task_id, claim.token)
        try:
            stands = await self._records.submit(record)
        except Exception:
            # It ran, and must not look as if it ran for ever.
            self.under_way.note_unrecorded(claim.token)
            _logger.exception("task %s: its result could not be stored", claim.task_id)
            record = Record.of(claim, _UNSTORABLE)
            stands = await self._records.submit(record)
        if not stands:
            _logger.warning(
                "task %s: this run's claim was lost, its result is kept in the history alone",
                claim.task_id,
            )

    async def _flush_claims(
        self, claim: Callable[..., Any], requests: Sequence[ClaimRequest]
    ) -> list[Claim | DueTask | None]:
        instance_id = self._instance_id()
        try:
            return await self._database.write(claim, instance_id, requests)
        except CommitOutcomeUnknown:
            return await self._until_done(
                lambda: self._database.write(claim, instance_id, requests, repeated=True)
            )

    async def _flush_records(self, ended: Sequence[Record]) -> list[bool]:
        return await self._until_done(lambda: self._database.write(records.record, ended))

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent write for as long as the database is away."""
        waiting = False
        while True:
            try:
                return await attempt()
            except DatabaseUnavailable:
                if not waiting:
                    _logger.warning("the database is away: claims and results wait for it")
                waiting = True
                await asyncio.sleep(_RETRY_SECONDS)
