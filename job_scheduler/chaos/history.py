"""What was seen of a chaos run, as plain values: the checks need nothing else.

Times are Unix time; those of handlers and callers by the machine's clock, the others by the
database's.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from job_scheduler.chaos.ledger import Entry, Event
from job_scheduler.chaos.plan import FaultKind, PlannedTask
from job_scheduler.constants import RunOutcome, TaskStatus


class Deletion(StrEnum):
    """What the caller knows of a task's DELETE."""

    NeverAsked = "never asked for"
    Unknown = "asked for, and never answered"
    Refused = "refused"
    Done = "done"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller was told, and when."""

    at: float
    text: str


@dataclass(slots=True)
class Asked:
    """What a caller asked for and was told; `run_at` is Unix time."""

    task_id: str
    planned: PlannedTask
    run_at: float
    accepted_at: float | None = None
    deletion: Deletion = Deletion.NeverAsked
    deleted_at: float | None = None
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A task's row as it stands in the end."""

    status: TaskStatus
    attempt: int
    token: str | None
    due: float
    created_at: float
    result: Any


@dataclass(frozen=True, slots=True)
class Run:
    """An entry of ``task_runs``; `pid` is that of the instance."""

    token: str
    attempt: int
    outcome: RunOutcome
    scheduled_for: float
    started_at: float
    finished_at: float
    pid: int | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A task's row as the observer saw it on the way."""

    at: float
    status: TaskStatus
    attempt: int
    token: str | None


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was carried out; `pid` where it concerned one process."""

    kind: FaultKind
    begin: float
    end: float
    pid: int | None = None

    def overlaps(self, begin: float, end: float) -> bool:
        """Tell whether it was under way at some instant from `begin` to `end`."""
        return self.begin <= end and begin <= self.end


@dataclass(slots=True)
class TaskHistory:
    """All that is known of one task; `row` is None when it has none."""

    asked: Asked
    row: Row | None
    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)

    def of(self, event: Event) -> list[Entry]:
        """Return the ledger's entries of one kind."""
        return [entry for entry in self.entries if entry.event is event]


@dataclass(slots=True)
class History:
    """All that is known of a run; the database's clock showed `until` when rows were read.

    `clock_error` bounds by how much the two clocks may differ. `incidents` are what the
    service did as a whole that it must not do, such as ending by itself.
    """

    tasks: list[TaskHistory]
    faults: list[Fault]
    until: float
    clock_error: float
    incidents: list[str] = field(default_factory=list)
