"""Tables and their indexes.

Defaults live in the database, so that ``INSERT INTO scheduled_tasks (name, run_at)`` in any
program's own transaction is a valid task. Times are UTC: ``timestamptz`` on PostgreSQL, text
``YYYY-MM-DD HH:MM:SS.ffffff`` on SQLite. UUIDs are text for Python on both.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from job_scheduler.constants import (
    PRIORITY_MAX,
    SECONDS_MAX,
    InstanceState,
    OnCrash,
    RunOutcome,
    TaskStatus,
)
from job_scheduler.core.columns import (
    JSON_TYPE,
    JSON_TYPE_SQL,
    TAGS_TYPE,
    UUID_TYPE,
    UtcDateTime,
    database_now,
    new_uuid,
)

DUE_WHERE = "status = 'scheduled' AND missed_at IS NULL AND blocked_by IS NULL"
"""The condition on what is to be run when its time has come; partial indexes stand under it."""
PUT_OFF_WHERE = (
    "status = 'scheduled' AND "
    "(retry_at IS NOT NULL OR missed_at IS NOT NULL OR blocked_by IS NOT NULL)"
)
"""The condition on what is scheduled, but does not simply wait for its run_at."""
RESTS_WHERE = "status IN ('failed', 'unknown', 'cancelled', 'paused')"
"""The condition on what neither waits nor runs nor is done, which is rare."""

UNIQUE_INDEX = "ix_scheduled_tasks_unique"
HAS_KEY_WHERE = "unique_key IS NOT NULL AND status IN ('scheduled', 'running', 'paused')"
"""The condition on what has a unique_key, and has not ended: there is one at most of each key."""


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(member.value) for member in values)})"


class Base(DeclarativeBase):
    """What all tables share: one metadata with predictable names of constraints."""

    metadata = MetaData(
        naming_convention={
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Each task that is run leaves two dead rows, and what was due lies dead in the index that is read
# twice a second: millions of finished tasks are not to put off the vacuum that clears it. One in
# fifty, not less: a vacuum reads all of the table's indexes.
_AUTOVACUUM = {
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_analyze_threshold": 5000,
    "autovacuum_analyze_scale_factor": 0.05,
}


class ScheduledTask(Base):
    """One task: what to run, when, and what came of it."""

    __tablename__ = "scheduled_tasks"

    task_id: Mapped[str] = mapped_column(UUID_TYPE, primary_key=True, server_default=new_uuid())
    name: Mapped[str] = mapped_column(Text)
    run_at: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[str] = mapped_column(Text, server_default=TaskStatus.Scheduled.value)
    result: Mapped[Any | None] = mapped_column(JSON_TYPE)
    payload: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=database_now())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=database_now())
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    max_attempts: Mapped[int] = mapped_column(Integer, server_default="1")
    on_crash: Mapped[str | None] = mapped_column(Text)
    retry_delay: Mapped[Any | None] = mapped_column(JSON_TYPE)
    retry_max_delay: Mapped[float | None] = mapped_column(Double)
    start_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    timeout: Mapped[float | None] = mapped_column(Double)
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    command: Mapped[list[str] | None] = mapped_column(JSON_TYPE)
    on_done: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    on_failed: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    max_running: Mapped[int | None] = mapped_column(Integer)
    blocked_by: Mapped[str | None] = mapped_column(Text)
    caused_by: Mapped[str | None] = mapped_column(UUID_TYPE)
    expects_handler: Mapped[bool | None] = mapped_column(Boolean)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    retry_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    claim_token: Mapped[str | None] = mapped_column(UUID_TYPE)
    instance_id: Mapped[str | None] = mapped_column(UUID_TYPE)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    missed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    recurrence: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)
    run_count: Mapped[int | None] = mapped_column(Integer)
    last_status: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str] | None] = mapped_column(TAGS_TYPE)
    unique_key: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint(_one_of("status", TaskStatus), name="status"),
        CheckConstraint("length(name) BETWEEN 1 AND 255", name="name"),
        CheckConstraint("max_attempts >= 1", name="max_attempts"),
        CheckConstraint(
            "status != 'running' OR (claim_token IS NOT NULL AND started_at IS NOT NULL)",
            name="running",
        ),
        CheckConstraint(_one_of("on_crash", OnCrash), name="on_crash"),
        # Its members are passed as keyword arguments.
        *(
            CheckConstraint(f"{json_type}(payload) = 'object'", name="payload").ddl_if(dialect)
            for dialect, json_type in JSON_TYPE_SQL.items()
        ),
        *(
            CheckConstraint(f"{json_type}(retry_delay) IN ({kinds})", name="retry_delay").ddl_if(
                dialect
            )
            for dialect, json_type, kinds in (
                ("postgresql", "json_typeof", "'number', 'array'"),
                ("sqlite", "json_type", "'integer', 'real', 'array'"),
            )
        ),
        *(
            CheckConstraint(f"{json_type}(tags) = 'array'", name="tags").ddl_if(dialect)
            for dialect, json_type in (("postgresql", "jsonb_typeof"), ("sqlite", "json_type"))
        ),
        CheckConstraint(f"timeout > 0 AND timeout <= {SECONDS_MAX}", name="timeout"),
        CheckConstraint(f"retry_max_delay BETWEEN 0 AND {SECONDS_MAX}", name="retry_max_delay"),
        # PostgreSQL knows 'infinity' and the year 294276; Python and ISO 8601 do not.
        CheckConstraint(
            "run_at >= '0001-01-01' AND run_at <= '9999-12-31 23:59:59.999999'", name="run_at"
        ),
        CheckConstraint(
            "start_before >= '0001-01-01' AND start_before <= '9999-12-31 23:59:59.999999'",
            name="start_before",
        ),
        CheckConstraint(
            "retry_at >= '0001-01-01' AND retry_at <= '9999-12-31 23:59:59.999999'", name="retry_at"
        ),
        CheckConstraint("webhook IS NULL OR command IS NULL", name="one_kind"),
        CheckConstraint(f"priority BETWEEN 0 AND {PRIORITY_MAX}", name="priority"),
        CheckConstraint("max_running >= 1", name="max_running"),
        # Each index serves one statement: the sweep, its look for what is urgent, the release of
        # what was missed, and of what is blocked, the rescue, the cancellation, the list.
        Index(
            "ix_scheduled_tasks_due",
            text("coalesce(retry_at, run_at)"),
            postgresql_where=text(DUE_WHERE),
            sqlite_where=text(DUE_WHERE),
        ),
        Index(
            "ix_scheduled_tasks_urgent",
            "priority",
            text("coalesce(retry_at, run_at)"),
            postgresql_where=text(f"{DUE_WHERE} AND priority > 0"),
            sqlite_where=text(f"{DUE_WHERE} AND priority > 0"),
        ),
        Index(
            "ix_scheduled_tasks_blocked",
            "blocked_by",
            text("priority DESC"),
            text("coalesce(retry_at, run_at)"),
            postgresql_where=text("status = 'scheduled' AND blocked_by IS NOT NULL"),
            sqlite_where=text("status = 'scheduled' AND blocked_by IS NOT NULL"),
        ),
        Index(
            "ix_scheduled_tasks_missed",
            "missed_at",
            "run_at",
            postgresql_where=text("status = 'scheduled' AND missed_at IS NOT NULL"),
            sqlite_where=text("status = 'scheduled' AND missed_at IS NOT NULL"),
        ),
        Index(
            "ix_scheduled_tasks_running",
            "instance_id",
            postgresql_where=text("status = 'running'"),
            sqlite_where=text("status = 'running'"),
        ),
        Index(
            "ix_scheduled_tasks_cancel",
            "instance_id",
            postgresql_where=text("status = 'running' AND cancel_requested_at IS NOT NULL"),
            sqlite_where=text("status = 'running' AND cancel_requested_at IS NOT NULL"),
        ),
        Index(
            "ix_scheduled_tasks_list",
            "run_at",
            "task_id",
            postgresql_include=["name", "status"],
        ),
        # Further orders and filters of the list (`listing.py`). Of these only the first is written
        # when a task is created: as a rule on its right edge, which costs least.
        Index("ix_scheduled_tasks_created", "created_at", "task_id"),
        Index(
            "ix_scheduled_tasks_finished",
            "finished_at",
            "task_id",
            postgresql_where=text("finished_at IS NOT NULL"),
            sqlite_where=text("finished_at IS NOT NULL"),
        ),
        Index(
            "ix_scheduled_tasks_resting",
            *("status", "run_at", "task_id"),
            postgresql_include=["name"],
            postgresql_where=text(RESTS_WHERE),
            sqlite_where=text(RESTS_WHERE),
        ),
        Index(
            "ix_scheduled_tasks_put_off",
            "run_at",
            "task_id",
            postgresql_where=text(PUT_OFF_WHERE),
            sqlite_where=text(PUT_OFF_WHERE),
        ),
        Index(
            "ix_scheduled_tasks_key",
            *("concurrency_key", "run_at", "task_id"),
            postgresql_where=text("concurrency_key IS NOT NULL"),
            sqlite_where=text("concurrency_key IS NOT NULL"),
        ),
        # For the retention of their attempts.
        Index(
            "ix_scheduled_tasks_recurring",
            "task_id",
            postgresql_where=text("recurrence IS NOT NULL"),
            sqlite_where=text("recurrence IS NOT NULL"),
        ),
        Index(
            UNIQUE_INDEX,
            "unique_key",
            unique=True,
            postgresql_where=text(HAS_KEY_WHERE),
            sqlite_where=text(HAS_KEY_WHERE),
        ),
        Index(
            "ix_scheduled_tasks_tags",
            "tags",
            postgresql_using="gin",
            postgresql_ops={"tags": "jsonb_path_ops"},
            postgresql_where=text("tags IS NOT NULL"),
        ).ddl_if("postgresql"),
        {"postgresql_with": _AUTOVACUUM},
    )


class RateLimit(Base):
    """How far the rate of a handler is taken up: when its next start falls due."""

    __tablename__ = "rate_limits"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    following_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TaskRun(Base):
    """One attempt at a task that has ended, and how; it goes with its task."""

    __tablename__ = "task_runs"

    task_id: Mapped[str] = mapped_column(
        UUID_TYPE, ForeignKey("scheduled_tasks.task_id", ondelete="CASCADE"), primary_key=True
    )
    claim_token: Mapped[str] = mapped_column(UUID_TYPE, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    scheduled_for: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=database_now())
    outcome: Mapped[str] = mapped_column(Text)
    result: Mapped[Any | None] = mapped_column(JSON_TYPE)
    traceback: Mapped[str | None] = mapped_column(Text)
    instance_id: Mapped[str | None] = mapped_column(UUID_TYPE)

    __table_args__ = (CheckConstraint(_one_of("outcome", RunOutcome), name="outcome"),)


class CatchUp(Base):
    """The tasks that a downtime made overdue and that are run late, at a bounded rate.

    At most one row. Those that are still to be released bear its `missed_at` as theirs. While
    `held_at` is set and `approved_at` is not, a person has yet to approve it. `covers_until` is up
    to when the downtime went, `released_until` up to when releases have been given out, and
    `finished_at` when none was left.
    """

    __tablename__ = "catch_up"

    singleton: Mapped[int] = mapped_column(Integer, primary_key=True, server_default="1")
    missed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    covers_until: Mapped[datetime] = mapped_column(UtcDateTime)
    held_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    approved_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    approved_tasks: Mapped[int | None] = mapped_column(Integer)
    approved_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    released_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (CheckConstraint("singleton = 1", name="singleton"),)


class Instance(Base):
    """One process of the service, past or present."""

    __tablename__ = "instances"

    instance_id: Mapped[str] = mapped_column(UUID_TYPE, primary_key=True)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    process_started: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=database_now())
    heartbeat_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=database_now())

    __table_args__ = (CheckConstraint(_one_of("state", InstanceState), name="state"),)
