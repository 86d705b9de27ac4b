"""Virtual instances over the real statements, and what a caller knows of its tasks."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from job_scheduler.constants import InstanceState, RecoverPastTasks
from job_scheduler.core import instances
from job_scheduler.core.claims import Claim, ClaimRequest, claim
from job_scheduler.core.heartbeat import Heartbeat
from job_scheduler.core.instances import Member
from job_scheduler.core.outcomes import CutOff, NotStarted, Outcome, Succeeded
from job_scheduler.core.records import Record, record
from job_scheduler.core.recovery import Rules, elect, recover
from job_scheduler.core.rescue import Rescue, rescue_orphans
from job_scheduler.core.tasks import RunsUnderWay
from job_scheduler.core.watch import Watch
from job_scheduler.database import Database
from job_scheduler.exceptions import StartError
from job_scheduler.identifiers import new_token
from job_scheduler.process import ProcessIdentity
from tests.support.app import no_lock

LEASE = 15.0
T = TypeVar("T")


@dataclass
class Known:
    """What the outside world knows of a task: its wishes, and whose handler was started."""

    max_attempts: int
    on_crash: str | None
    is_deleted: bool = False
    started: list[str] = field(default_factory=list)


class World:
    """The database, one time for all monotonic clocks, and the loop for what is asynchronous."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_000.0
        self.tasks: dict[str, Known] = {}
        self._loop = asyncio.new_event_loop()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Let the loop go."""
        self._loop.close()


class Virtual:
    """An instance without threads: each thing that it does is a call. Its host is its own."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self._host = f"host {number}"
        self.is_up = False
        self.is_away = False
        self.runs: dict[str, Claim] = {}

    # ------------------------------------------------------------------ birth and death

    def boot(self) -> None:
        """Come up with an empty memory, and register."""
        member = Member(new_token(), ProcessIdentity(self._host, 1, new_token()))
        self._database = self.world.database
        with self._database.writing() as connection:
            instances.register(connection, member, InstanceState.Starting)
        self.heart = Heartbeat(
            self._database, member, LEASE, new_token, lambda: None, lambda: self.world.now
        )
        self._under_way = RunsUnderWay()
        self.rescue = Rescue(
            self._database,
            self.heart,
            self._under_way,
            LEASE,
            lambda: self.world.now,
            lambda *_: None,
            no_lock,
        )
        self._election = Watch(member.process, LEASE, lambda: self.world.now)
        self.runs = {}
        self.is_up = True
        self.is_alive = False

    def decide(self, policy: RecoverPastTasks) -> None:
        """Draw the conclusion from the others, if that can be done yet; else give up."""
        try:
            self._decide(policy)
        except StartError:
            self.crash()

    def _decide(self, policy: RecoverPastTasks) -> None:
        member = self.heart.member
        with self._database.writing() as connection:
            state = elect(connection, member, self._election)
        if state is InstanceState.Recovering:
            self.world.do(recover(self._database, member.instance_id, Rules(policy)))
            with self._database.writing() as connection:
                instances.move(
                    connection, member.instance_id, [InstanceState.Recovering], InstanceState.Alive
                )
        if state is not InstanceState.Starting:
            self.heart.note_joined()
            self.is_alive = True
            self.world.do(rescue_orphans(self._database, no_lock))

    def crash(self) -> None:
        """Lose the memory at once."""
        self.is_up = False
        self.runs = {}

    def stop(self) -> None:
        """End in order: what was called is cut off, the rest is given back."""
        for run in list(self.runs.values()):
            self.end(run, CutOff("stopped") if self.has_started(run) else NotStarted())
        with self._database.writing() as connection:
            instances.leave(connection, self.heart.instance_id)
        self.is_up = False

    # ------------------------------------------------------------------------- the runs

    def ask(self, task_ids: list[str]) -> list[ClaimRequest]:
        """Make requests for claims, each with a token of its own."""
        requests = [ClaimRequest(task_id, new_token()) for task_id in task_ids]
        for request in requests:
            self._under_way.add(request.token)
        return requests

    def claim(self, requests: list[ClaimRequest], *, repeated: bool = False) -> None:
        """Claim, and remember what was got."""
        with self._database.writing() as connection:
            answers = claim(connection, self.heart.instance_id, requests, repeated=repeated)
        got = {answer.token: answer for answer in answers if isinstance(answer, Claim)}
        self.runs |= got
        for request in requests:
            if request.token not in got:
                self._under_way.remove(request.token)

    def claim_unnoticed(self, requests: list[ClaimRequest]) -> None:
        """Let the database carry out a claim, of which nobody here hears any more."""
        with self._database.writing() as connection:
            claim(connection, self.heart.instance_id, requests)
        for request in requests:
            self._under_way.remove(request.token)

    def has_started(self, run: Claim) -> bool:
        """Tell whether this run's handler was called."""
        return run.token in self.world.tasks[run.task_id].started

    def start(self, run: Claim) -> None:
        """Call the handler, if the lease is held; else give the claim back."""
        if self.heart.holds_lease(run.instance_id):
            self.world.tasks[run.task_id].started.append(run.token)
        else:
            self.end(run, NotStarted())

    def end(self, run: Claim, outcome: Outcome, times: int = 1) -> list[bool]:
        """Record how a run ended; more than once when nobody knows whether it was committed."""
        entry = Record.of(run, outcome)
        stands = []
        for _ in range(times):
            with self._database.writing() as connection:
                stands += record(connection, [entry])
        self.runs.pop(run.token, None)
        self._under_way.remove(run.token)
        return stands

    def finish(self, run: Claim, times: int = 1) -> list[bool]:
        """Return from the handler, with the token as its result."""
        return self.end(run, Succeeded(run.token), times)

    # ----------------------------------------------------------------------- the others

    def look(self) -> None:
        """Look at the others; during an outage there is nothing to be seen."""
        if self.is_away:
            self.rescue._watch.start_again()
        else:
            self.world.do(self.rescue.step())
