"""The no-op handler of the service itself (TASK_MODULES)."""

from benchmarks.peers.kit import ran
from job_scheduler import task


@task("noop")
async def noop(number: int) -> None:
    """Note that it has started."""
    ran(number)
