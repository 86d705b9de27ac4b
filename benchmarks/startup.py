"""Start-up time and memory with nothing scheduled, and with a million tasks.

    python -m benchmarks.startup --server postgresql+psycopg2://postgres@127.0.0.1/postgres

The two are started in turn, so that a drift of the machine meets both. Prints one row a start:
seconds until /readyz answers 200, and the process's resident memory three seconds later.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.app import Backend, migrate, service_process
from tests.support.services import temporary_database, wait_until

SETTLE_SECONDS = 3.0


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, help="a PostgreSQL server's SQLAlchemy URL")
    parser.add_argument("--redis-url", default=None)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with temporary_database(options.server) as empty, temporary_database(options.server) as full:
        for url in (empty, full):
            migrate(url)
        print(f"inserting {options.tasks:,} tasks …", flush=True)
        Backend(full).sql(
            "INSERT INTO scheduled_tasks (name, run_at) SELECT 'later', now() + interval '1 day' "
            "+ n * interval '1 second' FROM generate_series(1, :tasks) AS n",
            tasks=options.tasks,
        )
        figures: dict[int, list[tuple[float, float]]] = {0: [], options.tasks: []}
        for run in range(options.runs):
            for tasks, url in ((0, empty), (options.tasks, full)):
                seconds, megabytes = measure(Backend(url, options.redis_url))
                figures[tasks].append((seconds, megabytes))
                print(f"run {run + 1}: {tasks:>9,} tasks: {seconds:.2f} s, {megabytes:.1f} MB")
    for tasks, rows in figures.items():
        for figure, unit in ((0, "s"), (1, "MB")):
            values = [row[figure] for row in rows]
            print(
                f"{tasks:>9,} tasks: median {statistics.median(values):.2f} {unit} "
                f"({min(values):.2f} to {max(values):.2f})"
            )


def measure(backend: Backend) -> tuple[float, float]:
    """Start the service once; return seconds until it is ready, and megabytes soon after."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        with service_process(Path(directory), backend.environment()) as service:
            with service.start() as client:
                wait_until(lambda: client.get("/readyz").status_code == 200)
                seconds = time.monotonic() - begin
                settled = time.monotonic() + SETTLE_SECONDS
                wait_until(lambda: time.monotonic() > settled)
                megabytes = resident_megabytes(service.process.pid)
            service.stop()
    return seconds, megabytes


def resident_megabytes(pid: int) -> float:
    """Return a process's resident memory (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
