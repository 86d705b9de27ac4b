"""The ledger: what handlers did, told by themselves, and kept apart from database and Redis.

An append-only file, one JSON document a line. Each is one write(2) with O_APPEND, which the
kernel does as a whole and keeps when the writer is killed; so the order of the lines is the
order in which things happened, over all processes.
"""

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

LEDGER_VARIABLE = "JOB_SCHEDULER_CHAOS_LEDGER"
"""The environment variable that tells handlers where the ledger is."""


class Event(StrEnum):
    """What a handler has to say."""

    Start = "start"
    End = "end"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger; `at` is Unix time by the machine's clock."""

    event: Event
    at: float
    task_id: str
    attempt: int
    token: str
    pid: int


def append(path: str, entry: Entry) -> None:
    """Add a line."""
    line = json.dumps(asdict(entry)).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Entry]:
    """Return all entries, in the order in which they were made."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [Entry(**(each | {"event": Event(each["event"])})) for each in found]
