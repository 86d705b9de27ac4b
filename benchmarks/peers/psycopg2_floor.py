"""A floor: psycopg2 on our own table, with nothing around it.

One INSERT a commit, multi-row INSERTs, and claim and complete by 100 through one connection.
"""

import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg2
from psycopg2.extras import Json, execute_values

from benchmarks.peers.kit import DB_URL, LIBPQ_URL, ROOT, Child, Peer, ran, serve, slices

CLAIMED_AT_ONCE = 100
_INSERT = "INSERT INTO scheduled_tasks (name, run_at, payload) VALUES "
_CLAIM = """
UPDATE scheduled_tasks SET status = 'running', attempt = attempt + 1, started_at = now(),
    claim_token = gen_random_uuid()
WHERE task_id = ANY(%s::uuid[]) AND status = 'scheduled' AND run_at <= now()
RETURNING task_id, claim_token, payload"""
_COMPLETE = """
UPDATE scheduled_tasks AS task SET status = 'done', finished_at = now()
FROM unnest(%s::uuid[], %s::uuid[]) AS given (task_id, token)
WHERE task.task_id = given.task_id AND task.claim_token = given.token"""


class Floor(Peer):
    """One connection for each caller."""

    threads = True

    def __init__(self) -> None:
        self._local = threading.local()

    def _connection(self) -> Any:
        if not hasattr(self._local, "connection"):
            self._local.connection = psycopg2.connect(LIBPQ_URL)
        return self._local.connection

    async def setup(self) -> None:
        """Our own schema."""
        command = [sys.executable, "-m", "job_scheduler", "migrate"]
        child = Child(command, "setup", DB_URL=DB_URL, PYTHONPATH=str(ROOT))
        await child.until(lambda log: "applied" in log)
        child.stop()

    async def create_one(self, number: int, due: float) -> None:
        """INSERT, COMMIT."""
        connection = self._connection()
        with connection, connection.cursor() as cursor:
            row = ("noop", datetime.fromtimestamp(due, UTC), Json({"number": number}))
            cursor.execute(_INSERT + "(%s, %s, %s)", row)

    async def store(self, first: int, due: Sequence[float]) -> None:
        """A commit for each 1,000 rows."""
        connection = self._connection()
        for pairs in slices(first, due):
            rows = [
                ("noop", datetime.fromtimestamp(moment, UTC), Json({"number": number}))
                for number, moment in pairs
            ]
            with connection, connection.cursor() as cursor:
                execute_values(cursor, _INSERT + "%s", rows, page_size=len(rows))

    async def work(self) -> None:
        """Wait for what is stored, then for its instant."""
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        connection = self._connection()
        while True:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT array_agg(task_id::text), extract(epoch FROM min(run_at) - now()) "
                    "FROM (SELECT task_id, run_at FROM scheduled_tasks WHERE status = 'scheduled' "
                    "ORDER BY run_at) AS waiting"
                )
                ids, seconds = cursor.fetchone()
            if ids is None or seconds > 1:
                time.sleep(0.1)
                continue
            time.sleep(max(0.0, float(seconds)))
            for begin in range(0, len(ids), CLAIMED_AT_ONCE):
                self._run(connection, ids[begin : begin + CLAIMED_AT_ONCE])

    def _run(self, connection: Any, ids: Sequence[str]) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute(_CLAIM, (ids,))
            claimed = cursor.fetchall()
        for _, _, payload in claimed:
            ran(payload["number"])
        with connection, connection.cursor() as cursor:
            cursor.execute(
                _COMPLETE, ([task_id for task_id, _, _ in claimed], [t for _, t, _ in claimed])
            )

    async def left(self) -> int:
        """Count what is not done."""
        connection = self._connection()
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM scheduled_tasks WHERE status <> 'done'")
            waiting: int = cursor.fetchone()[0]
        return waiting


if __name__ == "__main__":
    serve(Floor)
