"""GET /metrics: what an instance does, as Prometheus reads it."""

import threading
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from job_scheduler import __version__
from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, later, post, running
from tests.support.services import wait_until


def metrics(client: Any) -> dict[str, float]:
    """The values, by name."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.documentation.endswith(".") for family in families)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_metrics_tell_what_runs_and_waits_and_what_is_lost(store: Backend) -> None:
    go_on = threading.Event()
    registry = HandlerRegistry()
    registry.task("hangs", timeout=0.2)(lambda: go_on.wait(30))
    registry.task("waits")(lambda: None)
    with running(store, registry, threads=1) as client:
        assert metrics(client) == {
            "job_scheduler_info": 1,
            "job_scheduler_runs": 0,
            "job_scheduler_tasks_queued": 0,
            "job_scheduler_tasks_held": 0,
            "job_scheduler_places_lost": 0,
        }
        post(client, name="hangs", run_at=later(0))
        wait_until(lambda: metrics(client)["job_scheduler_places_lost"] == 1)
        post(client, name="waits", run_at=later(0))
        post(client, name="waits", run_at=later(4))
        wait_until(lambda: metrics(client)["job_scheduler_tasks_queued"] == 1)
        assert metrics(client)["job_scheduler_tasks_held"] == 1
        assert metrics(client)["job_scheduler_runs"] == 0
        health = client.get("/health").json()
        assert f'instance_id="{health["instance_id"]}"' in client.get("/metrics").text
        assert f'version="{__version__}"' in client.get("/metrics").text
        go_on.set()
        wait_until(lambda: metrics(client)["job_scheduler_places_lost"] == 0)
