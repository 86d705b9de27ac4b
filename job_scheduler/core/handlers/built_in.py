"""The handlers that the service brings along; a user's own of the same name takes the place."""

from job_scheduler.clock import Clock
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.handlers.report import build_send_report
from job_scheduler.database import Database


def with_built_in(registry: HandlerRegistry, database: Database, clock: Clock) -> HandlerRegistry:
    """Return a registry of these handlers and the built-in ones."""
    built_in = HandlerRegistry()
    built_in.task("send_report")(build_send_report(database, clock))
    return registry.with_defaults(built_in)
