"""/health, /livez, /healthz and /readyz: how the service does, for people and machines."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi.testclient import TestClient

from job_scheduler import __version__
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    SteppedClock,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    running,
)
from tests.support.services import RedisProcess, ServiceMissing, skip_or_fail, wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that the test may stop."""
    try:
        server = RedisProcess(tmp_path)
    except ServiceMissing as missing:
        skip_or_fail(str(missing))
    with server:
        yield server


def health_of(client: TestClient) -> dict[str, Any]:
    """What /health says."""
    report: dict[str, Any] = client.get("/health").json()
    return report


def assert_serving(client: TestClient) -> None:
    """Check that all say that work is accepted."""
    response = client.get("/health")
    assert response.status_code == 200
    for path in ("/livez", "/healthz", "/readyz"):
        probe = client.get(path)
        assert (probe.status_code, probe.json()) == (200, {"status": "ok"}), path


def assert_not_serving(client: TestClient) -> None:
    """Check that no work is accepted, while the process itself is well."""
    assert client.get("/health").status_code == 503
    response = client.get("/readyz")
    problem = assert_problem(response, 503, "UNAVAILABLE_503")
    assert "GET /health says why" in problem["detail"]
    assert int(response.headers["Retry-After"]) > 0
    for path in ("/livez", "/healthz"):
        probe = client.get(path)
        assert (probe.status_code, probe.json()) == (200, {"status": "ok"}), path


def test_sound_service_says_so_part_by_part(backend: Backend) -> None:
    with running(backend) as client:
        wait_until(lambda: health_of(client)["scheduler"]["last_sweep_at"])
        post(client, run_at=later(4))
        report = health_of(client)
        assert_serving(client)
    age = datetime.now(UTC) - parse_time(report["time"])  # noqa: TID251 (tests have a clock too)
    assert timedelta(0) <= age < timedelta(seconds=5)
    assert (report["status"], report["version"]) == ("ok", __version__)
    assert UUID(report["instance_id"])
    assert (report["database"]["status"], report["database"]["backend"]) == ("ok", backend.dialect)
    assert 0 < report["database"]["latency_ms"] < 2000
    assert report["database"]["since"] is None
    lock = "redis" if backend.redis_url else "in-process"
    assert report["lock"] == {"status": "ok", "backend": lock, "latency_ms": None, "since": None}
    scheduler = report["scheduler"]
    assert parse_time(scheduler.pop("last_sweep_at")) <= parse_time(report["time"])
    clock = report["clock"]
    if backend.dialect == "sqlite":  # whose clock is the machine's
        assert clock["error_ms"] == 0
    else:
        assert 0 < clock["error_ms"] < 100
    assert -clock["error_ms"] - 5 < clock["offset_ms"] <= 0
    assert scheduler == {
        "status": "ok",
        "stopping": False,
        "held": 1,
        "queued": 0,
        "running": 0,
        "lost": 0,
    }


@pytest.mark.redis
@pytest.mark.parametrize("outage", ["stopped", "hanging"])
def test_redis_away_degrades_and_recovers(
    store: Backend, registry: HandlerRegistry, own_redis: RedisProcess, outage: str
) -> None:
    registry.task("greet")(lambda: "Hello")
    with running(Backend(store.db_url, own_redis.url), registry) as client:
        assert health_of(client)["status"] == "ok"
        if outage == "stopped":
            own_redis.stop()
        else:
            own_redis.pause()
        report = health_of(client)
        assert (report["status"], report["lock"]["status"]) == ("degraded", "degraded")
        since = parse_time(report["lock"]["since"])
        assert since <= parse_time(report["time"])
        assert_serving(client)
        task_id = post(client, name="greet", run_at=later(0))["task_id"]
        assert finished(client, task_id)["result"] == "Hello"
        assert parse_time(health_of(client)["lock"]["since"]) == since
        if outage == "stopped":
            own_redis.start()
        else:
            own_redis.resume()
        wait_until(lambda: health_of(client)["status"] == "ok")
        assert health_of(client)["lock"]["since"] is None


@only_postgresql
@pytest.mark.parametrize("outage", ["gone", "silent"])
def test_database_away_is_unavailable_and_recovers(store: Backend, outage: str) -> None:
    with Proxy.before(store.db_url) as proxy:
        url = proxy.url_for(store.db_url)
        with running(Backend(url)) as client:
            wait_until(lambda: health_of(client)["scheduler"]["last_sweep_at"])
            assert_serving(client)
            if outage == "gone":
                proxy.cut()
            else:
                proxy.stall()
            report = health_of(client)
            assert (report["status"], report["database"]["status"]) == ("unavailable",) * 2
            assert report["database"]["latency_ms"] is None
            assert parse_time(report["database"]["since"]) <= parse_time(report["time"])
            assert_not_serving(client)
            proxy.heal()
            wait_until(lambda: health_of(client)["status"] == "ok", 20)
            assert_serving(client)
            assert finished(client, post(client, run_at=later(0))["task_id"])["status"] == "done"


def test_scheduler_that_stands_still_is_unavailable(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        assert_serving(client)
        scheduler.pause()
        report = health_of(client)
        assert (report["status"], report["scheduler"]["status"]) == ("unavailable",) * 2
        assert report["database"]["status"] == "ok"
        assert_not_serving(client)
        scheduler.resume()
        assert_serving(client)


def test_sweep_that_has_not_come_for_long_is_unavailable(store: Backend) -> None:
    clock = SteppedClock()
    with running(store, clock=clock) as client:
        wait_until(lambda: health_of(client)["scheduler"]["last_sweep_at"])
        assert_serving(client)

        def overdue() -> bool:
            # The next sweep, within a second, may come between the step and the question.
            clock.step(11)
            return bool(health_of(client)["scheduler"]["status"] == "unavailable")

        wait_until(overdue)
        wait_until(lambda: health_of(client)["status"] == "ok", what="the next sweep")
