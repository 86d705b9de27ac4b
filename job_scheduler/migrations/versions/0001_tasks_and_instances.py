"""Create the tables of tasks, their runs, the catch-up after a downtime, and instances."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_uuid = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
_json = sa.JSON().with_variant(sa.Text(), "sqlite")
_tags = _json.with_variant(postgresql.JSONB(), "postgresql")
_time = sa.DateTime(timezone=True)

_NOW = {
    "postgresql": "statement_timestamp()",
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))",
}
_MILLISECONDS = {
    "postgresql": "int8send((extract(epoch from clock_timestamp()) * 1000)::bigint)",
    "sqlite": "printf('%012x', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))",
}
_AUTOVACUUM = {
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_analyze_threshold": 5000,
    "autovacuum_analyze_scale_factor": 0.05,
}
_JSON_TYPE = {"postgresql": "json_typeof", "sqlite": "json_type"}
_JSONB_TYPE = {"postgresql": "jsonb_typeof", "sqlite": "json_type"}
_DELAYS = {"postgresql": "'number', 'array'", "sqlite": "'integer', 'real', 'array'"}
_UUID_7 = {
    "postgresql": (
        "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing "
        f"substring({_MILLISECONDS['postgresql']} from 3) from 1 for 6), 52, 1), 53, 1), "
        "'hex')::uuid"
    ),
    "sqlite": (
        f"(lower(substr({_MILLISECONDS['sqlite']}, 1, 8) || '-' || "
        f"substr({_MILLISECONDS['sqlite']}, 9, 4) || '-7' || "
        "substr(hex(randomblob(2)), 2) || '-' || substr('89AB', 1 + (random() & 3), 1) || "
        "substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
    ),
}
_WAITS = "status = 'scheduled' AND missed_at IS NULL AND blocked_by IS NULL"
_DUE = sa.text(_WAITS)
_URGENT = sa.text(f"{_WAITS} AND priority > 0")
_BLOCKED = sa.text("status = 'scheduled' AND blocked_by IS NOT NULL")
_MISSED = sa.text("status = 'scheduled' AND missed_at IS NOT NULL")
_RUNNING = sa.text("status = 'running'")
_CANCELLING = sa.text("status = 'running' AND cancel_requested_at IS NOT NULL")
_FINISHED = sa.text("finished_at IS NOT NULL")
_RESTING = sa.text("status IN ('failed', 'unknown', 'cancelled', 'paused')")
_PUT_OFF = sa.text(
    "status = 'scheduled' AND "
    "(retry_at IS NOT NULL OR missed_at IS NOT NULL OR blocked_by IS NOT NULL)"
)
_KEYED = sa.text("concurrency_key IS NOT NULL")
_RECURRING = sa.text("recurrence IS NOT NULL")
_HAS_KEY = sa.text("unique_key IS NOT NULL AND status IN ('scheduled', 'running', 'paused')")
_STORED_FORM = "-".join(["[0-9]" * 4, "[0-9]" * 2, "[0-9]" * 2]) + (
    " " + ":".join(["[0-9]" * 2] * 3) + "." + "[0-9]" * 6
)

# Adding nothing makes SQLite reckon: it would hand February 31st out as it came in.
_NORMALISED = "strftime('%Y-%m-%d %H:%M:%f000', NEW.run_at, '+0 days')"
# Without the fraction: SQLite rounds to milliseconds, and so 59.9996 s up to the next minute.
_WHOLE = "substr(NEW.run_at, 1, 19)"
_WHOLE_NORMALISED = f"strftime('%Y-%m-%d %H:%M:%S', {_WHOLE}, '+0 days')"


def upgrade() -> None:
    """Create both tables, their indexes and, on SQLite, the triggers for hand-written times."""
    dialect = op.get_bind().dialect.name
    now = sa.text(_NOW[dialect])
    op.create_table(
        "scheduled_tasks",
        sa.Column("task_id", _uuid, nullable=False, server_default=sa.text(_UUID_7[dialect])),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("run_at", _time, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="scheduled"),
        sa.Column("result", _json),
        sa.Column("payload", _json),
        sa.Column("created_at", _time, nullable=False, server_default=now),
        sa.Column("updated_at", _time, nullable=False, server_default=now),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=False, server_default="1"),
        sa.Column("on_crash", sa.Text),
        sa.Column("retry_delay", _json),
        sa.Column("retry_max_delay", sa.Double),
        sa.Column("start_before", _time),
        sa.Column("timeout", sa.Double),
        sa.Column("webhook", _json),
        sa.Column("command", _json),
        sa.Column("on_done", _json),
        sa.Column("on_failed", _json),
        sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("concurrency_key", sa.Text),
        sa.Column("max_running", sa.Integer),
        sa.Column("blocked_by", sa.Text),
        sa.Column("caused_by", _uuid),
        sa.Column("expects_handler", sa.Boolean),
        sa.Column("progress", _json),
        sa.Column("cancel_requested_at", _time),
        sa.Column("retry_at", _time),
        sa.Column("claim_token", _uuid),
        sa.Column("instance_id", _uuid),
        sa.Column("started_at", _time),
        sa.Column("finished_at", _time),
        sa.Column("missed_at", _time),
        sa.Column("recurrence", _json),
        sa.Column("run_count", sa.Integer),
        sa.Column("last_status", sa.Text),
        sa.Column("tags", _tags),
        sa.Column("unique_key", sa.Text),
        sa.PrimaryKeyConstraint("task_id", name="pk_scheduled_tasks"),
        sa.CheckConstraint(
            "status IN ('scheduled', 'paused', 'running', 'done', 'failed', 'unknown', "
            "'cancelled')",
            name=op.f("ck_scheduled_tasks_status"),
        ),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 255", name=op.f("ck_scheduled_tasks_name")),
        sa.CheckConstraint("max_attempts >= 1", name=op.f("ck_scheduled_tasks_max_attempts")),
        sa.CheckConstraint(
            "status != 'running' OR (claim_token IS NOT NULL AND started_at IS NOT NULL)",
            name=op.f("ck_scheduled_tasks_running"),
        ),
        sa.CheckConstraint(
            "on_crash IN ('fail', 'retry', 'hold')", name=op.f("ck_scheduled_tasks_on_crash")
        ),
        sa.CheckConstraint(
            f"{_JSON_TYPE[dialect]}(payload) = 'object'", name=op.f("ck_scheduled_tasks_payload")
        ),
        sa.CheckConstraint(
            f"{_JSON_TYPE[dialect]}(retry_delay) IN ({_DELAYS[dialect]})",
            name=op.f("ck_scheduled_tasks_retry_delay"),
        ),
        sa.CheckConstraint(
            f"{_JSONB_TYPE[dialect]}(tags) = 'array'", name=op.f("ck_scheduled_tasks_tags")
        ),
        sa.CheckConstraint(
            "timeout > 0 AND timeout <= 31622400", name=op.f("ck_scheduled_tasks_timeout")
        ),
        sa.CheckConstraint(
            "retry_max_delay BETWEEN 0 AND 31622400",
            name=op.f("ck_scheduled_tasks_retry_max_delay"),
        ),
        sa.CheckConstraint(
            "start_before >= '0001-01-01' AND start_before <= '9999-12-31 23:59:59.999999'",
            name=op.f("ck_scheduled_tasks_start_before"),
        ),
        sa.CheckConstraint(
            "run_at >= '0001-01-01' AND run_at <= '9999-12-31 23:59:59.999999'",
            name=op.f("ck_scheduled_tasks_run_at"),
        ),
        sa.CheckConstraint(
            "retry_at >= '0001-01-01' AND retry_at <= '9999-12-31 23:59:59.999999'",
            name=op.f("ck_scheduled_tasks_retry_at"),
        ),
        sa.CheckConstraint(
            "webhook IS NULL OR command IS NULL", name=op.f("ck_scheduled_tasks_one_kind")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 3", name=op.f("ck_scheduled_tasks_priority")),
        sa.CheckConstraint("max_running >= 1", name=op.f("ck_scheduled_tasks_max_running")),
        postgresql_with=_AUTOVACUUM,
    )
    op.create_index(
        "ix_scheduled_tasks_due",
        "scheduled_tasks",
        [sa.text("coalesce(retry_at, run_at)")],
        postgresql_where=_DUE,
        sqlite_where=_DUE,
    )
    op.create_index(
        "ix_scheduled_tasks_urgent",
        "scheduled_tasks",
        ["priority", sa.text("coalesce(retry_at, run_at)")],
        postgresql_where=_URGENT,
        sqlite_where=_URGENT,
    )
    op.create_index(
        "ix_scheduled_tasks_blocked",
        "scheduled_tasks",
        ["blocked_by", sa.text("priority DESC"), sa.text("coalesce(retry_at, run_at)")],
        postgresql_where=_BLOCKED,
        sqlite_where=_BLOCKED,
    )
    op.create_index(
        "ix_scheduled_tasks_missed",
        "scheduled_tasks",
        ["missed_at", "run_at"],
        postgresql_where=_MISSED,
        sqlite_where=_MISSED,
    )
    op.create_index(
        "ix_scheduled_tasks_running",
        "scheduled_tasks",
        ["instance_id"],
        postgresql_where=_RUNNING,
        sqlite_where=_RUNNING,
    )
    op.create_index(
        "ix_scheduled_tasks_cancel",
        "scheduled_tasks",
        ["instance_id"],
        postgresql_where=_CANCELLING,
        sqlite_where=_CANCELLING,
    )
    op.create_index(
        "ix_scheduled_tasks_list",
        "scheduled_tasks",
        ["run_at", "task_id"],
        postgresql_include=["name", "status"],
    )
    op.create_index(
        "ix_scheduled_tasks_unique",
        "scheduled_tasks",
        ["unique_key"],
        unique=True,
        postgresql_where=_HAS_KEY,
        sqlite_where=_HAS_KEY,
    )
    _create_list_indexes(dialect)
    _create_runs(now)
    op.create_table(
        "instances",
        sa.Column("instance_id", _uuid, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("started_at", _time, nullable=False, server_default=now),
        sa.Column("heartbeat_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("heartbeat_at", _time, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instances"),
        sa.CheckConstraint(
            "state IN ('starting', 'recovering', 'alive', 'dead')", name=op.f("ck_instances_state")
        ),
    )
    _create_events(dialect)
    if dialect == "sqlite":
        _create_sqlite_triggers()


def _create_list_indexes(dialect: str) -> None:
    """Create what serves the further orders and filters of the list, and the retention of runs."""
    op.create_index("ix_scheduled_tasks_created", "scheduled_tasks", ["created_at", "task_id"])
    for name, columns, include, condition in (
        ("finished", ["finished_at", "task_id"], [], _FINISHED),
        ("resting", ["status", "run_at", "task_id"], ["name"], _RESTING),
        ("put_off", ["run_at", "task_id"], [], _PUT_OFF),
        ("key", ["concurrency_key", "run_at", "task_id"], [], _KEYED),
        ("recurring", ["task_id"], [], _RECURRING),
    ):
        op.create_index(
            f"ix_scheduled_tasks_{name}",
            "scheduled_tasks",
            columns,
            postgresql_include=include,
            postgresql_where=condition,
            sqlite_where=condition,
        )
    if dialect == "postgresql":
        op.create_index(
            "ix_scheduled_tasks_tags",
            "scheduled_tasks",
            ["tags"],
            postgresql_using="gin",
            postgresql_ops={"tags": "jsonb_path_ops"},
            postgresql_where=sa.text("tags IS NOT NULL"),
        )


def _create_runs(now: sa.TextClause) -> None:
    """Create the history of attempts, the use of rates, and the one row that a catch-up is."""
    op.create_table(
        "rate_limits",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("following_at", _time, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_rate_limits"),
    )
    op.create_table(
        "task_runs",
        sa.Column("task_id", _uuid, nullable=False),
        sa.Column("claim_token", _uuid, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("scheduled_for", _time, nullable=False),
        sa.Column("started_at", _time, nullable=False),
        sa.Column("finished_at", _time, nullable=False, server_default=now),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("result", _json),
        sa.Column("traceback", sa.Text),
        sa.Column("instance_id", _uuid),
        sa.PrimaryKeyConstraint("task_id", "claim_token", name="pk_task_runs"),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["scheduled_tasks.task_id"],
            name="fk_task_runs_task_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "outcome IN ('done', 'failed', 'cancelled', 'interrupted', 'crashed', 'lost')",
            name=op.f("ck_task_runs_outcome"),
        ),
    )
    op.create_table(
        "catch_up",
        sa.Column("singleton", sa.Integer, nullable=False, server_default="1"),
        sa.Column("missed_at", _time, nullable=False),
        sa.Column("covers_until", _time, nullable=False),
        sa.Column("held_at", _time),
        sa.Column("approved_at", _time),
        sa.Column("approved_tasks", sa.Integer),
        sa.Column("approved_until", _time),
        sa.Column("released_until", _time),
        sa.Column("finished_at", _time),
        sa.PrimaryKeyConstraint("singleton", name="pk_catch_up"),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_catch_up_singleton")),
    )


def _create_events(dialect: str) -> None:
    """Create what notes the changes of tasks, and the triggers that do, while somebody watches."""
    op.create_table(
        "task_events",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(always=True),
            nullable=False,
        ),
        sa.Column("xid", sa.BigInteger, nullable=False),
        sa.Column("at", _time, nullable=False),
        sa.Column("task_id", _uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("former", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("concurrency_key", sa.Text),
        sa.Column("tags", _tags),
        sa.PrimaryKeyConstraint("event_id", name="pk_task_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_task_events_order", "task_events", ["xid", "event_id"])
    op.create_table(
        "event_watch",
        sa.Column("singleton", sa.Integer, nullable=False, server_default="1"),
        sa.Column("until", _time, nullable=False),
        sa.Column("floor_xid", sa.BigInteger, nullable=False),
        sa.Column("floor_event", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("singleton", name="pk_event_watch"),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_event_watch_singleton")),
    )
    if dialect == "postgresql":
        _create_postgresql_event_triggers()
    else:
        _create_sqlite_event_triggers()


_NOTED = "xid, at, task_id, name, status, former, attempt, concurrency_key, tags"


def _create_postgresql_event_triggers() -> None:
    """Note changes statement by statement, which costs little where there are many rows."""

    def note(status: str, former: str, source: str) -> str:
        return f"""
            INSERT INTO task_events ({_NOTED})
            SELECT pg_current_xact_id()::text::bigint, clock_timestamp(), task.task_id, task.name,
                {status}, {former}, task.attempt, task.concurrency_key, task.tags
            FROM {source};"""  # noqa: S608 (made of constants)

    changed = """new_rows AS task JOIN old_rows ON old_rows.task_id = task.task_id
            WHERE task.status <> old_rows.status"""
    # Whoever may insert tasks need not have a right to these tables. And our sessions plan without
    # hash joins, which would compare each row with each here.
    op.execute(
        f"""
        CREATE FUNCTION note_task_events() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path FROM CURRENT SET enable_hashjoin = on AS $$
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM event_watch WHERE until > clock_timestamp()) THEN
                RETURN NULL;
            END IF;
            IF TG_OP = 'INSERT' THEN {note("task.status", "NULL", "new_rows AS task")}
            ELSIF TG_OP = 'DELETE' THEN {note("NULL", "task.status", "old_rows AS task")}
            ELSE {note("task.status", "old_rows.status", changed)}
            END IF;
            RETURN NULL;
        END $$"""  # noqa: S608 (made of constants)
    )
    for event, tables in (
        ("INSERT", "NEW TABLE AS new_rows"),
        ("UPDATE", "NEW TABLE AS new_rows OLD TABLE AS old_rows"),
        ("DELETE", "OLD TABLE AS old_rows"),
    ):
        op.execute(
            f"CREATE TRIGGER note_{event.lower()} AFTER {event} ON scheduled_tasks "
            f"REFERENCING {tables} FOR EACH STATEMENT EXECUTE FUNCTION note_task_events()"
        )


def _create_sqlite_event_triggers() -> None:
    now = _NOW["sqlite"]
    for event, row, status, former, condition in (
        ("INSERT", "NEW", "NEW.status", "NULL", ""),
        ("UPDATE OF status", "NEW", "NEW.status", "OLD.status", "NEW.status <> OLD.status AND"),
        ("DELETE", "OLD", "NULL", "OLD.status", ""),
    ):
        values = ", ".join(
            (
                *("0", now, f"{row}.task_id", f"{row}.name", status, former),
                *(f"{row}.{name}" for name in ("attempt", "concurrency_key", "tags")),
            )
        )
        op.execute(
            f"CREATE TRIGGER note_{event.split()[0].lower()} AFTER {event} ON scheduled_tasks "  # noqa: S608 (constants)
            f"WHEN {condition} EXISTS (SELECT 1 FROM event_watch WHERE until > {now}) "
            f"BEGIN INSERT INTO task_events ({_NOTED}) VALUES ({values}); END"
        )


def _create_sqlite_triggers() -> None:
    """Bring times written by hand (datetime('now'), ISO 8601 with T and Z) to the stored form.

    SQLite compares them as text, so that they only sort right when all have one form. What is
    no time at all becomes NULL, which the column refuses.
    """
    for event in ("INSERT", "UPDATE OF run_at"):
        op.execute(
            f"CREATE TRIGGER scheduled_tasks_{event.split()[0].lower()} AFTER {event} "  # noqa: S608 (constants)
            f"ON scheduled_tasks WHEN NEW.run_at NOT GLOB '{_STORED_FORM}' "
            # It has the form, and is no time all the same: February 31st, say.
            f"OR {_WHOLE_NORMALISED} IS NOT {_WHOLE} BEGIN "
            f"UPDATE scheduled_tasks SET run_at = {_NORMALISED} "
            "WHERE task_id = NEW.task_id; END"
        )
