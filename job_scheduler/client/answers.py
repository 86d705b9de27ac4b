"""What the answers of the service mean."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from job_scheduler.client.errors import error_of, unreadable
from job_scheduler.client.members import Query
from job_scheduler.client.shapes import Handler, Moment, Preview, Run, Task, read, read_all

T = TypeVar("T")


def understood(
    answer: httpx.Response, reader: Callable[[httpx.Response], T], also: int | None = None
) -> T:
    """Return what an answer says, whose status is a success, or is `also`.

    Raises:
        ApiError: it is neither, or the service answers otherwise.
    """
    if not answer.is_success and answer.status_code != also:
        raise error_of(answer)
    try:
        return reader(answer)
    except (ValueError, TypeError, KeyError):
        raise (unreadable if answer.is_success else error_of)(answer) from None


def task_of(answer: httpx.Response) -> Task:
    """Return the task that was answered, with its version."""
    return read(Task, answer.json(), etag=answer.headers.get("ETag"))


def tasks_of(answer: httpx.Response) -> list[Task]:
    """Return the tasks that were answered."""
    return read_all(Task, answer.json())


def page_of(answer: httpx.Response) -> tuple[list[Task], Query | None]:
    """Return a page of a list, and the query of the next one.

    Only the query: behind a proxy, the rest of the link need not lead back to the service.
    """
    link = answer.links.get("next")
    return tasks_of(answer), httpx.URL(link["url"]).params.multi_items() if link else None


def runs_of(answer: httpx.Response) -> list[Run]:
    """Return the attempts that were answered."""
    return read_all(Run, answer.json())


def moments_of(answer: httpx.Response) -> list[Moment]:
    """Return the times that were answered."""
    return read_all(Moment, answer.json())


def preview_of(answer: httpx.Response) -> Preview:
    """Return the preview that was answered."""
    document = answer.json()
    return read(Preview, document, next=read_all(Moment, document["next"]))


def handlers_of(answer: httpx.Response) -> list[Handler]:
    """Return the handlers that were answered."""
    return read_all(Handler, answer.json())


def message_of(answer: httpx.Response) -> str:
    """Return the sentence that was answered."""
    return str(answer.json()["message"])


def document_of(answer: httpx.Response) -> Mapping[str, Any]:
    """Return an object as it came.

    Raises:
        TypeError: it is none.
    """
    document = answer.json()
    if not isinstance(document, dict):
        raise TypeError(type(document).__name__)
    return document


def health_of(answer: httpx.Response) -> Mapping[str, Any]:
    """Return how the service does.

    Raises:
        KeyError, TypeError: it says something else.
    """
    document = document_of(answer)
    if "database" not in document:
        raise KeyError("database")
    return document
