"""For other programs: schedule tasks over HTTP, or in a database transaction of your own.

    from job_scheduler.client import Client

    with Client("http://127.0.0.1:8000") as client:
        task = client.create("send_report", payload={"hours": 24})
        print(client.wait(task.task_id, timeout=60).result)

``AsyncClient`` does the same with ``await``. ``enqueue`` inserts a task through a session of
SQLAlchemy. Importing this starts nothing, and loads only what is asked for: ``enqueue`` needs no
httpx, and the clients need no SQLAlchemy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job_scheduler.client.clients import AsyncClient, Client
    from job_scheduler.client.errors import (
        ApiError,
        Conflict,
        CutOff,
        EventsMissed,
        FieldError,
        Invalid,
        NotEnded,
        NotFound,
        ServiceUnavailable,
        Unreachable,
    )
    from job_scheduler.client.members import (
        EventFilter,
        NewTask,
        TaskChange,
        TaskFilter,
        TaskMatch,
        TaskMembers,
    )
    from job_scheduler.client.outbox import enqueue
    from job_scheduler.client.reports import ImportReport, Outcome, Refusal
    from job_scheduler.client.shapes import (
        Event,
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
    )
else:
    from importlib import import_module

    _MODULES = {
        "clients": ("AsyncClient", "Client"),
        "errors": (
            *("ApiError", "Conflict", "CutOff", "EventsMissed", "FieldError", "Invalid"),
            *("NotEnded", "NotFound", "ServiceUnavailable", "Unreachable"),
        ),
        "members": (
            *("EventFilter", "NewTask", "TaskChange", "TaskFilter", "TaskMatch", "TaskMembers"),
        ),
        "outbox": ("enqueue",),
        "reports": ("ImportReport", "Outcome", "Refusal"),
        "shapes": (
            *("Event", "Explanation", "Forecast", "ForecastInterval", "ForecastName", "Handler"),
            *("Moment", "Preview", "Reason", "Run", "Task"),
        ),
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Load what is asked for when it is asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "CutOff",
    "Event",
    "EventFilter",
    "EventsMissed",
    "Explanation",
    "FieldError",
    "Forecast",
    "ForecastInterval",
    "ForecastName",
    "Handler",
    "ImportReport",
    "Invalid",
    "Moment",
    "NewTask",
    "NotEnded",
    "NotFound",
    "Outcome",
    "Preview",
    "Reason",
    "Refusal",
    "Run",
    "ServiceUnavailable",
    "Task",
    "TaskChange",
    "TaskFilter",
    "TaskMatch",
    "TaskMembers",
    "Unreachable",
    "enqueue",
]
