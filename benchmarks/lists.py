"""python -m benchmarks.lists: what each kind of list costs among millions of tasks, and its plan.

It fills a database of its own on your PostgreSQL server, runs the service's own functions on it,
and each of their statements once more under EXPLAIN (ANALYZE, BUFFERS). It prints the table of
docs/lists.md; with --write it puts it there. The database is dropped in the end.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, text

from benchmarks.report import table
from benchmarks.servers import Servers, administration
from job_scheduler.constants import Sort, TaskStatus
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.listing import Place, list_tasks
from job_scheduler.database import Database, build_engine
from job_scheduler.migrations.upgrade import upgrade

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lists.md"
BEGIN, END = "<!-- python -m benchmarks.lists --write -->\n", "<!-- end -->\n"
DB_URL = "postgresql+psycopg2://postgres@127.0.0.1:5432/postgres"
_LIMIT = 100

# By n: of 1,000 tasks 940 are done, 40 scheduled, 15 failed, 3 cancelled and 2 unknown.
_FILL = text("""
    INSERT INTO scheduled_tasks (name, run_at, status, result, created_at, finished_at, started_at,
                                 attempt, concurrency_key, tags, retry_at, claim_token)
    SELECT CASE WHEN n = 77 THEN 'only-one' ELSE 'task-' || abs(hashint8(n) % 1000) END,
           due, status, CASE WHEN status = 'done' THEN json_build_object('n', n) END,
           due - interval '3 hours' * random(),
           CASE WHEN status NOT IN ('scheduled', 'running')
                THEN due + interval '1 minute' * random() END,
           CASE WHEN status <> 'scheduled' THEN due END,
           CASE WHEN status <> 'scheduled' THEN 1 ELSE 0 END,
           CASE WHEN n % 20 = 3 THEN 'customer-' || n % 30000 WHEN n % 20 = 4 THEN 'bulk' END,
           CASE WHEN n % 10000 = 5 THEN '["billing", "rare"]' WHEN n % 20 = 5 THEN '["billing"]'
                WHEN n % 20 = 6 THEN jsonb_build_array('team-' || n % 3000) END,
           CASE WHEN status = 'scheduled' AND n % 50 = 0 THEN due + interval '1 minute' END,
           CASE WHEN status = 'running' THEN gen_random_uuid() END
    FROM (
        SELECT n, status, CAST(:now AS timestamptz) + CASE
            WHEN status = 'scheduled' THEN interval '10 days' * n / :rows
            ELSE interval '60 days' * (n::float / :rows - 1) END AS due
        FROM (
            SELECT n, CASE WHEN n > :rows - 100 THEN 'running' WHEN place < 940 THEN 'done'
                WHEN place < 980 THEN 'scheduled' WHEN place < 995 THEN 'failed'
                WHEN place < 998 THEN 'cancelled' ELSE 'unknown' END AS status
            FROM (SELECT n, n * 7919 % 1009 * 1000 / 1009 AS place
                  FROM generate_series(CAST(1 AS bigint), :rows) AS n) AS numbers
        ) AS drawn
    ) AS timed""")


@dataclass(frozen=True)
class Kind:
    """One kind of list; `skip` is how many days before now its page begins, if not at the front."""

    wanted: dict[str, Any]
    sort: Sort = Sort.RunAt
    begins: float | None = None

    def place(self, now: datetime) -> Place | None:
        """Return where its page begins; None: at the front."""
        if self.begins is None:
            return None
        return Place(now - timedelta(days=self.begins), "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61")

    def __str__(self) -> str:
        words = [f"{name}={_shown(value)}" for name, value in self.wanted.items()]
        words += [f"sort={self.sort.value}"] if self.sort is not Sort.RunAt else []
        words += ["a page further on"] if self.begins is not None else []
        return ", ".join(words) or "(none)"


@dataclass
class Look:
    """What a list took: its answer, and a plan for each of its statements."""

    rows: int
    goes_on: bool
    ms: float
    plans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def indexes(self) -> str:
        """The indexes that were read, and sequential scans, if any."""
        names: dict[str, None] = {}
        for plan in self.plans:
            for node in _nodes(plan["Plan"]):
                if node["Actual Loops"] and "Scan" in node["Node Type"]:
                    if "Index Name" in node:
                        names[node["Index Name"].removeprefix("ix_scheduled_tasks_")] = None
                    elif node.get("Relation Name") and "Bitmap" not in node["Node Type"]:
                        names[f"**{node['Node Type']}**"] = None
        return ", ".join(names)

    @property
    def buffers(self) -> int:
        """Pages of 8 KiB that were looked at."""
        return sum(
            plan["Plan"][f"Shared {how} Blocks"] for plan in self.plans for how in ("Hit", "Read")
        )


def kinds(now: datetime) -> list[Kind]:
    """Return the lists that are tried."""
    failed, unknown = TaskStatus.Failed, TaskStatus.Unknown
    done, scheduled, running = TaskStatus.Done, TaskStatus.Scheduled, TaskStatus.Running
    hour, day = timedelta(hours=1), timedelta(days=1)
    ago = now - 30 * day
    return [
        Kind({}),
        Kind({}, begins=30),
        Kind({}, Sort.LatestRunAt),
        Kind({}, Sort.CreatedAt),
        Kind({}, Sort.LatestCreatedAt, begins=30),
        Kind({}, Sort.LatestFinishedAt),
        Kind({"due_after": ago, "due_before": ago + hour}),
        Kind({"created_after": ago, "created_before": ago + hour}),
        Kind({"created_after": ago}, Sort.CreatedAt),
        Kind({"created_after": ago}),
        Kind({"finished_after": now - hour}),
        Kind({"finished_before": ago}, Sort.LatestFinishedAt),
        Kind({"status": [done]}),
        Kind({"status": [done]}, Sort.LatestRunAt),
        Kind({"status": [scheduled]}),
        Kind({"status": [scheduled]}, Sort.LatestRunAt),
        Kind({"status": [scheduled]}, begins=-5),
        Kind({"status": [scheduled]}, Sort.CreatedAt),
        Kind({"status": [running]}),
        Kind({"status": [failed, unknown]}),
        Kind({"status": [failed, unknown]}, Sort.LatestRunAt, begins=30),
        Kind({"status": [failed]}, Sort.LatestFinishedAt),
        Kind({"status": [running, failed, scheduled]}),
        Kind({"name": ["task-7"]}),
        Kind({"name": ["task-7", "task-8"]}, Sort.LatestRunAt),
        Kind({"name": ["only-one"]}, begins=50),
        Kind({"name": ["nothing"]}, Sort.LatestCreatedAt),
        Kind({"name": ["task-7"], "status": [failed]}),
        Kind({"name": ["task-7"], "status": [scheduled]}),
        Kind({"tag": ["rare"]}),
        Kind({"tag": ["billing", "rare"]}, Sort.LatestCreatedAt),
        Kind({"tag": ["billing"]}),
        Kind({"tag": ["team-6"], "status": [failed]}),
        Kind({"tag": ["nothing"]}),
        Kind({"key": ["customer-3"]}),
        Kind({"key": ["customer-3"]}, Sort.LatestCreatedAt),
        Kind({"key": ["bulk"]}, Sort.LatestRunAt),
        Kind({"key": ["bulk"]}, Sort.LatestCreatedAt),
        Kind({"key": ["bulk"], "status": [failed]}),
        Kind({"q": "SK-77"}),
        Kind({"q": "no such text"}),
        Kind({"q": "no such text"}, Sort.LatestCreatedAt),
        Kind({"q": "SK-77", "status": [scheduled]}),
        Kind({"q": "no such text", "tag": ["billing"], "status": [done]}, Sort.LatestFinishedAt),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(getattr(one, "value", one)) for one in value)
    return f"{value:%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


@contextmanager
def collected(connection: Connection, made: list[tuple[str, Any]]) -> Iterator[None]:
    """Collect the statements that are executed in the block, with their parameters."""

    def note(*arguments: Any) -> None:
        made.append((arguments[2], arguments[3]))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", note)


def look(connection: Connection, kind: Kind, now: datetime) -> Look:
    """Make a list, the second time with its pages in memory, and explain its statements."""
    after = kind.place(now)
    wanted = TaskFilter(**kind.wanted)
    for _ in range(2):
        made: list[tuple[str, Any]] = []
        begin = time.perf_counter()
        with collected(connection, made):
            page = list_tasks(connection, wanted, kind.sort, _LIMIT, after)
        seconds = time.perf_counter() - begin
    found = Look(len(page.rows), page.following is not None, seconds * 1000)
    for statement, parameters in made:
        explained = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        ).scalar_one()
        found.plans += explained if isinstance(explained, list) else json.loads(explained)
    return found


def fill(database: Database, rows: int, now: datetime) -> None:
    """Insert the tasks, and build the indexes after it."""
    with database.writing() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '512MB'")
        indexes = connection.exec_driver_sql(
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename = 'scheduled_tasks' AND indexname LIKE 'ix_%%'"
        ).all()
        for name, _ in indexes:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.execute(_FILL, {"rows": rows, "now": now})
        for _, definition in indexes:
            connection.exec_driver_sql(definition)


def measure(db_url: str, rows: int) -> str:
    """Return the table."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with Servers(db_url, None).database(Path()) as url:
        database = Database(build_engine(url))
        try:
            upgrade(database)
            begin = time.monotonic()
            fill(database, rows, now)
            with administration(url).connect() as connection:
                connection.exec_driver_sql("VACUUM (ANALYZE) scheduled_tasks")
            print(f"{rows:,} tasks in {time.monotonic() - begin:.0f} s", flush=True)
            with database.reading() as connection:
                looks = [(kind, look(connection, kind, now)) for kind in kinds(now)]
        finally:
            database.close()
    heads = ["filter and sort", "indexes read", "statements", "tasks", "ms", "8 KiB pages"]
    return table(heads, [_cells(kind, found) for kind, found in looks])


def _cells(kind: Kind, found: Look) -> list[str]:
    return [
        str(kind),
        found.indexes,
        f"{len(found.plans)}",
        f"{found.rows}{'+' if found.goes_on else ''}",
        f"{found.ms:.1f}",
        f"{found.buffers:,}",
    ]


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lists", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--db-url", default=DB_URL, help="your PostgreSQL server")
    parser.add_argument("--write", action="store_true", help="into docs/lists.md")
    given = parser.parse_args()
    found = f"\n{given.rows:,} tasks:\n\n{measure(given.db_url, given.rows)}\n\n"
    print(found)
    if given.write:
        PAGE.write_text(re.sub(f"(?s)(?<={BEGIN}).*(?={END})", lambda _: found, PAGE.read_text()))


if __name__ == "__main__":
    main()
