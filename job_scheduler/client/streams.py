"""What a client is told in a stream: one thing after the other, in bounded memory."""

import json
from collections.abc import Callable
from typing import Any, Unpack

import httpx

from job_scheduler.client.answers import lines_of, messages_of, understood
from job_scheduler.client.asking import Asking
from job_scheduler.client.errors import cut_off, events_missed, unreachable, unreadable
from job_scheduler.client.exchange import MORE, Ask, Call, Flow, Part, exchange, pause_before
from job_scheduler.client.members import EventFilter, TaskMatch, as_query
from job_scheduler.client.messages import Messages
from job_scheduler.client.running import stream
from job_scheduler.client.shapes import Event, Task, read

_SIGN_SECONDS = 15
"""While nothing changes, a sign of life comes so often."""


class Streams(Asking):
    """The streams of a client."""

    @stream
    def export(self, **filters: Unpack[TaskMatch]) -> Flow[Task]:
        """Go through the tasks that meet all filters, by `created_at`, in one request.

        What exists from its beginning to its end is in it, once. It ends only when all has come.

        Raises:
            CutOff: the service or the connection went away in the middle. It cannot go on: begin
                anew, and drop what has come.
        """
        ask = Ask("GET", "/tasks/export", as_query(filters), streamed=True)
        answer = yield from exchange(ask, self._address, self._retries)
        lines = understood(answer, lines_of)
        number = 0
        while True:
            part: Part = yield MORE
            if isinstance(part, httpx.RequestError):
                raise cut_off(answer, number, part) from part
            if not part:
                break
            try:
                found = [read(Task, json.loads(line)) for line in lines.ended(part)]
            except (ValueError, TypeError, KeyError):
                raise unreadable(answer) from None
            number += len(found)
            yield found
        if lines.rest:
            raise cut_off(answer, number, None)

    @stream
    def events(
        self,
        *,
        last_event_id: str | None = None,
        on_open: Callable[[bool], Any] | None = None,
        **filters: Unpack[EventFilter],
    ) -> Flow[Event]:
        """Go through the changes of tasks' states as they come, those that meet all filters.

        It has no end: leave the loop, or close the client (from another thread, it ends with the
        next sign of life). After a break it goes on by itself where it was, so that no change is
        missed and none comes twice; a service that stays away is tried up to `retries` times in a
        row. The `id` of an event as `last_event_id` goes on
        after it, also in another process. Where not even a sign of life comes for 15 seconds more
        than the client's timeout, the connection is taken for lost.

        `on_open` is called (and awaited by AsyncClient) when the stream has begun, and again after
        each break: with True where nothing is missing, and False where changes may have been
        missed. What it then reads of the list, all later changes follow.

        Raises:
            EventsMissed: changes may have been missed, and there is no `on_open` to be told.
        """
        place, pause, silent = last_event_id, 0.0, 0
        while True:
            headers = {} if place is None else {"Last-Event-ID": place}
            query = as_query(filters)
            ask = Ask("GET", "/events", query, None, headers, True, _SIGN_SECONDS, pause, True)
            answer = yield from exchange(ask, self._address, self._retries)
            messages = understood(answer, messages_of)
            silent += 1
            while (part := (yield MORE)) and isinstance(part, bytes):
                for after, told in _told(messages, part, answer):
                    silent, place = 0, after or place
                    if isinstance(told, Event):
                        yield [told]
                    elif on_open is not None:
                        yield Call(on_open, told)
                    elif not told:
                        raise events_missed()
            if silent > self._retries:
                ended = httpx.RemoteProtocolError("its stream of events ends at once")
                raise unreachable(self._address, part or ended)
            pause = pause_before(silent)


def _told(
    messages: Messages, part: bytes, answer: httpx.Response
) -> list[tuple[str, Event | bool]]:
    """Return the events that have come with a part of a stream, each with its place.

    Of its opening, which is an event too, return whether all is there.
    """
    try:
        return [
            (
                each.place,
                bool(json.loads(each.data)["complete"])
                if each.kind == "open"
                else read(Event, json.loads(each.data), id=each.place),
            )
            for each in messages.ended(part)
            if each.kind in ("open", "message")
        ]
    except (ValueError, TypeError, KeyError):
        raise unreadable(answer) from None
