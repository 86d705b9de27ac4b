"""The route of metrics: what this instance does, in the words of Prometheus."""

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from job_scheduler import __version__
from job_scheduler.core.fields import EXAMPLE_ID
from job_scheduler.dependencies import Services, ServicesDep
from job_scheduler.errors import problems

router = APIRouter(tags=["health"])

_EXAMPLE = f"""\
# HELP job_scheduler_info The release, and this instance.
# TYPE job_scheduler_info gauge
job_scheduler_info{{instance_id="{EXAMPLE_ID}",version="{__version__}"}} 1.0
# HELP job_scheduler_runs Runs that are under way.
# TYPE job_scheduler_runs gauge
job_scheduler_runs 3.0
# HELP job_scheduler_tasks_queued Due tasks that wait for capacity.
# TYPE job_scheduler_tasks_queued gauge
job_scheduler_tasks_queued 0.0
# HELP job_scheduler_tasks_held Tasks that are due soon, held by the timer.
# TYPE job_scheduler_tasks_held gauge
job_scheduler_tasks_held 12.0
# HELP job_scheduler_places_lost Places taken by handlers whose runs have timed out \
before they ended.
# TYPE job_scheduler_places_lost gauge
job_scheduler_places_lost 0.0
"""


class InstanceCollector(Collector):
    """Reads, whenever it is asked, what the parts of a running service know of themselves."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        services, dispatcher = self._services, self._services.dispatcher
        about = {"version": services.version, "instance_id": services.heartbeat.instance_id}
        yield InfoMetricFamily("job_scheduler", "The release, and this instance.", about)
        gauges = {
            "runs": ("Runs that are under way.", dispatcher.running),
            "tasks_queued": ("Due tasks that wait for capacity.", dispatcher.queued),
            "tasks_held": (
                "Tasks that are due soon, held by the timer.",
                len(services.timer),
            ),
            "places_lost": (
                "Places taken by handlers whose runs have timed out before they ended.",
                dispatcher.lost,
            ),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"job_scheduler_{name}", meaning, value)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics of this instance",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": _EXAMPLE}}}, **problems(500)},
)
async def metrics(services: ServicesDep) -> PlainTextResponse:
    """Tell what this instance does, in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(InstanceCollector(services))
    return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
