"""Cursors: how a list is gone on with, bound to the filters and the order that it began with."""

import base64
from hashlib import blake2s

from job_scheduler.constants import Sort
from job_scheduler.core.fields import parse_instant
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.listing import Place
from job_scheduler.exceptions import InvalidField
from job_scheduler.identifiers import parse_uuid


def write_cursor(place: Place, wanted: TaskFilter, sort: Sort) -> str:
    """Return a cursor: where a list of these tasks goes on."""
    parts = (_mark(wanted, sort), place.moment.isoformat(), place.task_id)
    return base64.urlsafe_b64encode("|".join(parts).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, wanted: TaskFilter, sort: Sort) -> Place | None:
    """Return the place that a cursor tells of; None: the beginning.

    Raises:
        InvalidField: it is none of ours, or belongs to another list.
    """
    if cursor is None:
        return None
    remedy = "Not a cursor of ours. Take it from the answer before, or leave it out."
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        mark, moment, task_id = base64.b64decode(padded, b"-_", validate=True).decode().split("|")
        place = Place(parse_instant(moment), parse_uuid(task_id) or "")
        if mark == _mark(wanted, sort) and place.task_id:
            return place
        if place.task_id:
            remedy = "It belongs to other filters, or another sort. Begin this list without it."
    except ValueError:
        pass
    raise InvalidField("query", "cursor", remedy)


def _mark(wanted: TaskFilter, sort: Sort) -> str:
    """Return a few letters by which a cursor shows which list it belongs to."""
    return blake2s(repr((wanted, sort)).encode(), digest_size=6).hexdigest()
