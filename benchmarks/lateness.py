"""How late tasks start: claim minus run_at, at a steady rate.

    python -m benchmarks.lateness --server postgresql+psycopg2://postgres@127.0.0.1/postgres \
        --redis-url redis://127.0.0.1:6379/0 --rate 200 --seconds 20

Every task is posted over HTTP about three seconds before its time, while the others run; the
load generator shares the machine. Without --server: the embedded SQLite.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx

from tests.support.app import Backend, migrate, service_process
from tests.support.services import temporary_database, wait_until

AHEAD_SECONDS = 3.0
HANDLERS = """
from job_scheduler import task

@task("noop")
async def noop() -> None:
    pass
"""


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default=None, help="a PostgreSQL server's SQLAlchemy URL")
    parser.add_argument("--redis-url", default=None)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    number = options.rate * options.seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "noop_tasks.py").write_text(HANDLERS)
        with database(options.server, directory) as url:
            migrate(url)
            backend = Backend(url, options.redis_url)
            environment = backend.environment() | {"TASK_MODULES": "noop_tasks"}
            with service_process(directory, environment) as service:
                service.start().close()
                print(f"posting {number:,} tasks, {options.rate} a second …", flush=True)
                asyncio.run(post_all(service.url, options.rate, number))
                wait_until(lambda: ended(backend) == number, 60, "the end of all tasks")
                service.stop()
            report(backend, number)


@contextmanager
def database(server: str | None, directory: Path) -> Iterator[str]:
    """An empty database: on the server, or a SQLite file."""
    if server is None:
        yield f"sqlite:///{directory / 'tasks.db'}"
    else:
        with temporary_database(server) as url:
            yield url


async def post_all(url: str, rate: int, number: int) -> None:
    """Post tasks at an even rate, each about three seconds ahead of its time."""
    begin = time.time() + AHEAD_SECONDS
    limits = httpx.Limits(max_connections=16)
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=30) as client,
        asyncio.TaskGroup() as posts,
    ):
        for place in range(number):
            due = begin + place / rate
            await asyncio.sleep(max(0.0, due - AHEAD_SECONDS - time.time()))
            posts.create_task(post(client, due))


async def post(client: httpx.AsyncClient, due: float) -> None:
    """Post one task."""
    run_at = datetime.fromtimestamp(due, UTC).isoformat()
    response = await client.post("/tasks", json={"name": "noop", "run_at": run_at})
    response.raise_for_status()


def ended(backend: Backend) -> int:
    """How many tasks are done."""
    rows = backend.sql("SELECT count(*) AS number FROM scheduled_tasks WHERE status = 'done'")
    return int(rows[0]["number"])


def report(backend: Backend, number: int) -> None:
    """Print percentiles of lateness, in milliseconds."""
    columns = ("created_at", "run_at", "started_at")
    seconds = "extract(epoch FROM {0})"
    if backend.dialect == "sqlite":
        seconds = "(julianday({0}) - 2440587.5) * 86400"
    chosen = ", ".join(f"CAST({seconds.format(name)} AS float) AS {name}" for name in columns)
    rows = backend.sql(f"SELECT {chosen}, attempt FROM scheduled_tasks")  # noqa: S608
    # A task that the load generator posted after its time could not start before it was stored.
    values = [(row["started_at"] - max(row["run_at"], row["created_at"])) * 1000 for row in rows]
    behind = sum(row["created_at"] > row["run_at"] for row in rows)
    percentiles = statistics.quantiles(values, n=100)
    again = sum(row["attempt"] != 1 for row in rows)
    print(
        f"{number:,} tasks, {again} not run exactly once; lateness in ms: "
        f"p50 {percentiles[49]:.1f}, p99 {percentiles[98]:.1f}, worst {max(values):.1f}, "
        f"earliest {min(values):.1f}; {behind} were posted after their time"
    )


if __name__ == "__main__":
    main()
