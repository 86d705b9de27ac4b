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

from sqlalchemy import Connection, Table, literal_column, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from job_scheduler import strict_json
from job_scheduler.constants import RunOutcome, TaskStatus
from job_scheduler.core.claims import Run
from job_scheduler.core.columns import database_now, database_time, written
from job_scheduler.core.hooks import hook_of
from job_scheduler.core.models import TaskRun
from job_scheduler.core.outcomes import Decision, Outcome, decide
from job_scheduler.core.record_statements import RECORD
from job_scheduler.core.recurring import Occurrence, following_of
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
    now = database_time(connection) if recurs else None
    dialect = connection.dialect.name
    members = [_given(entry, now, dialect) for entry in records]
    has_hooks = any("hook" in each for each in members)
    given = {"given": strict_json.dumps(members)}
    standing, *following = RECORD[dialect, skip_locked, has_hooks, recurs]
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
    # A copy sends those of its own.
    hook = None if decision.spawns else hook_of(run, decision)
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
