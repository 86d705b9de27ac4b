"""The statements that write how runs ended, for each database and for what a batch brings."""

from typing import Any

from sqlalchemy import text

from job_scheduler.core.claims import DUE_SQL
from job_scheduler.core.columns import NOW_SQL, UUID_TYPE, later_sql
from job_scheduler.core.given import batched, locked_tasks
from job_scheduler.core.hooks import HOOK_ATTEMPTS, ON_DONE, ON_FAILED
from job_scheduler.core.recurring import COPIED

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
            run_count = CASE WHEN task.recurrence IS NOT NULL
                AND standing.becomes IN ('done', 'failed')
                THEN coalesce(task.run_count, 0) + 1 ELSE task.run_count END,
            last_status = CASE WHEN task.recurrence IS NOT NULL AND standing.has_ended
                THEN standing.becomes ELSE task.last_status END,
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
            run_count = coalesce(task.run_count, 0) + 1,
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
    answer, answered = "SELECT claim_token FROM standing", {"claim_token": UUID_TYPE}
    if dialect == "postgresql":
        named = (f"changed_{number} AS ({change})" for number, change in enumerate(changes))
        return [batched(dialect, f"{', '.join((standing, *named))} {answer}", answered)]
    found_first = batched(dialect, f"{standing} {answer}", answered)
    return [found_first, *(text(f"{standing} {change}") for change in changes)]


RECORD = {
    (dialect, skip_locked, has_hooks, recurs): _statements(
        dialect, skip_locked=skip_locked, has_hooks=has_hooks, recurs=recurs
    )
    for dialect in NOW_SQL
    for skip_locked in (False, True)
    for has_hooks in (False, True)
    for recurs in (False, True)
}
"""What writes a batch: by dialect, and whether locked rows are skipped, hooks are to be sent, and
some task recurs. Each is given ``:given``; the first statement answers the tokens that stand.
"""
