"""The application: its routes, and the lifespan that starts and stops the service behind them."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from apscheduler.schedulers.base import BaseScheduler
from fastapi import FastAPI

from job_scheduler import __version__
from job_scheduler.assembly import start
from job_scheduler.clock import Clock
from job_scheduler.config import Settings, load_settings
from job_scheduler.core import (
    api,
    batch_api,
    events_api,
    explain_api,
    forecast_api,
    handlers_api,
    health,
    manage_api,
    many_api,
    metrics_api,
    recovery_api,
    runs_api,
    times_api,
    transfer_api,
)
from job_scheduler.core.handlers.registry import HandlerRegistry, registered
from job_scheduler.core.handlers_api import document_handlers
from job_scheduler.core.locks import TaskLock
from job_scheduler.core.scheduler import LoopScheduler
from job_scheduler.errors import add_error_handlers, add_problem_schema
from job_scheduler.exceptions import (
    DatabaseUnavailable,
    StartError,
)
from job_scheduler.logger import configure_logging
from job_scheduler.web.docs import add_docs

_logger = logging.getLogger(__name__)

_DESCRIPTION = """
Schedule tasks over HTTP: each runs at its time, once, and its result is kept.

Post a task, look at it again after its time, and see its result:
`scheduled` → `running` → `done` or `failed`.

Every error is a problem document (RFC 9457) with a stable `error_code`. A parameter that a route
does not have is refused (`VALIDATION_422`), and so is one that is given twice and takes one value.
"""

_TAGS = [
    {"name": "tasks", "description": "Create, list, show and cancel tasks."},
    {"name": "handlers", "description": "What tasks can run."},
    {"name": "recovery", "description": "What becomes of tasks that a downtime made overdue."},
    {"name": "health", "description": "How the service does."},
]


def create_app(
    settings: Settings | None = None,
    *,
    registry: HandlerRegistry = registered,
    scheduler: Callable[[], BaseScheduler] = LoopScheduler,
    clock: Clock | None = None,
    lock: TaskLock | None = None,
) -> FastAPI:
    """Build the application; nothing is read, opened or started before its lifespan begins.

    Without `settings` they are read from the environment then. `registry` holds the task
    handlers beside the built-in ones, `scheduler` builds the APScheduler that keeps the time,
    `clock` takes the place of the database's, `lock` that of the one that ``REDIS_URL`` asks for.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            try:
                chosen = settings or load_settings()
                configure_logging(chosen.log_level)
                services = await start(stack, chosen, registry, scheduler(), clock, lock)
            except (StartError, DatabaseUnavailable) as error:
                app.state.start_failure = str(error)
                raise
            app.state.registry = services.works.registry
            app.openapi_schema = None  # It names the handlers, which are all known now.
            yield {"services": services}

    app = FastAPI(
        title="Job Scheduler Service",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for module in (
        *(transfer_api, api, batch_api, times_api, explain_api, manage_api, many_api, runs_api),
        *(events_api, forecast_api, handlers_api, recovery_api, health, metrics_api),
    ):
        # The routes themselves: an included router is gone through for each request anew.
        app.router.routes.extend(module.router.routes)
    app.state.registry = registry
    add_docs(app)
    add_error_handlers(app)
    _complete_openapi(app)
    return app


def _complete_openapi(app: FastAPI) -> None:
    """Add the schema of problems, and the handlers, to the OpenAPI document that FastAPI makes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            add_problem_schema(generate())
            document_handlers(generate(), app.state.registry.all())
            paths = generate()["paths"]
            for path in ("/tasks/export", "/tasks/import"):
                # First among the routes, lest "export" be taken for a task's id; last to a reader.
                paths[path] = paths.pop(path)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


app = create_app()
