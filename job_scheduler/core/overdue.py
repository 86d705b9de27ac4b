"""The statements about overdue tasks: count them, fail them, set them aside, release them.

Each takes up to `BATCH` of them, the oldest first, so that on SQLite others get to write in
between, and answers how many. All lock the rows in the order of their ids, as every statement
about several tasks does, so that no two can deadlock.

"Overdue" is what is scheduled, set aside neither by a start nor by a limit, and was due before
some instant; "missed" is what was set aside under one instant, its ``missed_at``, which neither
sweep nor claim takes. Recurring tasks are the concern of ``recurring.py`` instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, CursorResult, Row, bindparam, insert, text

from job_scheduler import strict_json
from job_scheduler.constants import TaskStatus
from job_scheduler.core.columns import NOW_SQL, UtcDateTime, database_now
from job_scheduler.core.hooks import HOOK_ATTEMPTS, ON_FAILED, filled
from job_scheduler.core.models import DUE_WHERE
from job_scheduler.core.store import tasks

BATCH = 1_000

OVERDUE_SQL = f"{DUE_WHERE} AND recurrence IS NULL AND coalesce(retry_at, run_at) < :overdue_at"
NEW_SQL = "run_at >= coalesce(:covered_until, run_at)"
_MISSED_SQL = "status = 'scheduled' AND missed_at = :missed_at"


@dataclass(frozen=True, slots=True)
class Overdue:
    """How many tasks are overdue; and of these, how many run_at lies in a later downtime."""

    tasks: int
    new: int


def count_overdue(
    connection: Connection, overdue_at: datetime, covered_until: datetime | None
) -> Overdue:
    """Count what was due before `overdue_at`; new is what came due from `covered_until` on."""
    row = connection.execute(
        _COUNT_OVERDUE,
        {"overdue_at": overdue_at, "covered_until": covered_until},
    ).one()
    return Overdue(row.tasks, row.new)


def count_missed(connection: Connection, missed_at: datetime) -> int:
    """Count what was set aside under `missed_at`."""
    return int(connection.execute(_COUNT_MISSED, {"missed_at": missed_at}).scalar_one())


def fail_overdue(connection: Connection, overdue_at: datetime, reason: str) -> int:
    """Mark overdue tasks ``failed``, and have their hooks sent."""
    return _fail(connection, _FAIL_OVERDUE, {"overdue_at": overdue_at}, reason)


def fail_missed(connection: Connection, missed_at: datetime, reason: str) -> int:
    """Mark tasks ``failed`` that were set aside, and have their hooks sent."""
    return _fail(connection, _FAIL_MISSED, {"missed_at": missed_at}, reason)


def set_aside(connection: Connection, overdue_at: datetime, missed_at: datetime) -> int:
    """Set overdue tasks aside under `missed_at`; status and result stay."""
    values = {"overdue_at": overdue_at, "mark": missed_at, "number": BATCH}
    return _change(connection, _SET_ASIDE, values)


def release_missed(
    connection: Connection, missed_at: datetime, begin: datetime, rate: float, number: int
) -> int:
    """Give up to `number` tasks that were set aside a time to start: `rate` a second from `begin`.

    It is their ``retry_at``: ``run_at`` remains what the user asked for.
    """
    values = {"missed_at": missed_at, "begin": begin, "rate": rate, "number": min(number, BATCH)}
    return _change(connection, _RELEASE, values)


def _fail(
    connection: Connection, statements: Mapping[str, Any], which: dict[str, Any], reason: str
) -> int:
    values = {**which, "reason": strict_json.dumps(reason), "number": BATCH}
    failed = _execute(connection, statements, values).all()
    send_failed_hooks(connection, [(row, reason) for row in failed])
    return len(failed)


def send_failed_hooks(connection: Connection, failed: Iterable[tuple[Row[Any], str]]) -> None:
    """Have the hooks of tasks sent that have failed without another run, each for its reason."""
    hooks = [
        {
            "name": ON_FAILED,
            "run_at": database_now(),
            "caused_by": row.task_id,
            "max_attempts": HOOK_ATTEMPTS,
            "webhook": filled(
                row.on_failed, row.task_id, row.name, row.attempt, TaskStatus.Failed, reason
            ),
        }
        for row, reason in failed
        if row.on_failed is not None
    ]
    if hooks:
        connection.execute(insert(tasks).values(hooks))


def _change(connection: Connection, statements: Mapping[str, Any], values: dict[str, Any]) -> int:
    return _execute(connection, statements, values).rowcount


def _execute(
    connection: Connection, statements: Mapping[str, Any], values: dict[str, Any]
) -> CursorResult[Any]:
    dialect = connection.dialect.name
    if dialect == "postgresql":
        # Until it has counted what was just set aside, PostgreSQL takes it for a few rows, and
        # would sort them all for each batch, instead of going along the index.
        connection.execute(ALONG_THE_INDEX)
    return connection.execute(statements[dialect], values)


def _typed(statement: str) -> Any:
    """Give the times among a statement's parameters the form that the columns have."""
    times = ("overdue_at", "covered_until", "missed_at", "mark", "begin")
    return text(statement).bindparams(
        *(bindparam(name, type_=UtcDateTime) for name in times if f":{name}" in statement)
    )


def _batch_statement(
    dialect: str, which: str, due: str, changes: str, waits: str = "", answer: str = ""
) -> Any:
    row_lock, one_of_picked = "", "IN (SELECT id FROM picked)"
    if dialect == "postgresql":
        row_lock = f"FOR NO KEY UPDATE {waits}"
        one_of_picked = "= ANY (ARRAY(SELECT id FROM picked))"
    # IS TRUE keeps PostgreSQL, which may not have counted many new rows yet, from looking for
    # the picked ones among all that are overdue: they are to be found by their ids. The UPDATE
    # comes first, because Python's SQLite does not count the rows of what begins with WITH.
    statement = _typed(
        f"""
        UPDATE scheduled_tasks SET {changes}, updated_at = {NOW_SQL[dialect]}
        FROM (
            WITH picked AS MATERIALIZED (
                SELECT task_id AS id FROM scheduled_tasks WHERE {which}
                ORDER BY {due} LIMIT :number
            ), locked AS MATERIALIZED (
                SELECT task_id AS id, {due} AS due FROM scheduled_tasks
                WHERE task_id {one_of_picked} AND ({which}) IS TRUE
                ORDER BY task_id {row_lock}
            )
            SELECT id, row_number() OVER (ORDER BY due, id) - 1 AS place FROM locked
        ) AS placed
        WHERE scheduled_tasks.task_id = placed.id {answer}
        """  # noqa: S608 (made of constants)
    )
    if answer and dialect == "sqlite":
        return statement.columns(on_failed=tasks.c.on_failed.type)
    return statement


def _overdue_statement(dialect: str, changes: str, answer: str = "") -> Any:
    due = "coalesce(retry_at, run_at)"
    return _batch_statement(dialect, OVERDUE_SQL, due, changes, answer=answer)


def _missed_statement(dialect: str, changes: str, waits: str = "", answer: str = "") -> Any:
    return _batch_statement(dialect, _MISSED_SQL, "run_at", changes, waits, answer)


_FAILURE = {
    "postgresql": "status = 'failed', result = CAST(:reason AS json), finished_at = "
    + NOW_SQL["postgresql"],
    "sqlite": "status = 'failed', result = :reason, finished_at = " + NOW_SQL["sqlite"],
}
_FAILED = "RETURNING task_id, name, attempt, on_failed"
_RELEASED = {
    "postgresql": (
        "missed_at = NULL, retry_at = CAST(:begin AS timestamptz) "
        "+ make_interval(secs => placed.place / CAST(:rate AS double precision))"
    ),
    "sqlite": (
        "missed_at = NULL, retry_at = strftime('%Y-%m-%d %H:%M:%f000', :begin, "
        "printf('+%.6f seconds', placed.place / CAST(:rate AS real)))"
    ),
}

ALONG_THE_INDEX = text("SELECT set_config('enable_sort', 'off', true)")
"""Has PostgreSQL go along an index for what is wanted in its order, in this transaction alone."""
_COUNT_OVERDUE = _typed(
    f"""
    SELECT count(*) AS tasks, count(CASE WHEN {NEW_SQL} THEN 1 END) AS new
    FROM scheduled_tasks WHERE {OVERDUE_SQL}
    """  # noqa: S608 (made of constants)
)
_COUNT_MISSED = _typed(
    f"SELECT count(*) FROM scheduled_tasks WHERE {_MISSED_SQL}"  # noqa: S608 (made of constants)
)
_FAIL_OVERDUE = {
    dialect: _overdue_statement(dialect, _FAILURE[dialect], _FAILED) for dialect in NOW_SQL
}
_FAIL_MISSED = {
    dialect: _missed_statement(dialect, _FAILURE[dialect], answer=_FAILED) for dialect in NOW_SQL
}
_SET_ASIDE = {dialect: _overdue_statement(dialect, "missed_at = :mark") for dialect in NOW_SQL}
# What somebody else holds locked is left to a later batch: it is not to hold up the others.
_RELEASE = {
    dialect: _missed_statement(dialect, _RELEASED[dialect], "SKIP LOCKED") for dialect in NOW_SQL
}
