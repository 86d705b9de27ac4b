"""This project's service, as one process, as it comes."""

import json
import re
import sys
from collections.abc import Sequence

from sqlalchemy import create_engine, text

from benchmarks.peers.kit import DB_URL, REDIS_URL, ROOT, Answer, Child, serve
from benchmarks.peers.over_http import Connection, HttpPeer, NotCreated, post_all, task

BATCH = 1_000
_LEFT = "SELECT count(*) FROM scheduled_tasks WHERE status IN ('scheduled', 'running')"
_INSERT = {
    "postgresql": (
        "INSERT INTO scheduled_tasks (name, run_at, payload) "
        "SELECT 'noop', to_timestamp(due), json_build_object('number', :first + place - 1) "
        "FROM unnest(CAST(:due AS float[])) WITH ORDINALITY AS given(due, place)"
    ),
    "sqlite": (
        "INSERT INTO scheduled_tasks (name, run_at, payload) SELECT 'noop', "
        "strftime('%Y-%m-%d %H:%M:%f000', value, 'unixepoch'), "
        "json_object('number', :first + key) FROM json_each(:due)"
    ),
}


class Service(HttpPeer):
    """Started and stopped; tasks over HTTP, in bulk where it can, else by plain SQL."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._engine = create_engine(DB_URL)
        self._environ = {
            "DB_URL": DB_URL,
            "REDIS_URL": REDIS_URL,
            "TASK_MODULES": "benchmarks.peers.handlers",
            "PYTHONPATH": str(ROOT),
        }

    async def setup(self) -> None:
        """Migrate."""
        child = Child([sys.executable, "-m", "job_scheduler", "migrate"], "setup", **self._environ)
        await child.until(lambda log: "applied" in log or "up to date" in log)
        child.stop()

    async def work(self) -> Answer:
        """Start an instance."""
        command = [sys.executable, "-m", "job_scheduler", "serve", "--port", "0"]
        self._child = Child(command, "service", **self._environ)
        found = await self._child.until(lambda log: re.search(r"is ready: (\S+)", log))
        self.url = found.group(1)
        return {"pids": [self._child.pid]}

    async def store(self, first: int, due: Sequence[float]) -> Answer:
        """POST /tasks/batch where there is one, else plain SQL: both are ways in of ours."""
        if self.url:
            try:
                await post_all(self.url, _batches(first, due), "/tasks/batch")
            except* NotCreated as refused:
                if any(one.status not in (404, 405) for one in _all(refused)):
                    raise
            else:
                return {"by": "POST /tasks/batch"}
        with self._engine.begin() as connection:
            sqlite = connection.dialect.name == "sqlite"
            given = json.dumps(list(due)) if sqlite else list(due)
            statement = text(_INSERT[connection.dialect.name])
            connection.execute(statement, {"first": first, "due": given})
        return {"by": "plain SQL"}

    async def batch(self, seconds: float, due: float) -> Answer:
        """Batches over HTTP; there is nothing to compare where the route is missing."""
        await self.work()
        async with Connection(self.url) as connection:
            await connection.post("/tasks/batch", _batches(0, [due])[0])
        return await super().batch(seconds, due)

    async def left(self) -> int:
        """Count what is neither done nor failed."""
        with self._engine.connect() as connection:
            statement = (
                "SELECT count(*) FROM scheduled_tasks WHERE status IN ('scheduled','running')"
            )
            waiting: int = connection.execute(text(statement)).scalar_one()
        return waiting

    async def close(self) -> None:
        """Stop the instance."""
        self._engine.dispose()
        if self._child is not None:
            self._child.stop()


def _batches(first: int, due: Sequence[float]) -> list[bytes]:
    return [
        json.dumps(
            {
                "tasks": [
                    task(first + place, moment)
                    for place, moment in enumerate(due[begin : begin + BATCH], begin)
                ]
            }
        ).encode()
        for begin in range(0, len(due), BATCH)
    ]


def _all(group: BaseExceptionGroup[NotCreated]) -> list[NotCreated]:
    return [
        inner
        for one in group.exceptions
        for inner in (_all(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


if __name__ == "__main__":
    serve(Service)
