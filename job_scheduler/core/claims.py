"""The claim: the statement that makes a task run once.

It moves ``scheduled`` to ``running``, counts the attempt and puts a new token on the row; the
result is later recorded under that token alone (``records.py``). It may be repeated, late or
done by two at once without harm. Many go in one statement: the batch is passed as one JSON
parameter, so that the statement's text never changes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, case, func, select

from job_scheduler import strict_json
from job_scheduler.constants import OnCrash, Overlap, TaskStatus
from job_scheduler.core.columns import NOW_SQL
from job_scheduler.core.given import batched, locked_tasks
from job_scheduler.core.store import DUE_COLUMNS, IS_PATTERN, DueTask, tasks


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """The wish to run a task, under a token that was never used before."""

    task_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a task that is under way: who runs it, and by which token it is known.

    `due` is when it was to start: a first attempt at the task's run_at, however late it was
    released to run; a later one when it was to be repeated. `run_at` tells which occurrence it is
    of a task with a `recurrence`, of which `run_count` have ended.
    """

    task_id: str
    token: str
    instance_id: str
    attempt: int
    max_attempts: int
    on_crash: OnCrash | None
    due: datetime
    started_at: datetime
    name: str
    on_done: dict[str, Any] | None
    on_failed: dict[str, Any] | None
    run_at: datetime
    recurrence: dict[str, Any] | None
    run_count: int | None

    @property
    def is_pattern(self) -> bool:
        """Whether each occurrence is a task of its own, so that several may run at a time."""
        # Some other program may have stored anything.
        asked = self.recurrence
        return isinstance(asked, dict) and asked.get("overlap") == Overlap.Allow


@dataclass(frozen=True, slots=True)
class Claim(Run):
    """A run that is ours, until its result is recorded under its token.

    What is to be done is told by `webhook` or `command`, else by the name's handler. Whether there
    was one when the task was created tells `expects_handler`, which is None if nobody looked.
    """

    payload: dict[str, Any]
    retry_delay: float | list[float] | None = None
    retry_max_delay: float | None = None
    start_before: datetime | None = None
    timeout: float | None = None
    webhook: dict[str, Any] | None = None
    command: list[str] | None = None
    expects_handler: bool | None = None
    concurrency_key: str | None = None


DUE = case(
    (tasks.c.attempt <= 1, tasks.c.run_at), else_=func.coalesce(tasks.c.retry_at, tasks.c.run_at)
)
"""When the attempt that a running task's row tells of was to start."""
DUE_SQL = "CASE WHEN attempt <= 1 THEN run_at ELSE coalesce(retry_at, run_at) END"
"""The same, for statements written as text."""

RUN_COLUMNS = [
    tasks.c.task_id,
    tasks.c.claim_token,
    tasks.c.instance_id,
    tasks.c.attempt,
    tasks.c.max_attempts,
    tasks.c.on_crash,
    DUE.label("due"),
    tasks.c.started_at,
    tasks.c.name,
    tasks.c.on_done,
    tasks.c.on_failed,
    tasks.c.run_at,
    tasks.c.recurrence,
    tasks.c.run_count,
]
"""What ``run_of`` reads of a running task: the members of a ``Run``, in their order."""


def run_of(row: Row[Any]) -> Run:
    """Return the attempt that a running task's row tells of."""
    return Run(*_members(row))


def claim(
    connection: Connection,
    instance_id: str,
    requests: Sequence[ClaimRequest],
    *,
    repeated: bool = False,
    admitted: Collection[str] = (),
) -> list[Claim | DueTask | None]:
    """Claim what is due, for an instance that is alive; answer in the order of the requests.

    What has a concurrency key, or is blocked by a limit, is claimed only if its id is among the
    `admitted`.

    For each: the claim; or the task, when it is still scheduled but not to be had at this
    moment (not due yet by the database's clock, or its row is locked); or None when it is
    gone, taken or moved.

    `repeated` says that the same requests were made before with an unknown outcome: what they
    achieved is found by the token, and a row that the former connection may still hold locked
    is waited for.
    """
    statements = _CLAIM_REPEATED if repeated else _CLAIM
    given = strict_json.dumps(
        [
            {
                "task_id": request.task_id,
                "token": request.token,
                "admitted": request.task_id in admitted,
            }
            for request in requests
        ]
    )
    rows = connection.execute(
        statements[connection.dialect.name], {"given": given, "instance_id": instance_id}
    ).all()  # at once: on SQLite, a statement left half read would hold up all that follow
    claimed = {row.claim_token: Claim(*_members(row)) for row in rows}
    waiting: dict[str, DueTask] = {}
    missing = [request.task_id for request in requests if request.token not in claimed]
    if missing:
        # By their ids alone, as above.
        looked_at = (tasks.c.status, tasks.c.missed_at, tasks.c.blocked_by, *DUE_COLUMNS)
        found = connection.execute(select(*looked_at).where(tasks.c.task_id.in_(missing)))
        for status, missed_at, blocked_by, *members in found:
            if status == TaskStatus.Scheduled and missed_at is None and blocked_by is None:
                task = DueTask._make(members)
                waiting[task.task_id] = task
    return [claimed.get(request.token) or waiting.get(request.task_id) for request in requests]


def _members(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return what stands in a row, as ``Run`` and ``Claim`` take it."""
    task_id, token, instance_id, attempt, max_attempts, on_crash, *others = row
    on_crash = on_crash and OnCrash(on_crash)
    return task_id, token, instance_id, attempt, max_attempts, on_crash, *others


_MEMBERS = {"task_id": "uuid", "token": "uuid", "admitted": "boolean"}


_CLAIMED = {
    column.name: column.type
    for column in (
        *RUN_COLUMNS,
        tasks.c.payload,
        tasks.c.retry_delay,
        tasks.c.retry_max_delay,
        tasks.c.start_before,
        tasks.c.timeout,
        tasks.c.webhook,
        tasks.c.command,
        tasks.c.expects_handler,
        tasks.c.concurrency_key,
    )
}
"""What a ``Claim`` is made of: its members, in their order."""
_MADE = {"due": DUE_SQL, "payload": "coalesce(payload, '{}')"}


def _claim_statement(dialect: str, *, repeated: bool) -> Any:
    now = NOW_SQL[dialect]
    due = locked_tasks(
        dialect,
        _MEMBERS,
        "task.task_id AS id, given.token AS token, task.status AS former",
        f"""
            WHEN 'scheduled' THEN task.missed_at IS NULL
                AND coalesce(task.retry_at, task.run_at) <= {now}
                AND (coalesce(task.concurrency_key, task.blocked_by) IS NULL OR given.admitted
                    OR {IS_PATTERN})
            WHEN 'running' THEN task.claim_token = given.token""",
        skip_locked=not repeated,
    )
    # Collides with whoever declares this instance dead, and not with its heartbeat.
    alive_lock = "FOR KEY SHARE" if dialect == "postgresql" else ""
    return batched(
        dialect,
        f"""
        WITH due AS MATERIALIZED ({due})
        UPDATE scheduled_tasks SET
            status = 'running',
            attempt = attempt + CASE due.former WHEN 'scheduled' THEN 1 ELSE 0 END,
            claim_token = due.token,
            instance_id = :instance_id,
            -- A repetition that has waited for the first one is held by the constraints against the
            -- row as it was before that, which had no started_at yet.
            started_at = CASE due.former
                WHEN 'scheduled' THEN {now} ELSE coalesce(started_at, {now}) END,
            blocked_by = NULL,
            progress = NULL,
            updated_at = {now}
        FROM due
        WHERE scheduled_tasks.task_id = due.id AND EXISTS (
            SELECT 1 FROM instances
            WHERE instances.instance_id = :instance_id AND instances.state = 'alive' {alive_lock}
        )
        RETURNING {", ".join(f"{_MADE.get(name, name)} AS {name}" for name in _CLAIMED)}
        """,  # noqa: S608 (made of constants)
        _CLAIMED,
    )


_CLAIM = {dialect: _claim_statement(dialect, repeated=False) for dialect in NOW_SQL}
_CLAIM_REPEATED = {dialect: _claim_statement(dialect, repeated=True) for dialect in NOW_SQL}
