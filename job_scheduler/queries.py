"""Queries of requests: what stands there is a parameter of the route, once unless it is a list.

FastAPI ignores what it does not know, and takes the last of what is given twice: `hour=168` would
be 24 hours, and `DELETE /tasks/{task_id}?dry_run=true` no dry run.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_origin

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.datastructures import QueryParams

from job_scheduler.exceptions import Fault, InvalidFields


class StrictRoute(APIRoute):
    """A route that takes the parameters it has, and no others."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler behind the examination of the query."""
        handle = super().get_route_handler()
        known = _parameters(self)

        async def handle_strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                _examine(request.query_params, known)
            return await handle(request)

        return handle_strictly


def _parameters(route: APIRoute) -> dict[str, bool]:
    """Return the names of a route's parameters, and whether each may be repeated."""
    fields: dict[str, FieldInfo] = {}
    for field in route.dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields |= kind.model_fields
        else:
            fields[field.alias] = field.field_info
    return {name: get_origin(info.annotation) is list for name, info in fields.items()}


def _examine(query: QueryParams, known: Mapping[str, bool]) -> None:
    """Refuse a query that holds what is not known, or not known to be a list, twice.

    Raises:
        InvalidFields: it does; all of it is named.
    """
    faults = []
    correction = f", or correct its name: {', '.join(known)}" if known else ""
    for name, times in Counter(name for name, _ in query.multi_items()).items():
        if name not in known:
            words = f"There is no such field here. Remove it{correction}."
            faults.append(Fault("query", name, words))
        elif times > 1 and not known[name]:
            words = f"{name} is given {times} times. Keep one of them."
            faults.append(Fault("query", name, words))
    if faults:
        raise InvalidFields(faults)
