"""What happens to tasks when an instance goes: killed, silent, or restarted in turn.

    python -m benchmarks.failover --server postgresql+psycopg2://postgres@127.0.0.1/postgres \
        --redis-url redis://127.0.0.1:6379/0

Three instances share the work. First, the time from an instance's end to the start of the next
attempt at what it ran: for SIGKILL (its process is seen to be gone, on the same host) and for
SIGSTOP (all that others see of an instance on another host that dies: silence). Then all three
are restarted by SIGTERM, one after the other, under a steady load: a caller that meets a stopping
instance asks the next one under the same Idempotency-Key, as a load balancer does.
"""

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.support.app import Backend, ServiceProcess, migrate, service_process
from tests.support.services import temporary_database, wait_until

INSTANCES = 3
AHEAD_SECONDS = 2.0
HANDLERS = """
import asyncio
from job_scheduler import task

@task("noop")
async def noop() -> None:
    pass

@task("long")
async def long() -> None:
    await asyncio.sleep(600)
"""


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, help="a PostgreSQL server's SQLAlchemy URL")
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--lease", type=float, default=15.0, help="LEASE_SECONDS")
    parser.add_argument("--runs", type=int, default=5, help="instances that are ended each way")
    parser.add_argument("--rate", type=int, default=200, help="tasks a second in the restart")
    parser.add_argument("--seconds", type=int, default=30, help="how long the restart has load")
    options = parser.parse_args()
    with cluster(options.server, options.redis_url, options.lease) as (backend, services):
        for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "SIGSTOP")):
            figures = [rescue(backend, services, number) for _ in range(options.runs)]
            print(
                f"{name} to the next attempt, lease {options.lease:g} s: median "
                f"{statistics.median(figures):.2f} s ({min(figures):.2f} to {max(figures):.2f})",
                flush=True,
            )
    with cluster(options.server, options.redis_url, options.lease) as (backend, services):
        asyncio.run(rolling_restart(backend, services, options.rate, options.seconds))


@contextmanager
def cluster(
    server: str, redis_url: str, lease: float
) -> Iterator[tuple[Backend, list[ServiceProcess]]]:
    """Instances on an empty database."""
    with ExitStack() as stack:
        url = stack.enter_context(temporary_database(server))
        migrate(url)
        backend = Backend(url, redis_url)
        environment = backend.environment() | {
            "TASK_MODULES": "failover_tasks",
            "LEASE_SECONDS": str(lease),
        }
        services = []
        for _ in range(INSTANCES):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (directory / "failover_tasks.py").write_text(HANDLERS)
            services.append(stack.enter_context(service_process(directory, environment)))
            services[-1].start().close()
        yield backend, services


def rescue(backend: Backend, services: list[ServiceProcess], number: signal.Signals) -> float:
    """End the instance that runs a task; return the seconds until its next attempt starts."""
    body = {"name": "long", "run_at": datetime.now(UTC).isoformat(), "max_attempts": 2}
    response = httpx.post(f"{services[0].url}/tasks", json=body, trust_env=False)
    task_id = response.raise_for_status().json()["task_id"]

    def attempt(wanted: int) -> list[dict[str, Any]]:
        return backend.sql(
            "SELECT pid, CAST(extract(epoch FROM scheduled_tasks.started_at) AS float) AS at "
            "FROM scheduled_tasks JOIN instances USING (instance_id) "
            "WHERE task_id = :id AND attempt = :attempt AND status = 'running'",
            id=task_id,
            attempt=wanted,
        )

    wait_until(lambda: attempt(1), 30, "the first attempt")
    (first,) = attempt(1)
    victim = next(service for service in services if service.process.pid == first["pid"])
    time.sleep(1.0)  # whatever its start has set going is over
    begin = time.time()
    victim.process.send_signal(number)
    wait_until(lambda: attempt(2), 60, "the second attempt")
    (second,) = attempt(2)
    victim.kill()
    backend.sql("DELETE FROM scheduled_tasks")
    victim.start().close()
    return float(second["at"]) - begin


async def rolling_restart(
    backend: Backend, services: list[ServiceProcess], rate: int, seconds: int
) -> None:
    """Restart each instance in turn while tasks are posted at an even rate; print the outcome."""
    number = rate * seconds
    turn = count()
    retried = 0

    async def post(client: httpx.AsyncClient, place: int, due: float) -> None:
        nonlocal retried
        body = {"name": "noop", "run_at": datetime.fromtimestamp(due, UTC).isoformat()}
        headers = {"Idempotency-Key": f'"{place}"'}
        while True:
            url = services[next(turn) % INSTANCES].url
            try:
                response = await client.post(f"{url}/tasks", json=body, headers=headers)
            except httpx.TransportError:
                retried += 1
                continue
            if response.status_code == 201:
                return
            if response.status_code != 503:
                response.raise_for_status()
            retried += 1

    async def restart_all() -> None:
        for service in services:
            await asyncio.sleep(seconds / (INSTANCES + 2))
            await asyncio.to_thread(service.stop)
            (await asyncio.to_thread(service.start)).close()

    limits = httpx.Limits(max_connections=16)
    async with (
        httpx.AsyncClient(trust_env=False, limits=limits, timeout=30) as client,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(restart_all())
        begin = time.time() + AHEAD_SECONDS
        for place in range(number):
            due = begin + place / rate
            await asyncio.sleep(max(0.0, due - AHEAD_SECONDS - time.time()))
            group.create_task(post(client, place, due))
    wait_until(lambda: backend.count("status IN ('scheduled', 'running')") == 0, 60, "all ends")
    rows = backend.sql(
        "SELECT attempt, status, CAST(extract(epoch FROM started_at "
        "- greatest(run_at, created_at)) AS float) AS late FROM scheduled_tasks"
    )
    runs = backend.sql("SELECT count(*) AS number FROM task_runs")[0]["number"]
    late = [row["late"] * 1000 for row in rows]
    percentiles = statistics.quantiles(late, n=100)
    print(
        f"rolling restart under {rate} tasks a second: {number:,} asked for, "
        f"{number - len(rows)} lost, {sum(row['attempt'] > 1 for row in rows)} run again, "
        f"{sum(row['status'] != 'done' for row in rows)} not done, {runs:,} runs on record, "
        f"{retried} requests repeated at another instance; lateness in ms: "
        f"p50 {percentiles[49]:.1f}, p99 {percentiles[98]:.1f}, worst {max(late):.1f}"
    )


if __name__ == "__main__":
    main()
