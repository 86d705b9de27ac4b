"""The statements that find out what is known of a task, for whoever asks why.

A handful of them, each along an index, and none looks at more than some thousand rows, however many
tasks wait and however long the history is. (Instances are few: they have no index but their id.)
"""

from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    func,
    literal_column,
    select,
    text,
    union_all,
)

from job_scheduler.constants import (
    PRIORITY_MAX,
    InstanceState,
    OnCrash,
    RunOutcome,
    TaskStatus,
)
from job_scheduler.core import catch_up
from job_scheduler.core.columns import database_now
from job_scheduler.core.facts import (
    COUNTED_MAX,
    NAMED_MAX,
    Attempt,
    CatchUpFacts,
    Facts,
    History,
    InstanceFacts,
    Line,
    TaskFacts,
)
from job_scheduler.core.instances import instances
from job_scheduler.core.limited import rate_limits
from job_scheduler.core.limits import HANDLER, KEY, RATE
from job_scheduler.core.models import DUE_WHERE
from job_scheduler.core.records import task_runs
from job_scheduler.core.store import DUE_AT, DUE_COLUMNS, HANDLER_NAME, tasks
from job_scheduler.core.why_late import late_start
from job_scheduler.exceptions import TaskNotFound

ATTEMPTS_TOLD = 20
"""Attempts that are told, at most: the last ones."""
ATTEMPTS_LOOKED_AT = 10_000
"""Attempts among which these are looked for, at most: they stand in no order."""
_INSTANCES_MAX = 1_000
_KEYED_MAX = 500
"""Tasks with its key that are looked at, whether they held up a task that was late."""

_KIND = next(column for column in DUE_COLUMNS if column.name == "kind")
_SCHEDULED: ColumnElement[str] = literal_column("'scheduled'")
_RUNNING: ColumnElement[str] = literal_column("'running'")


def read_facts(connection: Connection, task_id: str) -> Facts:
    """Return what is known of a task at this instant.

    Raises:
        TaskNotFound: there is none.
    """
    row = connection.execute(
        select(*_TASK, tasks.c.priority, database_now().label("now")).where(
            tasks.c.task_id == task_id
        )
    ).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    facts = Facts(
        row.now,
        _task_of(row),
        _history(connection, task_id),
        _instances(connection),
        _catch_up(connection),
    )
    return replace(
        facts, line=_line(connection, facts, row.priority), key_holders=_held(connection, facts)
    )


_TASK = [
    DUE_AT.label("due") if name == "due" else _KIND if name == "kind" else tasks.c[name]
    for name in (field.name for field in fields(TaskFacts))
]


def _task_of(row: Any) -> TaskFacts:
    members = {field.name: getattr(row, field.name) for field in fields(TaskFacts)}
    members["status"] = TaskStatus(row.status)
    members["on_crash"] = row.on_crash and OnCrash(row.on_crash)
    return TaskFacts(**members)


def _history(connection: Connection, task_id: str) -> History:
    """Return the last attempts: they are looked for by their times, which have no index."""
    of_task = task_runs.c.task_id == task_id
    looked_at = (
        select(task_runs.c.claim_token, task_runs.c.started_at, task_runs.c.attempt)
        .where(of_task)
        .limit(ATTEMPTS_LOOKED_AT + 1)
        .subquery()
    )
    latest_first = (looked_at.c.started_at.desc(), looked_at.c.attempt.desc())
    last = (
        select(
            looked_at.c.claim_token,
            func.count().over().label("number"),
            func.row_number().over(order_by=latest_first).label("place"),
        )
        .order_by(*latest_first)
        .limit(ATTEMPTS_TOLD)
        .subquery()
    )
    rows = connection.execute(
        select(
            *(task_runs.c[field.name] for field in fields(Attempt)),
            last.c.number,
            # Each may be a megabyte.
            case((last.c.place == 1, task_runs.c.result)).label("result"),
        )
        .join_from(last, task_runs, and_(of_task, task_runs.c.claim_token == last.c.claim_token))
        .order_by(last.c.place.desc())
    ).all()
    if not rows:
        return History()
    if rows[-1].number > ATTEMPTS_LOOKED_AT:
        return History(is_read=False)
    attempts = [Attempt(*row[:4], RunOutcome(row.outcome)) for row in rows]
    return History(attempts, rows[-1].result)


def _instances(connection: Connection) -> list[InstanceFacts]:
    rows = connection.execute(
        select(*(instances.c[field.name] for field in fields(InstanceFacts)))
        .order_by(instances.c.heartbeat_at.desc())
        .limit(_INSTANCES_MAX)
    )
    return [
        InstanceFacts(row.instance_id, InstanceState(row.state), row.started_at, row.heartbeat_at)
        for row in rows
    ]


def _catch_up(connection: Connection) -> CatchUpFacts | None:
    row = catch_up.current(connection)
    if row is None:
        return None
    return CatchUpFacts(
        row.missed_at, row.covers_until, row.released_until, row.waits, row.finished_at is not None
    )


def _line(connection: Connection, facts: Facts, priority: int) -> Line | None:
    """Return what stands before a task that is due; None: it is not, or does not wait."""
    task = facts.task
    if task.status is not TaskStatus.Scheduled or task.due > facts.now:
        return None
    if task.missed_at is not None:
        before = and_(tasks.c.missed_at == task.missed_at, tasks.c.run_at < task.run_at)
        return Line(_count(connection, [_some(before)]))
    if task.blocked_by is not None:
        return _line_at_limit(connection, task.blocked_by, task.due, priority)
    rows = connection.execute(
        select(tasks.c.name, _KIND, func.count())
        .where(tasks.c.status == _RUNNING)
        .group_by(tasks.c.name, _KIND)
    )
    kinds = {(name, kind): count for name, kind, count in rows}
    return Line(_count(connection, _more_urgent(facts.now, task.due, priority)), kinds=kinds)


def _more_urgent(now: datetime, due: datetime, priority: int) -> list[Select[Any]]:
    """Return the looks for what is due and starts before: each along its index."""
    waits: ColumnElement[bool] = literal_column(f"({DUE_WHERE})")
    levels = [
        _some(waits, tasks.c.priority == literal_column(str(level)), now >= DUE_AT, raised=True)
        for level in range(PRIORITY_MAX, priority, -1)
    ]
    own = tasks.c.priority == literal_column(str(priority))
    return [*levels, _some(waits, own, due > DUE_AT, raised=priority > 0)]


def _some(*conditions: ColumnElement[bool], raised: bool = False) -> Select[Any]:
    """Return the look for some scheduled tasks, those of a `raised` priority in their index."""
    found = select(tasks.c.task_id).where(tasks.c.status == _SCHEDULED, *conditions)
    if raised:
        found = found.where(text("priority > 0"))
    return found.limit(COUNTED_MAX)


def _count(connection: Connection, looks: list[Select[Any]]) -> int:
    parts = union_all(*(select(look.subquery()) for look in looks)).limit(COUNTED_MAX).subquery()
    return int(connection.execute(select(func.count()).select_from(parts)).scalar_one())


def _line_at_limit(connection: Connection, limit: str, due: datetime, priority: int) -> Line:
    """Return who waits for a limit before a task, who runs under it, and when its rate has room."""
    blocked = tasks.c.blocked_by == limit
    more_urgent = [
        _some(blocked, tasks.c.priority > priority),
        _some(blocked, tasks.c.priority == priority, due > DUE_AT),
    ]
    before = _count(connection, more_urgent)
    if limit.startswith(RATE):
        following = connection.scalar(
            select(rate_limits.c.following_at).where(rate_limits.c.name == limit)
        )
        return Line(before, following=following)
    # Hidden from the index of keys, which holds all that ever ran with this one: what runs is few.
    under = (
        func.coalesce(tasks.c.concurrency_key, "") == limit.removeprefix(KEY)
        if limit.startswith(KEY)
        else HANDLER_NAME.is_not_distinct_from(limit.removeprefix(HANDLER))
    )
    holders = connection.execute(
        select(tasks.c.task_id, func.count().over().label("number"))
        .where(tasks.c.status == _RUNNING, under)
        .order_by(tasks.c.started_at)
        .limit(NAMED_MAX)
    ).all()
    running = holders[0].number if holders else 0
    return Line(before, running, [each.task_id for each in holders])


def _held(connection: Connection, facts: Facts) -> list[str]:
    """Return which tasks ran with its key while the task was late."""
    key, late = facts.task.concurrency_key, late_start(facts)
    if key is None or late is None:
        return []
    looked_at = (
        select(tasks.c.task_id, tasks.c.run_at, tasks.c.started_at, tasks.c.finished_at)
        .where(tasks.c.concurrency_key == key, tasks.c.run_at <= late.started_at)
        .order_by(tasks.c.run_at.desc(), tasks.c.task_id.desc())
        .limit(_KEYED_MAX)
        .subquery()
    )
    found = (
        select(looked_at.c.task_id)
        .where(
            looked_at.c.task_id != facts.task.task_id,
            looked_at.c.started_at < late.started_at,
            func.coalesce(looked_at.c.finished_at, late.started_at) > late.planned,
        )
        .order_by(looked_at.c.started_at.desc())
        .limit(NAMED_MAX)
    )
    return list(connection.scalars(found))
