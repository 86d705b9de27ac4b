"""What the steps of a dispatch cost: the figures that the simulation goes by, and must agree with.

Measured on 2 cores with PostgreSQL 15 (fsync and synchronous_commit on) and Redis 7, the
benchmark's own programs beside them. In batches of 100, unless it says otherwise.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A burst on 2 cores, run once; `cpu` is that of our processes in seconds, where known."""

    instances: int
    tasks: int
    per_second: float
    cpu: float | None = None


MEASURED = (
    Measured(1, 10_000, 9_793, 0.72),
    Measured(2, 10_000, 10_496, 0.98),
    Measured(3, 10_000, 8_927, 1.37),
    Measured(1, 60_000, 10_900),
    Measured(1, 1_000_000, 8_500),
)


@dataclass(frozen=True)
class Costs:
    """Microseconds of CPU, but for the last two. What is not measured is said to be set."""

    python_batch: float = 400
    """Around each batch. Measured at small batches: 300 to 500."""
    python_lock: float = 25
    """A task, up to the lock's answer: the 26 to 32 that each loser adds to the CPU of our
    processes (0.72, 0.98, 1.37 s for 10,000 tasks on 1, 2, 3), less its share of the batch."""
    python_claim: float = 17
    python_record: float = 18
    """The rest of the 72 that one instance uses a task. Their sum is measured, the split is set."""
    redis_lock: float = 7
    """A task that is tried: its part of the script."""
    postgresql_claim: float = 12
    postgresql_record: float = 19.5
    postgresql_plan: float = 150
    """A statement of 100 rows takes 1.2 and 1.95 ms, and 0.15 ms to be planned."""
    commit: float = 400
    """Microseconds, without CPU. An INSERT of one row and its COMMIT take 460 to 500; how much of
    that is the INSERT is set."""
    others: float = 0.4
    """Cores. Set, so that it agrees: what the benchmark, the sweeps, the kernel and the changes
    between processes take. With 0 it is 8, 25 and 20 per cent too fast on 1, 2 and 3 instances."""
