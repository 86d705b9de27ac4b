"""The raw figures of a run: kept as JSON, so that reports are made again without measuring."""

import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

Key = tuple[str, str, str]
"""Work, case, peer."""


@dataclass(frozen=True)
class Row:
    """One measurement: its figures, or why there are none."""

    run: int
    work: str
    case: str
    peer: str
    seconds: float
    figures: dict[str, float | str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Spread:
    """A figure over the runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Sum up some values, at least one."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass
class Results:
    """All that a report is made of."""

    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """By peer."""
    missing: dict[str, str] = field(default_factory=dict)
    """By peer: why it could not be installed."""
    rows: list[Row] = field(default_factory=list)
    plan: str = ""
    """What was to be measured, and where: only the same can go on."""

    def save(self, path: Path) -> None:
        """Write them, or leave the file as it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        given: dict[str, Any] = json.loads(path.read_text())
        rows = [Row(**row) for row in given.pop("rows")]
        return cls(rows=rows, **given)

    def values(self, work: str, case: str, peer: str, figure: str) -> dict[int, float]:
        """Return a figure by run, where it was measured."""
        return {
            row.run: float(row.figures[figure])
            for row in self.rows
            if (row.work, row.case, row.peer) == (work, case, peer) and figure in row.figures
        }

    def spread(self, work: str, case: str, peer: str, figure: str) -> Spread | None:
        """Return a figure over the runs; None where it was never measured."""
        values = self.values(work, case, peer, figure)
        return Spread.of(values.values()) if values else None

    def problem(self, work: str, case: str, peer: str) -> str:
        """Return why a measurement has failed, in whichever run."""
        found = [
            row.problem
            for row in self.rows
            if (row.work, row.case, row.peer) == (work, case, peer) and row.problem
        ]
        return found[0] if found else ""

    def cases(self, work: str) -> list[str]:
        """Return the cases of a work, in the order of the run."""
        return list(dict.fromkeys(row.case for row in self.rows if row.work == work))

    def peers(self, work: str) -> list[str]:
        """Return the peers that were asked for a work."""
        return list(dict.fromkeys(row.peer for row in self.rows if row.work == work))


def machine() -> dict[str, str]:
    """What it is measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "Date": datetime.now(UTC).date().isoformat(),
        "Processor": f"{os.cpu_count()} × {names[0] if names else platform.machine()}",
        "Memory": f"{pages / 2**30:.0f} GiB",
        "System": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
