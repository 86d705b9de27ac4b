"""Claim and record: the two statements that make a task run once.

A claim moves ``scheduled`` to ``running`` and puts a new token on the row; a record moves
``running`` to its end only where that token still stands. Either may be repeated, late or
done by two at once without harm. Many go in one statement each: the batch is passed as one
JSON parameter, so that the statement's text never changes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, text

from job_scheduler import strict_json
from job_scheduler.constants import TaskStatus
from job_scheduler.core.models import NOW_SQL, UtcDateTime
from job_scheduler.core.store import DueTask, tasks


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """The wish to run a task, under a token that was never used before."""

    task_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that is ours to run, until its result is recorded under the same token."""

    task_id: str
    token: str
    name: str
    payload: dict[str, Any]
    due: datetime
    started_at: datetime
    attempt: int


@dataclass(frozen=True, slots=True)
class Record:
    """How a claimed run ended."""

    task_id: str
    token: str
    status: TaskStatus
    result: Any


def claim(
    connection: Connection,
    instance_id: str,
    requests: Sequence[ClaimRequest],
    *,
    repeated: bool = False,
) -> list[Claim | DueTask | None]:
    """Claim what is due, for an instance that is alive; answer in the order of the requests.

    For each: the claim; or the task, when it is still scheduled but not to be had at this
    moment (not due yet by the database's clock, or its row is locked); or None when it is
    gone, taken or moved.

    `repeated` says that the same requests were made before with an unknown outcome: what they
    achieved is found by the token, and a row that the former connection may still hold locked
    is waited for.
    """
    statements = _CLAIM_REPEATED if repeated else _CLAIM
    given = strict_json.dumps([asdict(request) for request in requests])
    rows = connection.execute(
        statements[connection.dialect.name], {"given": given, "instance_id": instance_id}
    ).all()  # at once: on SQLite, a statement left half read would hold up all that follow
    claimed = {
        row.claim_token: Claim(
            task_id=row.task_id,
            token=row.claim_token,
            name=row.name,
            payload=row.payload or {},
            due=row.due,
            started_at=row.started_at,
            attempt=row.attempt,
        )
        for row in rows
    }
    waiting: dict[str, DueTask] = {}
    missing = [request.task_id for request in requests if request.token not in claimed]
    if missing:
        still = connection.execute(
            select(tasks.c.task_id, tasks.c.name, tasks.c.run_at, tasks.c.retry_at).where(
                tasks.c.task_id.in_(missing),
                tasks.c.status == TaskStatus.Scheduled.value,
                tasks.c.missed_at.is_(None),
            )
        )
        for task_id, name, run_at, retry_at in still:
            waiting[task_id] = DueTask(retry_at or run_at, task_id, name)
    return [claimed.get(request.token) or waiting.get(request.task_id) for request in requests]


def record(connection: Connection, records: Sequence[Record]) -> list[bool]:
    """Write results; tell for each, in the same order, whether it stands.

    False: the row does not bear the token any more, so that the result came too late. A
    repetition of a record that was written already answers True and changes nothing.
    """
    given = strict_json.dumps(
        [
            {
                "task_id": record.task_id,
                "token": record.token,
                "status": record.status.value,
                # JSON inside JSON, as text: it is stored as it is, not taken apart.
                "result": None if record.result is None else strict_json.dumps(record.result),
            }
            for record in records
        ]
    )
    written = set(connection.scalars(_RECORD[connection.dialect.name], {"given": given}))
    late = [entry.task_id for entry in records if entry.token not in written]
    if late:
        written |= set(
            connection.scalars(
                select(tasks.c.claim_token).where(
                    tasks.c.task_id.in_(late), tasks.c.status != TaskStatus.Running.value
                )
            )
        )
    return [entry.token in written for entry in records]


_GIVEN = {
    "postgresql": (
        "json_to_recordset(CAST(:given AS json)) "
        "AS given(task_id uuid, token uuid, status text, result text)"
    ),
    "sqlite": (
        "(SELECT json_extract(value, '$.task_id') AS task_id, "
        "json_extract(value, '$.token') AS token, json_extract(value, '$.status') AS status, "
        "json_extract(value, '$.result') AS result FROM json_each(:given)) AS given"
    ),
}


def _claim_statement(dialect: str, *, repeated: bool) -> Any:
    now = NOW_SQL[dialect]
    row_lock = alive_lock = ""
    if dialect == "postgresql":
        row_lock = "FOR NO KEY UPDATE OF task" + ("" if repeated else " SKIP LOCKED")
        # Collides with whoever declares this instance dead, and not with its heartbeat.
        alive_lock = "FOR KEY SHARE"
    return text(
        f"""
        WITH due AS MATERIALIZED (
            SELECT task.task_id AS id, given.token AS token, task.status AS former
            FROM {_GIVEN[dialect]}
            JOIN scheduled_tasks AS task ON task.task_id = given.task_id
            WHERE (task.status = 'scheduled' AND task.missed_at IS NULL
                    AND coalesce(task.retry_at, task.run_at) <= {now})
                OR (task.status = 'running' AND task.claim_token = given.token)
            ORDER BY task.task_id {row_lock}
        )
        UPDATE scheduled_tasks SET
            status = 'running',
            attempt = attempt + CASE due.former WHEN 'scheduled' THEN 1 ELSE 0 END,
            claim_token = due.token,
            instance_id = :instance_id,
            started_at = CASE due.former WHEN 'scheduled' THEN {now} ELSE started_at END,
            updated_at = {now}
        FROM due
        WHERE scheduled_tasks.task_id = due.id AND EXISTS (
            SELECT 1 FROM instances
            WHERE instances.instance_id = :instance_id AND instances.state = 'alive' {alive_lock}
        )
        RETURNING task_id, claim_token, name, payload, coalesce(retry_at, run_at) AS due,
            started_at, attempt
        """  # noqa: S608 (made of constants)
    ).columns(
        task_id=tasks.c.task_id.type,
        claim_token=tasks.c.claim_token.type,
        payload=tasks.c.payload.type,
        due=UtcDateTime,
        started_at=UtcDateTime,
    )


def _record_statement(dialect: str) -> Any:
    now = NOW_SQL[dialect]
    # Rows are locked in the order of their ids, so that two batches cannot deadlock.
    row_lock, result = "", "ended.result"
    if dialect == "postgresql":
        row_lock, result = "FOR NO KEY UPDATE OF task", "CAST(ended.result AS json)"
    return text(
        f"""
        WITH ended AS MATERIALIZED (
            SELECT task.task_id AS id, given.status AS status, given.result AS result
            FROM {_GIVEN[dialect]}
            JOIN scheduled_tasks AS task ON task.task_id = given.task_id
            WHERE task.status = 'running' AND task.claim_token = given.token
            ORDER BY task.task_id {row_lock}
        )
        UPDATE scheduled_tasks SET
            status = ended.status, result = {result}, finished_at = {now}, updated_at = {now}
        FROM ended
        WHERE scheduled_tasks.task_id = ended.id
        RETURNING claim_token
        """  # noqa: S608 (made of constants)
    ).columns(claim_token=tasks.c.claim_token.type)


_CLAIM = {dialect: _claim_statement(dialect, repeated=False) for dialect in NOW_SQL}
_CLAIM_REPEATED = {dialect: _claim_statement(dialect, repeated=True) for dialect in NOW_SQL}
_RECORD = {dialect: _record_statement(dialect) for dialect in NOW_SQL}
