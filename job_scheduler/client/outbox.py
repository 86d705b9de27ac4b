"""For other programs on the same database: schedule a task in a transaction of your own.

    from job_scheduler.client import enqueue

    with Session(engine) as session, session.begin():
        session.add(order)
        enqueue(session, "send_invoice", payload={"order": order.number})

The task runs if, and only if, that transaction commits. Importing this module starts nothing,
and needs neither the web framework nor the scheduler.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Connection, select, text
from sqlalchemy.orm import Session, scoped_session

from job_scheduler import strict_json
from job_scheduler.clock import SystemClock
from job_scheduler.constants import BODY_MAX_BYTES, CHANNEL
from job_scheduler.core.columns import NOW_SQL, database_time
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.fields import INSTANT_REMEDY, REMEDIES
from job_scheduler.core.new_task import NewTask
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.store import TaskRow, tasks
from job_scheduler.exceptions import InvalidBody, Refusal, TaskConflict, UniqueKeyTaken
from job_scheduler.identifiers import new_task_id

_NOTIFY = text(
    "SELECT pg_notify(:channel, '') "
    "WHERE :run_at <= clock_timestamp() + CAST('2 seconds' AS interval)"
).columns()


def enqueue(
    session: "Session | scoped_session[Any] | Connection",
    name: str,
    run_at: datetime | None = None,
    *,
    payload: Mapping[str, Any] | None = None,
    task_id: str | UUID | None = None,
    max_attempts: int | None = None,
    on_crash: str | None = None,
    retry_delay: float | Sequence[float] | None = None,
    retry_max_delay: float | None = None,
    start_before: datetime | None = None,
    timeout: float | None = None,
    priority: int = 0,
    concurrency_key: str | None = None,
    max_running: int | None = None,
    webhook: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
    on_done: Mapping[str, Any] | None = None,
    on_failed: Mapping[str, Any] | None = None,
    tags: Sequence[str] | None = None,
    unique_key: str | None = None,
    on_conflict: str = "reject",
    notify: bool = True,
) -> str:
    """Insert a task in the transaction of `session`, and return its id; nothing is committed.

    Where another task has the `unique_key` already, and has not ended, `on_conflict` decides: with
    ``return``, ``replace`` and ``reschedule`` the id is that of this task.

    The arguments mean what they mean in ``POST /tasks``; neither handlers nor settings are known
    here. So without `max_attempts` it is started once, and whether an address or a program is
    allowed shows when it runs. A time without offset is UTC; none at all is now, by the database's
    clock. A `task_id` of your own makes a repetition harmless: the same arguments again insert
    nothing (where `run_at` is left out, the first time stands).

    With `notify`, a task that is due within two seconds also tells the service so as soon as the
    transaction is committed (PostgreSQL's NOTIFY), so that it starts at once rather than within
    a second. PostgreSQL lets one transaction with a NOTIFY commit at a time, in all databases of
    the server: where you commit thousands of transactions a second, leave it off.

    Raises:
        ValueError: an argument cannot be used; the message names it and says what to do.
        TaskConflict: a task with this `task_id` exists already, with other arguments.
        UniqueKeyTaken: another task has the `unique_key`, and `on_conflict` is ``reject``, or it is
            too late for what it asks for.
    """
    connection = _connection(session)
    wanted = _validated(
        {
            "name": name,
            "run_at": _instant(connection, run_at).isoformat(),
            "payload": _document("payload", payload),
            "max_attempts": max_attempts,
            "on_crash": on_crash,
            "retry_delay": list(retry_delay) if isinstance(retry_delay, Sequence) else retry_delay,
            "retry_max_delay": retry_max_delay,
            "start_before": start_before and _in_utc("start_before", start_before).isoformat(),
            "timeout": timeout,
            "priority": priority,
            "concurrency_key": concurrency_key,
            "max_running": max_running,
            "webhook": _document("webhook", webhook),
            "command": list(command) if isinstance(command, tuple) else command,
            "on_done": _document("on_done", on_done),
            "on_failed": _document("on_failed", on_failed),
            "tags": list(tags) if isinstance(tags, tuple) else tags,
            "task_id": str(task_id) if isinstance(task_id, UUID) else task_id,
        }
        | ({} if unique_key is None else {"unique_key": unique_key, "on_conflict": on_conflict})
    )
    now = SystemClock().now()
    new = NewTask(wanted.task_id or new_task_id(now), wanted, wanted.run_at or now)
    stored = _insert(connection, new, any_time=run_at is None)
    if notify and connection.dialect.name == "postgresql":
        connection.execute(_NOTIFY, {"channel": CHANNEL, "run_at": stored["run_at"]})
    return str(stored["task_id"])


def _connection(session: "Session | scoped_session[Any] | Connection") -> Connection:
    if isinstance(session, Session | scoped_session):
        session = session.connection()
    if not isinstance(session, Connection):
        raise ValueError(  # noqa: TRY004 (as for every other argument)
            "session: Must be a Session or a Connection of SQLAlchemy. With an AsyncSession: "
            "await session.run_sync(enqueue, name, …)."
        )
    if session.dialect.name not in NOW_SQL:
        raise ValueError(
            f"session: Its database is {session.dialect.name}. Use the one where the service "
            "keeps its tasks, which is PostgreSQL or SQLite."
        )
    return session


def _instant(connection: Connection, run_at: datetime | None) -> datetime:
    if run_at is None:
        return database_time(connection)
    if not isinstance(run_at, datetime):
        raise ValueError(  # noqa: TRY004 (as for every other argument)
            "run_at: Must be a datetime, or None for now."
        )
    return _in_utc("run_at", run_at)


def _in_utc(name: str, moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(
            f"{name}: There is no such date and time in UTC. {INSTANT_REMEDY}"
        ) from None


def _document(name: str, value: Mapping[str, Any] | None) -> Any:
    """Return an argument as the service will read it back."""
    try:
        written = json.dumps(value if value is None else dict(value), separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: It has no JSON form ({error}). Pass a dict of plain JSON values."
        ) from None
    if len(written) > BODY_MAX_BYTES:
        raise ValueError(
            f"{name}: As JSON it is larger than {BODY_MAX_BYTES} bytes. Keep the data elsewhere, "
            "and pass where they are."
        )
    try:
        return strict_json.parse(written.encode())
    except InvalidBody as error:
        place = name if error.field is None else f"{name}.{error.field}"
        raise ValueError(f"{place}: {error}") from None


def _validated(arguments: dict[str, Any]) -> TaskCreate:
    try:
        return TaskCreate.model_validate(arguments)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, details['loc']))}: {REMEDIES.get(details['type'], details['msg'])}"
            for details in error.errors()
        ]
        raise ValueError("; ".join(problems)) from None


def _at(new: NewTask, run_at: datetime) -> NewTask:
    return replace(new, run_at=run_at)


def _insert(connection: Connection, new: NewTask, *, any_time: bool) -> TaskRow:
    [stored] = create_tasks(connection, [new])
    if isinstance(stored, TaskConflict) and any_time and not isinstance(stored, UniqueKeyTaken):
        # Now is later than it was the first time: compare all but that.
        first = connection.scalar(select(tasks.c.run_at).where(tasks.c.task_id == new.task_id))
        [stored] = create_tasks(connection, [_at(new, first or new.run_at)])
    if isinstance(stored, Refusal):
        raise stored
    return stored
