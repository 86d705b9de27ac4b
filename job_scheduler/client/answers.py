"""What the answers of the service mean."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import httpx

from job_scheduler.client import lines, messages
from job_scheduler.client.errors import boundless, error_of, unreadable
from job_scheduler.client.members import Query
from job_scheduler.client.shapes import (
    Explanation,
    Forecast,
    ForecastInterval,
    ForecastName,
    Handler,
    Moment,
    Preview,
    Reason,
    Run,
    Task,
    read,
    read_all,
)

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


def part_of(answer: httpx.Response) -> tuple[int, str | None]:
    """Return how many tasks it was, and the cursor of those that are left."""
    document = answer.json()
    return int(document["tasks"]), document["cursor"]


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


def explanation_of(answer: httpx.Response) -> Explanation:
    """Return the reasons that were answered."""
    document = answer.json()
    return read(Explanation, document, reasons=list(map(_reason_of, document["reasons"])))


def _reason_of(document: Mapping[str, Any]) -> Reason:
    times = [datetime.fromisoformat(each) for each in document.get("times") or ()]
    return read(Reason, document, times=times or None)


def forecast_of(answer: httpx.Response) -> Forecast:
    """Return the forecast that was answered."""
    document = answer.json()
    return read(
        Forecast,
        document,
        begin=datetime.fromisoformat(document["from"]),
        intervals=list(map(_interval_of, document["intervals"])),
        peaks=list(map(_interval_of, document["peaks"])),
    )


def _interval_of(document: Mapping[str, Any]) -> ForecastInterval:
    return read(ForecastInterval, document, names=read_all(ForecastName, document["names"]))


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


def lines_of(answer: httpx.Response) -> lines.Cut:
    """Return what takes the lines of an answer that is still to come, and tells where it ends.

    Raises:
        ValueError: it has no lines.
        CutOff: its end could not be told from a connection that is cut off.
    """
    _insist_on(answer, lines.MEDIA_TYPE)
    tells_end = {"transfer-encoding", "content-length"} & answer.headers.keys()
    if answer.http_version.startswith("HTTP/1") and not tells_end:
        raise boundless(answer)
    return lines.Cut()


def messages_of(answer: httpx.Response) -> messages.Messages:
    """Return what takes the messages of an answer that is still to come.

    Raises:
        ValueError: it has none.
    """
    _insist_on(answer, messages.MEDIA_TYPE)
    return messages.Messages()


def _insist_on(answer: httpx.Response, media_type: str) -> None:
    told = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if told != media_type:
        raise ValueError(told)
