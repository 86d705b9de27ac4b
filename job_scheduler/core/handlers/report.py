"""The built-in handler ``send_report``: how the service's own tasks have fared."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, Float, extract, func, select

from job_scheduler.clock import Clock, in_iso_8601
from job_scheduler.core.claims import DUE
from job_scheduler.core.fields import Instant
from job_scheduler.core.store import tasks
from job_scheduler.database import PATIENCE_SECONDS, Database

_LATEST_FAILURES = 10
_HOURS_MAX = 24 * 366

Report = dict[str, Any]


def build_send_report(database: Database, clock: Clock) -> Callable[..., Report | str]:
    """Return the handler, which reads the tasks from `database`."""

    def send_report(
        hours: Annotated[float, Field(gt=0, le=_HOURS_MAX)] = 24.0,
        until: Instant | None = None,
        format: Literal["json", "markdown"] = "json",  # noqa: A002 (the payload's member)
    ) -> Report | str:
        """Report on the tasks whose run_at lies in the `hours` before `until` (default: now)."""
        end = until or clock.now()
        try:
            start = end - timedelta(hours=hours)
        except OverflowError:
            raise ValueError(f"until must lie {hours:g} hours after the year 1 began") from None
        report = database.read_here(PATIENCE_SECONDS, _report, start, end)
        return report if format == "json" else _markdown(report)

    return send_report


def _report(connection: Connection, start: datetime, end: datetime) -> Report:
    period = (tasks.c.run_at >= start) & (tasks.c.run_at <= end)
    late = _lateness(connection.dialect.name)
    started = period & tasks.c.started_at.is_not(None)
    counts = connection.execute(
        select(tasks.c.status, func.count()).where(period).group_by(tasks.c.status)
    )
    number, worst = connection.execute(select(func.count(), func.max(late)).where(started)).one()
    # The middle one in order: neither database need send us all of them.
    median = connection.scalar(
        select(late).where(started).order_by(late).limit(1).offset(max(number - 1, 0) // 2)
    )
    failures = connection.execute(
        select(tasks.c.task_id, tasks.c.name, tasks.c.finished_at, tasks.c.result)
        .where(period & (tasks.c.status == "failed"))
        .order_by(tasks.c.finished_at.desc())
        .limit(_LATEST_FAILURES)
    )
    return {
        "from": in_iso_8601(start),
        "until": in_iso_8601(end),
        "tasks_by_status": dict(counts.all()),
        "lateness_seconds": {
            "tasks": number,
            "median": None if median is None else round(float(median), 6),
            "worst": None if worst is None else round(float(worst), 6),
        },
        "latest_failures": [
            {
                "task_id": row.task_id,
                "name": row.name,
                "finished_at": row.finished_at and in_iso_8601(row.finished_at),
                "error": row.result,
            }
            for row in failures
        ],
    }


def _lateness(dialect: str) -> ColumnElement[float]:
    """Return, as SQL, the seconds from when a task was due to when it started."""
    if dialect == "sqlite":
        days = func.julianday(tasks.c.started_at) - func.julianday(DUE)
        return (days * 86_400.0).cast(Float)
    return extract("epoch", tasks.c.started_at - DUE).cast(Float)


def _markdown(report: Report) -> str:
    lateness = report["lateness_seconds"]
    lines = [
        f"# Tasks from {report['from']} until {report['until']}",
        "",
        "| status | tasks |",
        "| --- | ---: |",
        *(f"| {status} | {count} |" for status, count in sorted(report["tasks_by_status"].items())),
        "",
        f"Started: {lateness['tasks']}; late by {lateness['median']} s in the median, "
        f"{lateness['worst']} s at worst."
        if lateness["tasks"]
        else "None has started.",
        "",
        "## Latest failures",
        "",
    ]
    lines += [
        f"- {failure['finished_at']} **{failure['name']}** ({failure['task_id']}): "
        f"{failure['error']}"
        for failure in report["latest_failures"]
    ] or ["None."]
    return "\n".join(lines)
