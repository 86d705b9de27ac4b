"""A connection that breaks just before the reply to COMMIT, and in mid-transaction: at the wire."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.core.creation import create_tasks
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.exceptions import CommitOutcomeUnknown, DatabaseUnavailable
from job_scheduler.identifiers import new_token
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until

pytestmark = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


class CommitCutter(Proxy):
    """Passes COMMIT on, waits for the reply, and closes the connection instead of passing it.

    It does so `cuts` times, for transactions in which a statement that holds `marker` was seen.
    """

    marker = b"scheduled_tasks"
    cuts = 0
    done = 0

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._condemned: set[frozenset[Any]] = set()

    async def _forward(self, source: Any, sink: Any) -> None:
        data, marked, both_ends = b"any", False, frozenset({source, sink})
        while data:
            data = await self._loop.sock_recv(source, 65536)
            await self._flowing.wait()
            marked = marked or self.marker in data
            if b"COMMIT\0" in data and data[:1] == b"Q":
                if marked and self.done < self.cuts:
                    self._condemned.add(both_ends)
                marked = False
            elif data[:1] == b"C" and b"COMMIT\0" in data and both_ends in self._condemned:
                self._condemned.discard(both_ends)
                self.done += 1
                return  # which closes both sides
            await self._loop.sock_sendall(sink, data)


@contextmanager
def cutting(store: Backend) -> Iterator[tuple[CommitCutter, Backend]]:
    """A backend behind a proxy that cuts off commits, once it is told to."""
    with CommitCutter.before(store.db_url) as cutter:
        url = make_url(cutter.url_for(store.db_url)).update_query_dict({"sslmode": "disable"})
        yield cutter, Backend(url.render_as_string(hide_password=False))


@pytest.mark.parametrize("by_key", [False, True])
def test_create_whose_commit_was_not_answered_is_unknown_and_repeated_into_one_task(
    store: Backend, registry: HandlerRegistry, by_key: bool
) -> None:
    runs: list[int] = []
    registry.task("count")(lambda: runs.append(1))
    body = task_body(name="count", run_at=later(1.5))
    headers = {"Idempotency-Key": "an-order"} if by_key else {}
    if not by_key:
        body["task_id"] = new_token()
    with cutting(store) as (cutter, through), running(through, registry) as client:
        cutter.marker = b"INSERT INTO scheduled_tasks"
        cutter.cuts = 1
        response = client.post("/tasks", json=body, headers=headers)
        assert_problem(response, 503, "DATABASE_503_UNKNOWN")
        assert store.count() == 1  # it had been carried out
        answers = [client.post("/tasks", json=body, headers=headers) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["task_id"] for answer in answers}) == 1
        finished(client, answers[0].json()["task_id"])
    assert (store.count(), len(runs), cutter.done) == (1, 1, 1)


def test_claim_and_record_whose_commits_were_not_answered_are_found_by_their_token(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[int] = []

    @registry.task("count")
    def count() -> str:
        runs.append(1)
        cutter.marker = b"INSERT INTO task_runs"
        cutter.cuts += 2
        return "counted"

    task_id = store.insert_task("count", run_at=later(-1))

    async def scenario(through: Backend) -> None:
        async with bench(through, registry) as one:
            cutter.marker = b"WITH due"
            cutter.cuts = 2
            await one.runner.run_task(task_id)

    with cutting(store) as (cutter, through):
        asyncio.run(scenario(through))
        # The claim is made anew twice; the record finds itself written twice.
        assert (cutter.done, runs) == (4, [1])
    row = store.row(task_id)
    assert (row["status"], row["attempt"], row["result"]) == ("done", 1, "counted")
    assert store.sql("SELECT outcome FROM task_runs") == [{"outcome": "done"}]


def test_session_that_is_ended_in_mid_transaction_has_changed_nothing(store: Backend) -> None:
    def end_myself(connection: Connection) -> None:
        connection.exec_driver_sql("DELETE FROM scheduled_tasks")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        store.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        connection.exec_driver_sql("SELECT 1")

    async def scenario() -> None:
        with store.database() as database:
            with pytest.raises(DatabaseUnavailable) as caught:
                await database.write(end_myself)
            assert not isinstance(caught.value, CommitOutcomeUnknown)
            assert await database.write(create_tasks, []) == []

    store.insert_task()
    asyncio.run(scenario())
    assert store.count() == 1


def test_every_session_ended_again_and_again_loses_and_doubles_nothing(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[str] = []

    @registry.task("note")
    def note(label: str) -> None:
        runs.append(label)

    def end_all_sessions() -> None:
        store.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def create(client: Any, label: str) -> bool:
        body["payload"] = {"label": label}
        return bool(client.post("/tasks", json=body | {"task_id": label}).status_code == 201)

    body = task_body(name="note", run_at=later(0))
    labels = [new_token() for _ in range(40)]
    with running(store, registry, threads=4) as client:
        for place, label in enumerate(labels):
            if place % 4 == 0:
                end_all_sessions()
            wait_until(lambda label=label: create(client, label), 20)  # type: ignore[misc]
        end_all_sessions()
        for label in labels:
            assert finished(client, label, 30)["status"] == "done"
    assert sorted(runs) == sorted(labels)


def test_closed_connections_are_replaced_unnoticed_by_the_heart_and_by_a_report(
    store: Backend, registry: HandlerRegistry
) -> None:
    with running(store, registry, lease_seconds=60) as client:
        services = services_of(client)
        report = services.works.registry.get("send_report")
        assert report is not None
        for _ in range(2):
            store.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            services.heartbeat.beat()
            assert report.function(hours=1)["tasks_by_status"] == {}


def test_outage_is_no_busy_loop_and_what_ended_meanwhile_is_recorded(
    store: Backend, registry: HandlerRegistry
) -> None:
    release, begun = threading.Event(), threading.Event()
    attempts: list[int] = []

    @registry.task("slow")
    def slow() -> str:
        begun.set()
        assert release.wait(30)
        return "kept"

    with Proxy.before(store.db_url) as proxy:
        through = Backend(proxy.url_for(store.db_url))
        with running(through, registry, lease_seconds=30) as client:
            task_id = post(client, name="slow", run_at=later(0))["task_id"]
            assert begun.wait(10)
            services = services_of(client)
            event.listen(services.database.engine, "do_connect", lambda *_: attempts.append(1))
            proxy.cut()
            release.set()
            response = client.post("/tasks", json=task_body())
            assert response.status_code == 503
            # Three seconds of outage, as the machine's own clock tells.
            client.portal.call(asyncio.sleep, 3)  # type: ignore[union-attr]
            count = len(attempts)
            proxy.heal()
            ended = finished(client, task_id)
    assert (ended["status"], ended["result"]) == ("done", "kept")
    # Sweep, rescue, record and others try each at its own pace, a few times a second in all.
    assert 3 <= count <= 60
