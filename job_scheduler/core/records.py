"""The record: how a run ended, written once, and only by who still holds its claim.

A record moves ``running`` to what follows, together with the attempt's entry in the history,
and only where the claim's token still stands. A result that comes after the claim was taken
away changes nothing but the history, where it is kept as ``lost``.

The same statement moves a recurring task to its next occurrence: none is lost or doubled, whenever
the process ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, Table, literal_column, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from job_scheduler import strict_json
from job_scheduler.constants import RunOutcome, TaskStatus
from job_scheduler.core.claims import DUE_SQL, Run
from job_scheduler.core.columns import NOW_SQL, database_now, later_sql, written
from job_scheduler.core.given import locked_tasks
from job_scheduler.core.hooks import HOOK_ATTEMPTS, ON_DONE, ON_FAILED, hook_of
from job_scheduler.core.models import TaskRun
from job_scheduler.core.outcomes import Decision, Outcome, decide
from job_scheduler.core.recurring import COPIED, Occurrence, following_of
from job_scheduler.core.store import tasks
from job_scheduler.identifiers import new_task_id

task_runs = cast("Table", TaskRun.__table__)


@dataclass(frozen=True, slots=True)
class Record:
    """How a run ended, and what that makes of its task."""

    run: Run
    decision: Decision

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> "Record":
        """Return what is to be written when a run ended with this outcome."""
        return cls(run, decide(outcome, run.attempt, run.max_attempts, run.on_crash))

    @property
    def ends_occurrence(self) -> bool:
        """Whether another occurrence of the task may follow now."""
        has_ended = self.decision.status in (TaskStatus.Done, TaskStatus.Failed)
        return has_ended and self.run.recurrence is not None


def record(
    connection: Connection, records: Sequence[Record], *, skip_locked: bool = False
) -> list[bool]:
    """Write how runs ended; tell for each, in the same order, whether it stands.

    False: the claim had been taken away. A repetition of a record that was written already
    answers True and changes nothing. With `skip_locked` a row that another transaction holds
    is left alone, and its record does not stand.
    """
    recurs = any(entry.ends_occurrence for entry in records)
    now = connection.scalars(select(database_now())).one() if recurs else None
    dialect = connection.dialect.name
    members = [_given(entry, now, dialect) for entry in records]
    has_hooks = any("hook" in each for each in members)
    given = {"given": strict_json.dumps(members)}
    standing, *following = _RECORD[dialect, skip_locked, has_hooks, recurs]
    done = set(connection.scalars(standing, given).all())
    for statement in following:
        connection.execute(statement, given)
    # A rescue that finds nothing to rescue has come second: it has no result to keep.
    if late := [
        entry
        for entry in records
        if entry.run.token not in done and entry.decision.outcome is not RunOutcome.Crashed
    ]:
        done |= _written_before(connection, late)
        _keep_as_lost(connection, [entry for entry in late if entry.run.token not in done])
    return [entry.run.token in done for entry in records]


def _given(entry: Record, now: datetime | None, dialect: str) -> dict[str, Any]:
    run, decision = entry.run, entry.decision
    hook = hook_of(run, decision)
    following: Occurrence | None = None
    copy_id: str | None = None
    result = decision.result
    if now is not None and entry.ends_occurrence:
        following = following_of(run, now)
        if decision.spawns:
            copy_id = new_task_id(now)
            result = {"task_id": copy_id}
    members = {
        "task_id": run.task_id,
        "token": run.token,
        "status": decision.status.value,
        # JSON inside JSON, as text: it is stored as it is, not taken apart.
        "result": None if result is None else strict_json.dumps(result),
        "outcome": decision.outcome and decision.outcome.value,
        "delay": decision.delay,
        "traceback": decision.traceback,
        "hook": None if hook is None else strict_json.dumps(hook),
        "following_at": following and written(following.run_at, dialect),
        "copy_id": copy_id,
        "starts_at": following and following.starts_at and written(following.starts_at, dialect),
    }
    return {name: value for name, value in members.items() if value is not None}


def _written_before(connection: Connection, late: Sequence[Record]) -> set[str]:
    """Return the tokens of those whose very record is in the history already.

    An attempt that was given back has no entry, and nothing that could be written twice.
    """
    keys = [(entry.run.task_id, entry.run.token) for entry in late]
    key = tuple_(task_runs.c.task_id, task_runs.c.claim_token)
    entered = connection.execute(
        select(task_runs.c.claim_token, task_runs.c.outcome).where(key.in_(keys))
    )
    entries = {row.claim_token: row.outcome for row in entered}
    return {
        entry.run.token
        for entry in late
        if entry.decision.outcome is None
        or entries.get(entry.run.token) == entry.decision.outcome.value
    }


def _keep_as_lost(connection: Connection, late: Sequence[Record]) -> None:
    """Keep results that nobody waits for any more, of tasks that still exist.

    Whoever took the claim away has entered the attempt as ``crashed``: it is known better now.
    """
    existing = set(
        connection.scalars(
            select(tasks.c.task_id)
            .where(tasks.c.task_id.in_([entry.run.task_id for entry in late]))
            .order_by(tasks.c.task_id)
            .with_for_update(read=True, key_share=True)
        )
    )
    values = [
        {
            "task_id": entry.run.task_id,
            "claim_token": entry.run.token,
            "attempt": entry.run.attempt,
            "scheduled_for": entry.run.due,
            "started_at": entry.run.started_at,
            "outcome": RunOutcome.Lost.value,
            "result": entry.decision.result,
            "traceback": entry.decision.traceback,
            "instance_id": entry.run.instance_id,
        }
        for entry in late
        if entry.run.task_id in existing
    ]
    if not values:
        return
    insert_into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert_into(task_runs)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[task_runs.c.task_id, task_runs.c.claim_token],
            set_={
                "outcome": RunOutcome.Lost.value,
                "result": statement.excluded.result,
                "traceback": statement.excluded.traceback,
                "finished_at": database_now(),
            },
            where=task_runs.c.outcome == literal_column(f"'{RunOutcome.Crashed.value}'"),
        ),
        values,
    )


_MEMBERS = {
    "task_id": "uuid",
    "token": "uuid",
    "status": "text",
    "result": "text",
    "outcome": "text",
    "delay": "float8",
    "traceback": "text",
    "hook": "text",
}
_OF_RECURRING = {"following_at": "timestamptz", "starts_at": "timestamptz", "copy_id": "uuid"}
"""What only the statements for recurring tasks are given, too."""
_JSON = {"postgresql": "CAST({} AS json)", "sqlite": "{}"}
# Whoever has asked for the end of a task does not want it to be run again, nor to wait for anybody.
_BECOMES = (
    "CASE WHEN task.cancel_requested_at IS NOT NULL AND given.status <> 'done' "
    "THEN 'cancelled' ELSE given.status END"
)


def _statements(dialect: str, *, skip_locked: bool, has_hooks: bool, recurs: bool) -> list[Any]:
    """Return what writes a batch of records; the first statement tells the tokens that stand.

    On PostgreSQL one statement, and so one round trip, does it all. Only one that `recurs` knows
    of occurrences.
    """
    now = NOW_SQL[dialect]
    following, stays = ("", "")
    if recurs:
        # Whose end was asked for, it has none.
        following = (
            "CASE WHEN task.cancel_requested_at IS NULL THEN given.following_at END "
            "AS following_at, given.starts_at, given.copy_id,"
        )
        stays = "AND standing.following_at IS NULL"
    found = locked_tasks(
        dialect,
        _MEMBERS | _OF_RECURRING if recurs else _MEMBERS,
        f"""
            task.task_id, task.claim_token, task.attempt, task.run_at, task.retry_at,
            task.started_at, task.instance_id, {following}
            {_BECOMES} AS becomes, {_BECOMES} <> 'scheduled' AS has_ended,
            given.outcome, given.delay, given.traceback,
            CASE WHEN {_BECOMES} = given.status THEN given.hook END AS hook,
            {_JSON[dialect].format("given.result")} AS result""",
        "WHEN 'running' THEN task.claim_token = given.token",
        skip_locked=skip_locked,
    )
    standing = f"WITH standing AS MATERIALIZED ({found})"
    enter = f"""
        INSERT INTO task_runs (task_id, claim_token, attempt, scheduled_for, started_at,
            finished_at, outcome, result, traceback, instance_id)
        SELECT task_id, claim_token, attempt,
            {DUE_SQL}, started_at, {now}, outcome, result, traceback, instance_id
        FROM standing
        WHERE outcome IS NOT NULL
        -- A claim that was carried out once more, after its record, bears an old token.
        ON CONFLICT (task_id, claim_token) DO NOTHING"""  # noqa: S608 (made of constants)
    send = f"""
        INSERT INTO scheduled_tasks (name, run_at, webhook, caused_by, max_attempts)
        SELECT CASE becomes WHEN 'done' THEN '{ON_DONE}' ELSE '{ON_FAILED}' END, {now},
            {_JSON[dialect].format("hook")}, task_id, {HOOK_ATTEMPTS}
        FROM standing
        WHERE hook IS NOT NULL"""  # noqa: S608 (made of constants)
    copied = ", ".join(column.name for column in COPIED)
    spawn = f"""
        INSERT INTO scheduled_tasks (task_id, caused_by, run_at, {copied})
        SELECT standing.copy_id, standing.task_id, standing.run_at,
            {", ".join(f"task.{column.name}" for column in COPIED)}
        FROM standing JOIN scheduled_tasks AS task ON task.task_id = standing.task_id
        WHERE standing.copy_id IS NOT NULL"""  # noqa: S608 (made of constants)
    move = f"""
        UPDATE scheduled_tasks AS task SET
            status = standing.becomes,
            -- Why an attempt never was shows in the task; it stands nowhere else.
            result = CASE WHEN standing.has_ended OR standing.outcome IS NULL
                THEN standing.result END,
            retry_at = CASE WHEN standing.has_ended OR standing.delay IS NULL
                THEN task.retry_at ELSE {later_sql(dialect, "standing.delay")} END,
            attempt = task.attempt - CASE WHEN standing.outcome IS NULL THEN 1 ELSE 0 END,
            claim_token = CASE WHEN standing.has_ended THEN task.claim_token END,
            instance_id = CASE WHEN standing.has_ended THEN task.instance_id END,
            started_at = CASE WHEN standing.has_ended AND standing.outcome IS NOT NULL
                THEN task.started_at END,
            finished_at = CASE WHEN standing.has_ended THEN {now} END,
            run_count = task.run_count + CASE WHEN standing.has_ended THEN 1 ELSE 0 END,
            updated_at = {now}
        FROM standing
        -- Its row is locked: what was found there is still so.
        WHERE task.task_id = standing.task_id {stays}"""  # noqa: S608 (made of constants)
    advance = f"""
        UPDATE scheduled_tasks AS task SET
            status = 'scheduled',
            run_at = standing.following_at,
            retry_at = standing.starts_at,
            attempt = 0,
            result = standing.result,
            last_status = standing.becomes,
            run_count = task.run_count + 1,
            claim_token = NULL,
            instance_id = NULL,
            started_at = NULL,
            updated_at = {now}
        FROM standing
        WHERE task.task_id = standing.task_id AND standing.following_at IS NOT NULL
        """  # noqa: S608 (made of constants)
    # The task's own row comes last: without it, the others would not stand any more.
    changes = [
        enter,
        *([send] if has_hooks else []),
        *([spawn, advance] if recurs else []),
        move,
    ]
    answer = "SELECT claim_token FROM standing"
    if dialect == "postgresql":
        named = (f"changed_{number} AS ({change})" for number, change in enumerate(changes))
        return [text(f"{', '.join((standing, *named))} {answer}")]
    return [text(f"{standing} {each}") for each in (answer, *changes)]


_RECORD = {
    (dialect, skip_locked, has_hooks, recurs): _statements(
        dialect, skip_locked=skip_locked, has_hooks=has_hooks, recurs=recurs
    )
    for dialect in NOW_SQL
    for skip_locked in (False, True)
    for has_hooks in (False, True)
    for recurs in (False, True)
}
