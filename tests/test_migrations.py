"""The schema: models and migrations agree, migrating is safe, plain SQL makes valid tasks."""

import re
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from job_scheduler.constants import TaskStatus
from job_scheduler.core.models import Base
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import DatabaseUnavailable, SchemaError
from job_scheduler.migrations.upgrade import create_database, missing_revisions, upgrade
from tests.conftest import POSTGRESQL, SQLITE
from tests.support.app import Backend, finished, later, running
from tests.support.services import temporary_database

only_sqlite = pytest.mark.parametrize("db_url", [SQLITE], indirect=True)
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A database of each kind without any table."""
    if request.param == "sqlite":
        yield Backend(f"sqlite:///{tmp_path}/empty.db")
        return
    with temporary_database(request.getfixturevalue("postgresql_database")) as url:
        yield Backend(url)


# --------------------------------------------------------- the models and the migrations


def catalogue(connection: Connection) -> dict[str, Any]:
    """All that a database knows about its tables, in its own words."""
    if connection.dialect.name == "postgresql":
        statements = {
            "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default "
            "FROM information_schema.columns WHERE table_schema = 'public'",
            "constraints": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace",
            "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
            "settings": "SELECT relname, reloptions FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
        }
        return {
            name: sorted(
                tuple(row)
                for row in connection.execute(text(statement))
                if "alembic_version" not in str(row)
            )
            for name, statement in statements.items()
        }
    inspector = inspect(connection)
    found: dict[str, Any] = {}
    for table in ("scheduled_tasks", "instances"):
        found[table] = [
            sorted(
                tuple(row)[1:] for row in connection.execute(text(f"PRAGMA table_info({table})"))
            ),
            sorted(
                (check["name"] or "", " ".join(check["sqltext"].split()))
                for check in inspector.get_check_constraints(table)
            ),
            inspector.get_pk_constraint(table),
            sorted(
                " ".join(row[0].split())
                for row in connection.execute(
                    text(
                        "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table"
                    ),
                    {"table": table},
                )
                if row[0]
            ),
        ]
    return found


def test_migrations_make_what_the_models_say(empty: Backend) -> None:
    with empty.database() as database:
        Base.metadata.create_all(database.engine)
        with database.reading() as connection:
            wanted = catalogue(connection)
        Base.metadata.drop_all(database.engine)
        assert upgrade(database) == ["0001"]
        with database.reading() as connection:
            migrated = catalogue(connection)
    assert migrated == wanted
    assert "ck_scheduled_tasks_status" in str(wanted)
    if "settings" in wanted:
        # A vacuum comes in time, however many finished tasks there are.
        assert "autovacuum_vacuum_scale_factor=0.02" in str(wanted["settings"])


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_alembic_finds_no_difference(store: Backend) -> None:
    with store.database() as database, database.writing() as connection:
        # Alembic does not ask an index whether it is one of this database.
        others = {"ix_scheduled_tasks_tags"} if store.dialect == "sqlite" else set()
        options = {
            "compare_server_default": False,
            "include_object": lambda _, name, *_others: name not in others,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


# ------------------------------------------------------------------------ migrating


def test_migrating_again_changes_nothing(empty: Backend) -> None:
    with empty.database() as database:
        with database.reading() as connection:
            assert missing_revisions(connection) == ["0001"]
        assert upgrade(database) == ["0001"]
        task_id = empty.insert_task()
        assert upgrade(database) == []
        with database.reading() as connection:
            assert missing_revisions(connection) == []
    assert empty.row(task_id)["status"] == "scheduled"


def test_several_migrators_at_once_migrate_once(empty: Backend) -> None:
    applied: list[list[str]] = []
    together = threading.Barrier(4)

    def migrate() -> None:
        with empty.database() as database:
            together.wait()
            applied.append(upgrade(database))

    threads = [threading.Thread(target=migrate) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], ["0001"]]


def test_migration_that_breaks_leaves_nothing_behind(empty: Backend) -> None:
    empty.sql("CREATE TABLE instances (in_the_way INTEGER)")
    with empty.database() as database:
        with pytest.raises(DBAPIError, match="already exists"):
            upgrade(database)
        assert inspect(database.engine).get_table_names() == ["instances"]
        empty.sql("DROP TABLE instances")
        assert upgrade(database) == ["0001"]


def test_newer_schema_is_not_touched(empty: Backend) -> None:
    with empty.database() as database:
        upgrade(database)
        empty.sql("UPDATE alembic_version SET version_num = '0815'")
        with pytest.raises(SchemaError, match="revision 0815, which this release does not know"):
            upgrade(database)


@pytest.mark.postgresql
def test_missing_database_is_created_once_by_several(postgresql_database: str) -> None:
    name = f'js_test "{uuid4().hex}"'
    url = make_url(postgresql_database).set(database=name)
    created: list[bool] = []
    together = threading.Barrier(3)

    def create() -> None:
        together.wait()
        created.append(create_database(url))

    threads = [threading.Thread(target=create) for _ in range(together.parties)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(created) == [False, False, True]
        assert create_database(url) is False
        with Backend(url.render_as_string(hide_password=False)).database() as database:
            assert upgrade(database) == ["0001"]
    finally:
        administer(
            postgresql_database, f'DROP DATABASE IF EXISTS "{name.replace(chr(34), chr(34) * 2)}"'
        )


@pytest.mark.postgresql
def test_database_that_may_not_be_created_is_not(postgresql_database: str) -> None:
    role = f"js_test_{uuid4().hex}"
    administer(postgresql_database, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        url = make_url(postgresql_database).set(
            username=role, password="secret", database=f"{role}_database"
        )
        assert create_database(url) is False
        assert create_database(url.set(password="wrong", port=1)) is False
        database = Database(build_engine(url))
        with pytest.raises(DatabaseUnavailable) as caught:
            upgrade(database)
        assert f'database "{role}_database" does not exist' in str(caught.value.__cause__)
        database.close()
    finally:
        administer(postgresql_database, f"DROP ROLE {role}")


def administer(url: str, statement: str) -> None:
    """Run a statement that no transaction may hold."""
    with Backend(url).database() as database:
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


# --------------------------------------------------------------------------- plain SQL


def test_name_and_run_at_alone_make_a_valid_task(store: Backend) -> None:
    before = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    task_ids = [store.insert_task("probe", run_at="2027-07-01 10:00:00.000000") for _ in range(50)]
    row = store.row(task_ids[0])
    assert row["run_at"] == datetime(2027, 7, 1, 10, tzinfo=UTC)
    assert (row["status"], row["attempt"], row["max_attempts"]) == (TaskStatus.Scheduled, 0, 1)
    assert row["priority"] == 0
    given = {"task_id", "name", "run_at", "status", "attempt", "max_attempts", "priority"}
    given |= {"created_at", "updated_at"}
    assert {name: value for name, value in row.items() if name not in given} == dict.fromkeys(
        row.keys() - given
    )
    assert abs((row["created_at"] - before).total_seconds()) < 30
    assert row["updated_at"] == pytest.approx(row["created_at"], abs=datetime.resolution * 10_000)
    ids = [UUID(task_id) for task_id in task_ids]
    assert len(set(ids)) == 50
    for uuid, task_id in zip(ids, task_ids, strict=True):
        assert str(uuid) == task_id
        assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
        age = (uuid.int >> 80) / 1000 - before.timestamp()
        assert abs(age) < 30
    # Neighbours in the index: their times do not go back.
    assert [uuid.int >> 80 for uuid in ids] == sorted(uuid.int >> 80 for uuid in ids)


def test_task_of_another_programs_transaction_counts_when_it_commits(store: Backend) -> None:
    with running(store) as client, store.database() as database:
        with database.writing() as connection:
            statement = text(
                "INSERT INTO scheduled_tasks (name, run_at) VALUES ('kept', :run_at) "
                "RETURNING CAST(task_id AS text)"
            )
            kept = str(connection.execute(statement, {"run_at": later(0)}).scalar_one())
        with database.writing() as connection:
            connection.execute(statement, {"run_at": later(0)})
            connection.rollback()
        assert finished(client, kept)["name"] == "kept"
        assert [task["task_id"] for task in client.get("/tasks").json()] == [kept]


@pytest.mark.parametrize(
    "columns",
    [
        {"run_at": "some day"},
        {"run_at": "2027-13-01 00:00:00"},
        {"run_at": "2027-99-99 99:99:99.000000"},
        {"run_at": ""},
        {"run_at": None},
        {"name": ""},
        {"name": "x" * 256},
        {"name": None},
        {"status": "unheard of"},
        {"payload": "[1]"},
        {"payload": "7"},
        {"payload": "not json"},
        {"task_id": "01a20a39-34ca-7881-bace-cb3991bf28e5"},
    ],
    ids=str,
)
def test_what_is_no_valid_task_is_refused_by_the_database(
    store: Backend, columns: dict[str, Any]
) -> None:
    store.insert_task(task_id="01a20a39-34ca-7881-bace-cb3991bf28e5")
    with pytest.raises(DBAPIError):
        store.insert_task(**columns)
    assert store.count() == 1


@only_postgresql
@pytest.mark.parametrize("run_at", ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC"])
def test_times_that_python_does_not_know_are_refused(store: Backend, run_at: str) -> None:
    with pytest.raises(IntegrityError, match="ck_scheduled_tasks_run_at"):
        store.insert_task(run_at=run_at)


@only_sqlite
@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("2027-07-01T10:00:00Z", "2027-07-01 10:00:00.000000"),
        ("2027-07-01T10:00:00.123456Z", "2027-07-01 10:00:00.123000"),
        ("2027-07-01 10:00:00", "2027-07-01 10:00:00.000000"),
        ("2027-07-01 10:00:00.5", "2027-07-01 10:00:00.500000"),
        ("2027-07-01T12:30:00+02:30", "2027-07-01 10:00:00.000000"),
        ("2027-06-30 22:00:00-12:00", "2027-07-01 10:00:00.000000"),
        ("2027-07-01 10:00", "2027-07-01 10:00:00.000000"),
        ("2027-07-01", "2027-07-01 00:00:00.000000"),
        ("2027-07-01 10:00:00.123456", "2027-07-01 10:00:00.123456"),
        ("2027-02-31 10:00:00.000000", "2027-03-03 10:00:00.000000"),
        ("2027-02-31", "2027-03-03 00:00:00.000000"),
    ],
)
def test_times_written_by_hand_are_brought_to_one_form(
    store: Backend, written: str, stored: str
) -> None:
    inserted = store.insert_task(run_at=written)
    updated = store.insert_task()
    store.sql(
        "UPDATE scheduled_tasks SET run_at = :run_at WHERE task_id = :task_id",
        run_at=written,
        task_id=updated,
    )
    kept = [row["run_at"] for row in store.sql("SELECT run_at FROM scheduled_tasks")]
    assert kept == [stored, stored]
    assert store.row(inserted)["run_at"] == datetime.fromisoformat(f"{stored}+00:00")


@only_sqlite
def test_sqlites_own_now_makes_a_task_that_runs_at_once(store: Backend, tmp_path: Path) -> None:
    file = make_url(store.db_url).database
    assert file is not None
    with running(store) as client:
        other = sqlite3.connect(file)
        with other:
            other.execute(
                "INSERT INTO scheduled_tasks (name, run_at) VALUES ('probe', datetime('now'))"
            )
        [[task_id, run_at]] = other.execute("SELECT task_id, run_at FROM scheduled_tasks")
        other.close()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.000000", run_at)
        assert finished(client, task_id)["status"] == "done"
    assert tmp_path.exists()


@only_sqlite
def test_wrong_time_is_refused_by_an_update_too(store: Backend) -> None:
    task_id = store.insert_task()
    before = store.row(task_id)
    with pytest.raises(IntegrityError, match="run_at"):
        store.sql("UPDATE scheduled_tasks SET run_at = 'tomorrow'")
    assert store.row(task_id) == before
