"""The route that streams what changes."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from job_scheduler.core.events import EventRow, Place
from job_scheduler.core.schemas_events import EXAMPLE_STREAM, EventQuery, TaskChanged
from job_scheduler.core.watching import Start
from job_scheduler.dependencies import ServicesDep
from job_scheduler.errors import problems
from job_scheduler.exceptions import InvalidField
from job_scheduler.queries import StrictRoute

router = APIRouter(tags=["tasks"], route_class=StrictRoute)

_BAD_PLACE = InvalidField(
    "header", "Last-Event-ID", "Not an id of ours. Take it from the last event, or leave it out."
)


async def _start(
    services: ServicesDep,
    last_event_id: Annotated[
        str | None,
        Header(
            description="The id of the last event that you have: the stream goes on after it. "
            "Browsers send it by themselves."
        ),
    ] = None,
) -> AsyncIterator[Start]:
    """Find the stream's beginning before the answer begins, so that a failure has a status."""
    last = None
    if last_event_id is not None and (last := Place.parse(last_event_id)) is None:
        raise _BAD_PLACE
    with services.watching.stream():
        yield await services.watching.start(last)


@router.get(
    "/events",
    operation_id="watchEvents",
    summary="Watch what changes",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "Server-sent events, for as long as you listen.",
            "content": {
                EventSourceResponse.media_type: {
                    "schema": {
                        "type": "string",
                        "description": "Events with `id` and `data`. The `data` of a change is a "
                        "JSON object with `task_id`, `name`, `status`, `former`, `attempt` and "
                        "`at`; that of the event `open` has `complete`.",
                    },
                    "example": EXAMPLE_STREAM,
                }
            },
        },
        **problems(_BAD_PLACE, 500, 503),
    },
)
async def watch_events(
    query: Annotated[EventQuery, Query()],
    start: Annotated[Start, Depends(_start)],
    services: ServicesDep,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the changes of tasks' states, of all instances, as server-sent events.

    The first event, `open`, tells from when on: with `"complete": false`, changes since your
    `Last-Event-ID` may be missing, and it is time to read the list anew. Each further one is a
    task whose status has changed: `former` is null for a new one, `status` for one that is gone.
    An event may come twice, after a reconnection, say; its id is the same then. While nothing
    changes, a comment comes every 15 seconds. Where changes may be missing, since you read too
    slowly or the database was away for long, the stream ends: come back with the last id.
    """
    opened = {"complete": start.is_complete}
    yield ServerSentEvent(event="open", id=str(start.place), data=opened)
    async for rows in services.watching.changes_after(start):
        for row in rows:
            if query.wants(row):
                yield _event(row)


def _event(row: EventRow) -> ServerSentEvent:
    place = Place(row["xid"], row["event_id"])
    told = TaskChanged.model_validate(row)
    return ServerSentEvent(id=str(place), raw_data=told.model_dump_json())
