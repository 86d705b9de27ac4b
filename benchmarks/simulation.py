"""python -m benchmarks.simulation: a burst on N instances and C cores, simulated.

It prints the tables of docs/scaling.md; with --write it puts them there, and the picture beside.

What is simulated are the batches, as the service makes them. Every instance holds all due tasks:
its own share first, then the others', each from its end; or all of them in one order. As many as
there are places for are in hand. Those just started ask Redis for their locks in one script; the
losers drop theirs and start the next. What is won is claimed in one transaction, its handlers
(which do nothing) run, and the results are recorded in another, 100 at most. Each of the three
batchers of an instance has one batch under way. Python has one core an instance (the GIL), Redis
one in all, PostgreSQL one a connection. When more of them are busy than there are cores, all run
slower alike. Commits that wait at one time share the next write to the disk.

Costs are means (`costs.py` says which are measured), nothing is drawn at random, and all is due at
one instant. Left out are what PostgreSQL loses to its own locks when many connections write, the
network, and that no more than 20,000 tasks are held at a time.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.chart import Bar, bar_chart
from benchmarks.costs import MEASURED, Costs
from benchmarks.dispatch import PYTHON, REDIS, Burst, Instance
from benchmarks.machine import DISK, Machine
from benchmarks.report import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- python -m benchmarks.simulation --write -->\n", "<!-- end -->\n"
_TASKS, _CORES, _INSTANCES = 10_000, (4, 8, 16), (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Outcome:
    """What came of a burst; `used` is the work done in seconds, by lane."""

    ran: Sequence[int]
    seconds: float
    used: Mapping[str, float]
    cores: float
    others: float

    @property
    def per_second(self) -> float:
        """Tasks a second, from the instant until the last one is recorded."""
        return len(self.ran) / self.seconds

    def cpu(self, part: str = "") -> float:
        """Return the CPU seconds of a part, or of all of them."""
        return sum(work for lane, work in self.used.items() if lane != DISK and part in lane)

    def shares(self) -> dict[str, float]:
        """Return how much each part is used, 1 being all that it can do."""
        python = max(work for lane, work in self.used.items() if PYTHON in lane)
        return {
            PYTHON: python / self.seconds,
            REDIS: self.used[REDIS] / self.seconds,
            DISK: self.used[DISK] / self.seconds,
            "cores": (self.cpu() / self.seconds + self.others) / self.cores,
        }


def simulate(
    instances: int,
    cores: float,
    tasks: int = _TASKS,
    costs: Costs | None = None,
    *,
    own_share: bool = False,
) -> Outcome:
    """Dispatch a burst, until the last task is recorded.

    With `own_share` each instance begins with a share of its own, as it does with what is due at
    one instant (``core/shares.py``). Without it all try all tasks in one order.
    """
    costs = costs or Costs()
    machine = Machine(cores - costs.others)
    burst = Burst(machine, costs)
    shares = [range(place, tasks, instances) for place in range(instances)]
    for place in range(instances):
        own, *others = shares[place:] + shares[:place]
        ordered = chain(own, *(reversed(share) for share in others))
        due = ordered if own_share else range(tasks)
        Instance(str(place), due, burst).begin()
    machine.run(lambda: burst.recorded == tasks)
    used = {lane: work / 1e6 for lane, work in machine.used.items()}
    return Outcome(burst.ran, machine.now / 1e6, used, cores, costs.others)


def tables() -> str:
    """Return all tables as Markdown."""
    heads = ["instances", "tasks", "simulated, tasks/s", "measured, tasks/s", "simulated is off by"]
    rows = []
    for point in MEASURED:
        outcome = simulate(point.instances, 2, point.tasks, own_share=True)
        off = outcome.per_second / point.per_second - 1
        rates = [f"{value:,.0f}" for value in (outcome.per_second, point.per_second)]
        used = [f"{value:.2f}" for value in (outcome.cpu(PYTHON), point.cpu)]
        rows.append([f"{point.instances}", f"{point.tasks:,}", *rates, f"{off:+.0%}", *used])
    heads += ["our CPU simulated, s", "our CPU measured, s"]
    return (
        f"On 2 cores, beside what was measured:\n\n{table(heads, rows)}\n\n"
        "Due one after the other: every instance tries every task:\n\n"
        f"{_predictions(own_share=False)}\n\n"
        "Due at one instant: each instance begins with a share of its own:\n\n"
        f"{_predictions(own_share=True)}\n"
    )


def _predictions(*, own_share: bool) -> str:
    rows = []
    for instances in _INSTANCES:
        cells = [f"{instances}"]
        for cores in _CORES:
            outcome = simulate(instances, cores, own_share=own_share)
            part, share = max(outcome.shares().items(), key=lambda item: item[1])
            cells.append(f"{outcome.per_second:,.0f} ({part} {share:.0%})")
        rows.append(cells)
    return table(["instances", *(f"{cores} cores, tasks/s" for cores in _CORES)], rows)


def picture() -> str:
    """Return the predictions for the largest machine as a chart."""
    bars = []
    for instances in _INSTANCES:
        for own_share in (False, True):
            outcome = simulate(instances, _CORES[-1], own_share=own_share)
            name = f"{instances}, own share" if own_share else f"{instances}, all tasks"
            bars.append(Bar(name, outcome.per_second, "" if own_share else "ours"))
    note = "simulated, tasks/s; by the number of instances, and what each of them tries"
    return bar_chart(f"A burst on {_CORES[-1]} cores", note, bars)


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    if not parser.parse_args().write:
        print(tables(), end="")
        return
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"(?s)(?<={BEGIN}).*(?={END})", lambda _: f"\n{tables()}\n", text))
    PAGE.with_suffix(".svg").write_text(picture())


if __name__ == "__main__":
    main()
