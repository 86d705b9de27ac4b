"""The dispatch, simulated: an instance of the service, as far as its batches go."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

from benchmarks.costs import Costs
from benchmarks.machine import DISK, Machine, Process

REDIS, PYTHON, POSTGRESQL = "Redis", "Python", "PostgreSQL"
MAX_RUNNING, RECORDING_MAX, LOCKS_MAX, CLAIMS_MAX, RECORDS_MAX = 200, 200, 500, 500, 100
PLACES, SLICE = MAX_RUNNING - MAX_RUNNING // 16, 1_000
"""The service's own bounds: config.py, dispatcher.py, batching.py and tasks.py have them; and
lanes.py, which leaves some places to tasks of another name, and timer.py, which fires in slices."""


class Batcher:
    """One batch at a time, made of what has come during the one before."""

    def __init__(
        self, machine: Machine, flush: Callable[[Sequence[int]], Process], size: int
    ) -> None:
        self._machine, self._flush, self._size = machine, flush, size
        self._waiting: list[int] = []
        self._flushing = False

    def submit(self, tasks: Iterable[int]) -> None:
        """Take tasks into the next batch."""
        self._waiting += tasks
        if self._waiting and not self._flushing:
            self._flushing = True
            self._machine.go_on(self._flush_all())

    def _flush_all(self) -> Process:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            yield from self._flush(batch)
        self._flushing = False


@dataclass
class Burst:
    """What all instances share."""

    machine: Machine
    costs: Costs
    locked: set[int] = field(default_factory=set)
    ran: list[int] = field(default_factory=list)
    recorded: int = 0


class Instance:
    """One process of the service, with its own list of what is due."""

    def __init__(self, name: str, due: Iterable[int], burst: Burst) -> None:
        self._python = f"{PYTHON} {name}"
        self._sessions = f"{POSTGRESQL} claims {name}", f"{POSTGRESQL} records {name}"
        self._due, self._burst, self._costs = deque(due), burst, burst.costs
        self._busy = self._recording = 0
        self._locks = Batcher(burst.machine, self._lock, LOCKS_MAX)
        self._claims = Batcher(burst.machine, self._claim, CLAIMS_MAX)
        self._records = Batcher(burst.machine, self._record, RECORDS_MAX)

    def begin(self) -> None:
        """Begin at the instant at which all is due."""
        self._burst.machine.go_on(self._hold())
        self.start_runs()

    def _hold(self) -> Process:
        for _ in range(ceil(len(self._due) / SLICE)):
            yield self._python, SLICE * self._costs.python_held

    def start_runs(self) -> None:
        """Start what there is room for."""
        room = PLACES - self._busy if self._recording < RECORDING_MAX else 0
        started = [self._due.popleft() for _ in range(min(room, len(self._due)))]
        self._busy += len(started)
        self._locks.submit(started)

    def _lock(self, batch: Sequence[int]) -> Process:
        yield self._python, self._costs.python_batch / 2 + len(batch) * self._costs.python_lock
        yield REDIS, len(batch) * self._costs.redis_lock
        won = [task for task in batch if task not in self._burst.locked]
        self._burst.locked.update(won)
        yield self._python, self._costs.python_batch / 2
        self._busy -= len(batch) - len(won)
        self._claims.submit(won)
        self.start_runs()

    def _claim(self, batch: Sequence[int]) -> Process:
        costs, rows = self._costs, len(batch)
        yield self._python, costs.python_batch / 2
        yield self._sessions[0], costs.postgresql_plan + rows * costs.postgresql_claim
        yield DISK, costs.commit
        yield self._python, costs.python_batch / 2 + rows * costs.python_claim
        self._burst.ran.extend(batch)
        self._busy -= rows
        self._recording += rows
        self._records.submit(batch)
        self.start_runs()

    def _record(self, batch: Sequence[int]) -> Process:
        costs, rows = self._costs, len(batch)
        yield self._python, costs.python_batch / 2 + rows * costs.python_record
        yield self._sessions[1], costs.postgresql_plan + rows * costs.postgresql_record
        yield DISK, costs.commit
        yield self._python, costs.python_batch / 2
        self._recording -= rows
        self._burst.recorded += rows
        self.start_runs()
