"""What the steps of a dispatch cost: the figures that the simulation goes by, and must agree with.

Measured on 2 cores with PostgreSQL 15 (fsync and synchronous_commit on) and Redis 7, the
benchmark's own programs beside them; the bursts are those of docs/benchmarks.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A burst on 2 cores, the median of three runs; `cpu` is that of our processes in seconds."""

    instances: int
    tasks: int
    per_second: float
    cpu: float


MEASURED = (
    Measured(1, 10_000, 8_696, 0.89),
    Measured(2, 10_000, 10_200, 1.06),
    Measured(3, 10_000, 9_436, 1.31),
    Measured(1, 60_000, 8_920, 5.45),
)


@dataclass(frozen=True)
class Costs:
    """Microseconds of CPU, but for the last two. What is not measured is said to be set."""

    python_batch: float = 400
    """Around each batch. Measured at small batches: 300 to 500."""
    python_held: float = 18
    """A task that is held, whoever runs it: reading it, again in each sweep, and putting it in its
    place. It is what a second and a third instance add to the CPU of our processes (17 and 25)."""
    python_lock: float = 10
    """A task that is tried. Where each instance tries all, a further one added 26 to 32."""
    python_claim: float = 26
    python_record: float = 26
    """The rest of the 89 that one instance uses a task. Their sum is measured, the split is set."""
    redis_lock: float = 7
    """A task that is tried: its part of the script."""
    postgresql_claim: float = 14.5
    postgresql_record: float = 20.5
    postgresql_plan: float = 150
    """A statement of 100 rows takes 1.6 and 2.2 ms, of which 0.15 ms to be planned."""
    commit: float = 400
    """Microseconds, without CPU. An INSERT of one row and its COMMIT take 460 to 560; how much of
    that is the INSERT is set."""
    others: float = 0.4
    """Cores. Set, so that it agrees: what the benchmark, the kernel and the changes between
    processes take. With 0 it is 7, 25 and 23 per cent too fast on 1, 2 and 3 instances."""
