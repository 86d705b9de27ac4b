"""The route that lists the handlers, and what /docs tells of them."""

import re
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter

from job_scheduler.core.handlers.registry import Handler
from job_scheduler.core.schemas_handlers import HandlerShown
from job_scheduler.dependencies import ServicesDep
from job_scheduler.errors import problems
from job_scheduler.queries import StrictRoute

router = APIRouter(prefix="/handlers", tags=["handlers"], route_class=StrictRoute)


@router.get(
    "",
    operation_id="listHandlers",
    summary="List handlers",
    response_model=list[HandlerShown],
    responses=problems(500),
)
async def list_handlers(services: ServicesDep) -> list[HandlerShown]:
    """List what tasks can run, by name, and what each takes."""
    return [
        HandlerShown(
            name=handler.name,
            description=handler.description,
            payload=handler.arguments.schema(),
            example=handler.arguments.example(),
            max_attempts=handler.options.max_attempts,
            retry_delay=handler.options.retry_delay,
            retry_max_delay=handler.options.retry_max_delay,
            timeout=handler.options.timeout,
            isolation=handler.options.isolation,
            max_running=handler.options.max_running,
            rate_limit=handler.options.rate_limit,
        )
        for handler in services.works.registry.all()
    ]


def document_handlers(openapi: dict[str, Any], handlers: Iterable[Handler]) -> None:
    """Put the payload's schema, and an example task, of each handler into an OpenAPI document."""
    schemas = openapi["components"]["schemas"]
    content = openapi["paths"]["/tasks"]["post"]["requestBody"]["content"]["application/json"]
    examples = content.setdefault("examples", {})
    for handler in handlers:
        key = re.sub("[^A-Za-z0-9._-]", "_", handler.name)
        schema = handler.arguments.schema(f"#/components/schemas/{key}.{{model}}")
        parts = {f"{key}.{part}": each for part, each in schema.pop("$defs", {}).items()}
        schemas.update(parts, **{f"{key}.payload": schema})
        task = {"name": handler.name, "run_at": "2027-07-01T10:00:00Z"}
        payload = handler.arguments.example()
        examples[handler.name] = {
            "summary": handler.name,
            "description": handler.description,
            "value": {**task, "payload": payload} if payload else task,
        }
