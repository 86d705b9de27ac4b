"""What a task runs, from outside: isolated handlers, webhooks, commands; and what it tells."""

import asyncio
import base64
import logging
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from sqlalchemy.engine import make_url

from job_scheduler import Fail, RunContext
from job_scheduler.core.claims import Claim
from job_scheduler.core.handlers.context import Progress
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.progress import ProgressBoard
from job_scheduler.database import Database, build_engine
from job_scheduler.exceptions import DatabaseUnavailable
from job_scheduler.identifiers import new_token
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    parse_time,
    post,
    running,
    shown,
    task_body,
)
from tests.support.process_tasks import isolated
from tests.support.processes import gone
from tests.support.receiver import Receiver
from tests.support.services import wait_until

LOOPBACK = "127.0.0.1/32"
KEYS = [base64.b64encode(letter * 32).decode() for letter in (b"a", b"b")]
SECRET = ",".join(f"whsec_{key}" for key in KEYS)


def runs(client: Any, task_id: str) -> list[dict[str, Any]]:
    """The attempts at a task."""
    return list(client.get(f"/tasks/{task_id}/runs").json())


# ------------------------------------------------------------------------- isolation


def test_isolated_handler_runs_in_a_process_of_its_own(backend: Backend) -> None:
    with running(backend, isolated) as client:
        first = finished(client, post(client, name="where", run_at=later(0))["task_id"])
        second = finished(client, post(client, name="where", run_at=later(0))["task_id"])
    assert first["result"] | {"pid": 0} == {"pid": 0, "attempt": 1, "name": "where"}
    assert first["result"]["pid"] not in (os.getpid(), None)
    assert second["result"]["pid"] == first["result"]["pid"]  # it is kept for the next one
    assert first["progress"] == {"fraction": 0.5, "message": "half-way"}
    assert gone(first["result"]["pid"])


def test_service_lives_on_when_a_worker_falls(store: Backend) -> None:
    with running(store, isolated, process_memory=1_024) as client:
        fell = finished(client, post(client, name="fall", run_at=later(0))["task_id"])
        ate = finished(client, post(client, name="devour", run_at=later(0))["task_id"])
        assert [run["outcome"] for run in runs(client, fell["task_id"])] == ["failed", "failed"]
        assert client.get("/health").json()["status"] == "ok"
        after = finished(client, post(client, name="where", run_at=later(0))["task_id"])
    assert (fell["status"], ate["status"], after["status"]) == ("failed", "failed", "done")
    assert "exit status 3" in fell["result"]
    assert "MemoryError" in ate["result"]


@pytest.mark.parametrize("how", ["timeout", "cancel", "stop"])
def test_worker_is_killed_with_all_that_it_has_started(store: Backend, how: str) -> None:
    members = {"timeout": 3.0} if how == "timeout" else {}
    with running(store, isolated, shutdown_grace=0) as client:
        # Its worker waits for the next: the start of a process is no part of the time below.
        finished(client, post(client, name="where", run_at=later(0))["task_id"])
        task_id = post(client, name="linger", run_at=later(0), **members)["task_id"]
        progress = wait_until(lambda: shown(client, task_id)["progress"])
        assert progress is not None
        child = int(progress["message"])
        if how == "cancel":
            client.post(f"/tasks/{task_id}/cancel")
        if how != "stop":
            ended = finished(client, task_id)
            wait_until(lambda: gone(child))
            assert client.get("/health").json()["scheduler"]["lost"] == 0
    wait_until(lambda: gone(child))
    if how == "stop":
        ended = store.row(task_id)
    assert ended["status"] == {"timeout": "failed", "cancel": "cancelled", "stop": "failed"}[how]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: None, "it is a lambda"),
        (asyncio.sleep, "it is async"),
    ],
)
def test_handler_that_no_process_can_find_is_refused(function: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HandlerRegistry().task("probe", isolation="process")(function)


# ------------------------------------------------------------------------- webhooks


def test_webhook_is_repeated_until_it_is_taken(backend: Backend) -> None:
    with (
        Receiver([503, 503, 200]) as receiver,
        running(backend, webhook_allow=LOOPBACK, webhook_secret=SECRET) as client,
    ):
        task = post(
            client,
            name="nightly",
            run_at=later(0),
            max_attempts=5,
            retry_delay=[0.1, 0.2],
            webhook={"url": f"{receiver.url}/nightly?a=1", "body": {"full": True}},
        )
        ended = finished(client, task["task_id"])
        attempts = runs(client, task["task_id"])
    assert ended["status"] == "done"
    assert ended["result"]["status"] == 200
    assert ended["result"]["body"] == {"received": 3}
    assert [run["outcome"] for run in attempts] == ["failed", "failed", "done"]
    assert "503" in attempts[0]["result"]
    starts = [parse_time(run["started_at"]) for run in attempts]
    assert starts[1] - starts[0] >= timedelta(seconds=0.1)
    assert starts[2] - starts[1] >= timedelta(seconds=0.2)
    assert {request.path for request in receiver.requests} == {"/nightly?a=1"}
    assert {request.headers["webhook-id"] for request in receiver.requests} == {task["task_id"]}
    assert [request.headers["job-scheduler-attempt"] for request in receiver.requests] == list(
        "123"
    )
    for request in receiver.requests:
        for key in KEYS:
            payload = standardwebhooks.Webhook(key).verify(request.body, request.headers)
            assert payload == {"full": True}


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"webhook": {"url": "http://127.0.0.1/"}}, "webhook.url"),
        ({"webhook": {"url": "http://169.254.169.254/latest"}}, "webhook.url"),
        ({"webhook": {"url": "ftp://example.com/"}}, "webhook.url"),
        ({"webhook": {"url": "https://example.com/"}, "payload": {}}, "webhook"),
        ({"webhook": {"url": "https://example.com/"}, "command": ["true"]}, "command"),
        ({"command": ["true"], "payload": {}}, "command"),
        ({"command": ["true"]}, "command"),
        ({"command": []}, "command"),
    ],
)
def test_bad_webhook_or_command_is_refused_when_it_is_posted(
    store: Backend, members: dict[str, Any], field: str
) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(**members))
        problem = assert_problem(response, 422, "VALIDATION_422")
        batch = client.post("/tasks/batch", json={"tasks": [task_body(**members)]})
        assert_problem(batch, 422, "VALIDATION_422")
    assert [error["field"] for error in problem["errors"]] == [field]


def test_webhook_to_an_inside_address_fails_at_once(store: Backend) -> None:
    """Its name leads there, say, or the row was written by hand."""
    task_id = store.insert_task(
        run_at=later(0), max_attempts=5, webhook='{"url": "http://localhost:1/"}'
    )
    with running(store) as client:
        task = finished(client, task_id)
    assert (task["status"], task["attempt"]) == ("failed", 1)
    assert "WEBHOOK_ALLOW" in task["result"]


def test_webhook_that_is_none_fails(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(0), max_attempts=5, webhook="[1]")
    with running(store) as client:
        task = finished(client, task_id)
    assert (task["status"], task["attempt"]) == ("failed", 1)
    assert "webhook" in task["result"]


def test_same_request_makes_one_webhook(store: Backend) -> None:
    webhook = {"url": "https://example.com/", "headers": {"X-A": "b"}, "body": [1, 1.5]}
    with running(store) as client:
        body = task_body(webhook=webhook, task_id=new_token())
        first = client.post("/tasks", json=body)
        assert first.json()["webhook"] == webhook
        assert client.post("/tasks", json=body).json() == first.json()
        other = body | {"webhook": webhook | {"body": [1, 1]}}
        assert_problem(client.post("/tasks", json=other), 409, "TASK_CREATE_409")


# ------------------------------------------------------------------------- commands


def test_command_runs_without_a_shell(backend: Backend) -> None:
    with running(backend, command_allow="echo,sh") as client:
        task = post(client, run_at=later(0), command=["echo", "$HOME;", "*"])
        failing = post(client, run_at=later(0), command=["sh", "-c", "echo broken >&2; exit 7"])
        ended = finished(client, task["task_id"])
        failed = finished(client, failing["task_id"])
        refused = client.post("/tasks", json=task_body(command=["rm", "-r", "/"]))
        assert_problem(refused, 422, "VALIDATION_422")
    assert ended["result"] == {"exit_status": 0, "stdout": "$HOME; *\n", "stderr": ""}
    assert failed["status"] == "failed"
    assert "7" in failed["result"]
    assert "broken" in failed["result"]


def test_command_is_cancelled(store: Backend) -> None:
    with running(store, command_allow="sleep") as client:
        task_id = post(client, run_at=later(0), command=["sleep", "3600"])["task_id"]
        wait_until(lambda: shown(client, task_id)["status"] == "running")
        client.post(f"/tasks/{task_id}/cancel")
        assert finished(client, task_id)["status"] == "cancelled"


@pytest.mark.parametrize("stored", ['"ls"', "[]", "[1]", '{"a": 1}'])
def test_command_that_is_none_fails(store: Backend, stored: str) -> None:
    task_id = store.insert_task(run_at=later(0), command=stored)
    with running(store, command_allow="ls") as client:
        task = finished(client, task_id)
    assert task["status"] == "failed"
    assert "command" in task["result"]


# ------------------------------------------------------------- progress and tracebacks


def test_progress_shows_while_the_handler_runs(backend: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe(context: RunContext) -> None:
        for step in range(1_000):
            context.progress(step / 2_000, f"step {step}")
        await asyncio.Event().wait()  # for ever

    with running(backend, registry) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        half = {"fraction": 0.4995, "message": "step 999"}
        wait_until(lambda: shown(client, task_id)["progress"] == half)
        assert shown(client, task_id)["status"] == "running"
        client.post(f"/tasks/{task_id}/cancel")
        assert finished(client, task_id)["progress"] == half


def test_last_word_of_a_run_is_stored_before_its_result(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", max_attempts=2, retry_delay=0)
    def probe(context: RunContext) -> None:
        if context.attempt == 1:
            context.progress(1, "\ud800all")
            raise ValueError

    with running(store, registry) as client:
        failing = post(client, run_at=later(0), max_attempts=1)
        repeated = post(client, run_at=later(0))
        assert finished(client, failing["task_id"])["progress"] == {
            "fraction": 1.0,
            "message": "\ufffdall",
        }
        # What the attempt before has said is not the present one's.
        assert finished(client, repeated["task_id"])["progress"] is None


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_progress_is_from_0_to_1(fraction: float) -> None:
    context = RunContext("id", "probe", 1, "token", datetime.max)  # noqa: DTZ901 (any will do)
    with pytest.raises(ValueError, match="from 0 to 1"):
        context.progress(fraction)


def test_progress_that_cannot_be_stored_holds_no_result_up(
    store: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        registry = HandlerRegistry()

        @registry.task("probe")
        async def probe(context: RunContext) -> str:
            context.progress(0.5)
            store.sql("ALTER TABLE scheduled_tasks RENAME COLUMN progress TO elsewhere")
            return "all of it"

        task_id = store.insert_task(run_at=later(-1))
        async with bench(store, registry) as one:
            run = asyncio.ensure_future(one.runner.run_task(task_id))
            try:
                await asyncio.wait([run], timeout=15)
            finally:
                store.sql("ALTER TABLE scheduled_tasks RENAME COLUMN elsewhere TO progress")
            await run
        assert store.row(task_id)["result"] == "all of it"
        assert "its progress could not be stored" in capfd.readouterr().err

    asyncio.run(scenario())


def test_context_tells_when_and_how_long(store: Backend, caplog: pytest.LogCaptureFixture) -> None:
    registry = HandlerRegistry()

    @registry.task("probe", timeout=60)
    def probe(context: RunContext) -> list[str]:
        context.logger.warning("told")
        assert context.deadline is not None
        return [context.scheduled_for.isoformat(), context.deadline.isoformat()]

    with running(store, registry) as client:
        logging.getLogger("job_scheduler").addHandler(caplog.handler)
        try:
            task = post(client, run_at=later(0.2))
            ended = finished(client, task["task_id"])
        finally:
            logging.getLogger("job_scheduler").removeHandler(caplog.handler)
    scheduled_for, deadline = map(datetime.fromisoformat, ended["result"])
    assert scheduled_for == parse_time(task["run_at"])
    assert deadline == parse_time(ended["started_at"]) + timedelta(seconds=60)
    [record] = [each for each in caplog.records if each.name == "job_scheduler.task"]
    assert task["task_id"] in record.getMessage()


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("error", [ValueError("told"), Fail("told")])
def test_traceback_is_kept_and_shown_where_that_is_allowed(
    store: Backend, allowed: bool, error: Exception
) -> None:
    registry = HandlerRegistry()

    def a_telling_name() -> None:
        raise error

    registry.task("probe")(a_telling_name)
    with running(store, registry, show_tracebacks=allowed) as client:
        task_id = post(client, run_at=later(0))["task_id"]
        finished(client, task_id)
        [run] = runs(client, task_id)
    [kept] = store.sql("SELECT traceback FROM task_runs")
    assert "a_telling_name" in kept["traceback"]
    assert run["traceback"] == (kept["traceback"] if allowed else None)


class Foreign(Exception):
    """An exception of some library, which has a member of the same name for something else."""

    def details(self) -> str:
        """Tell more."""
        return "more"


def test_exception_may_have_details_of_its_own(store: Backend) -> None:
    registry = HandlerRegistry()

    def a_telling_name() -> None:
        raise Foreign("theirs")

    registry.task("probe")(a_telling_name)
    with running(store, registry) as client:
        task = finished(client, post(client, run_at=later(0))["task_id"])
    assert (task["status"], task["result"]) == ("failed", "tests.test_works.Foreign: theirs")
    [kept] = store.sql("SELECT traceback FROM task_runs")
    assert "a_telling_name" in kept["traceback"]


def test_long_result_is_cut(store: Backend) -> None:
    registry = HandlerRegistry()
    registry.task("probe")(lambda: "x" * 2_000)
    with running(store, registry, max_result_bytes=1_000) as client:
        task = finished(client, post(client, run_at=later(0))["task_id"])
    assert task["result"]["truncated"] is True
    assert task["result"]["bytes"] == 2_002


def test_progress_is_dropped_while_the_database_is_away() -> None:
    now = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    claim = Claim(
        "id", "token", "me", 1, 1, None, now, now, "probe", None, None, now, None, None, {}
    )

    async def scenario() -> None:
        database = Database(build_engine(make_url("postgresql+psycopg2://postgres@127.0.0.1:1/x")))
        board = ProgressBoard(database)
        board.note(claim, Progress(0.5, None))
        await board.settle(claim)
        await board.store()  # there is nothing left to be stored
        board.note(claim, Progress(0.6, None))
        with pytest.raises(DatabaseUnavailable):
            await board.store()
        database.close()

    asyncio.run(scenario())
