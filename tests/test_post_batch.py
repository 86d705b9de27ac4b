"""POST /tasks/batch: all tasks are created, or none is, and each has its answer."""

import asyncio
import json
import threading
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from job_scheduler.admission import Admission
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.constants import (
    BATCH_BODY_MAX_BYTES,
    BATCH_FAULTS_NAMED,
    BATCH_MAX_TASKS,
    BODY_MAX_BYTES,
    UnknownTasks,
)
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.exceptions import Overloaded
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until
from tests.test_post_task import inserts_refused, together

NOON = "2031-07-01T12:00:00Z"
only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)


def some(number: int, **members: Any) -> list[dict[str, Any]]:
    """Bodies of tasks that can be told apart."""
    return [task_body(**{"run_at": NOON, "payload": {"n": n}} | members) for n in range(number)]


def send(client: TestClient, tasks: Any, key: str | None = None) -> Any:
    """POST a batch."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/tasks/batch", json={"tasks": tasks}, headers=headers)


def created(client: TestClient, tasks: Any, key: str | None = None) -> list[dict[str, Any]]:
    """POST a batch and return its tasks."""
    response = send(client, tasks, key)
    assert response.status_code == 201, response.text
    return list(response.json())


def refused(response: Any, status: int = 422, error_code: str = "VALIDATION_422") -> dict[str, str]:
    """Check a refusal, and return what it says of each field of the body."""
    problem = assert_problem(response, status, error_code)
    assert {error["location"] for error in problem["errors"]} == {"body"}
    return {error["field"]: error["detail"] for error in problem["errors"]}


# ------------------------------------------------------------------------- created


def test_answer_has_each_task_as_it_is_shown_in_the_order_of_the_request(store: Backend) -> None:
    wanted = some(30, name="a") + some(30, name="é😀", max_attempts=3, on_crash="hold")
    wanted += [task_body(run_at="2031-07-01 14:00+02:00"), task_body(payload={"a": 1.0, "b": [{}]})]
    with running(store) as client:
        response = send(client, wanted)
        assert response.status_code == 201
        assert response.headers["content-type"] == "application/json"
        answered = response.json()
        for task, asked in zip(answered, wanted, strict=True):
            assert client.get(f"/tasks/{task['task_id']}").json() == task
            # As text: for Python 1 and 1.0 are equal.
            assert repr(task["payload"]) == repr(asked.get("payload"))
            assert (task["name"], task["status"]) == (asked["name"], "scheduled")
        assert answered[60]["run_at"] == NOON
        assert (answered[59]["max_attempts"], answered[59]["on_crash"]) == (3, "hold")
        # A batch of one is answered as a single task is.
        [one] = created(client, some(1))
        assert one.keys() == post(client).keys()
    assert {UUID(task["task_id"]).version for task in answered} == {7}
    assert store.count() == 64


def test_as_many_as_are_allowed_are_created(store: Backend) -> None:
    with running(store) as client:
        answered = created(client, some(BATCH_MAX_TASKS))
        assert [task["payload"]["n"] for task in answered] == list(range(BATCH_MAX_TASKS))
    assert store.count() == len({task["task_id"] for task in answered}) == BATCH_MAX_TASKS


def test_tasks_run_at_their_times_each_once(store: Backend, registry: HandlerRegistry) -> None:
    runs: list[int] = []
    registry.task("note")(lambda n: runs.append(n))
    moments = [later(-1), later(0), later(0.3), later(0.6), later(0.6), later(4)] * 100
    wanted = [
        task_body(name="note", run_at=moment, payload={"n": n}) for n, moment in enumerate(moments)
    ]
    with running(store, registry) as client:
        answered = created(client, wanted)
        wait_until(lambda: store.count("status = 'done'") == len(moments), 30, "the runs")
        started = [
            client.get(f"/tasks/{task['task_id']}").json()["started_at"] for task in answered[:6]
        ]
    assert sorted(runs) == list(range(len(moments)))
    assert all(began >= task["run_at"] for began, task in zip(started, answered, strict=False))


# ------------------------------------------------------------------------- refused


@pytest.mark.parametrize("number", [0, BATCH_MAX_TASKS + 1])
def test_number_of_tasks_is_bounded(store: Backend, number: int) -> None:
    with running(store) as client:
        details = refused(send(client, some(number)))
        assert list(details) == ["tasks"]
        assert "from 1 to 10000 tasks" in details["tasks"]
    assert store.count() == 0


@pytest.mark.parametrize(
    ("members", "field", "said"),
    [
        ({"run_at": "tomorrow"}, "run_at", "Not an ISO 8601 date and time"),
        ({"name": ""}, "name", "Must not be empty"),
        ({"max_attempts": 0}, "max_attempts", "greater than or equal to 1"),
        ({"when": NOON}, "when", "There is no such field here"),
        ({"task_id": "7"}, "task_id", "Not a UUID"),
    ],
)
def test_one_bad_field_of_one_task_refuses_all(
    store: Backend, members: dict[str, Any], field: str, said: str
) -> None:
    tasks = some(8_000)
    tasks[7312] |= members
    with running(store) as client:
        details = refused(send(client, tasks))
        assert list(details) == [f"tasks.7312.{field}"]
        assert said in details[f"tasks.7312.{field}"]
    assert store.count() == 0


def test_as_many_faults_are_named_as_are_of_use(store: Backend) -> None:
    tasks = [{"name": "", "run_at": "", "payload": 1} for _ in range(BATCH_MAX_TASKS)]
    with running(store) as client:
        response = send(client, tasks)
        assert len(refused(response)) == BATCH_FAULTS_NAMED
        assert len(response.content) < 10_000


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ([], "", "Must be a JSON object"),
        (7, "", "Must be a JSON object"),
        ({}, "tasks", "This field is required"),
        ({"tasks": {}}, "tasks", "Must be a JSON array"),
        ({"tasks": [{"name": "a", "run_at": NOON}], "task": 1}, "task", "There is no such field"),
        ({"tasks": [None]}, "tasks.0", "Must be a JSON object, with a name and a run_at"),
        ({"tasks": [[]]}, "tasks.0", "Must be a JSON object, with a name and a run_at"),
        ({"tasks": ["a"]}, "tasks.0", "Must be a JSON object, with a name and a run_at"),
    ],
    ids=str,
)
def test_body_of_another_form_is_refused(store: Backend, body: Any, field: str, said: str) -> None:
    with running(store) as client:
        details = refused(client.post("/tasks/batch", json=body))
        assert list(details) == [field]
        assert said in details[field]


def test_body_is_bounded_by_a_limit_of_its_own(store: Backend) -> None:
    fits = some(3, payload={"long": "x" * BODY_MAX_BYTES})
    too_long = {"tasks": some(1, payload={"long": "x" * BATCH_BODY_MAX_BYTES})}
    as_json = {"Content-Type": "application/json"}
    with running(store) as client:
        assert len(created(client, fits)) == 3
        problem = assert_problem(client.post("/tasks", json=fits[0]), 413, "BODY_413")
        assert str(BODY_MAX_BYTES) in problem["detail"]
        problem = assert_problem(client.post("/tasks/batch", json=too_long), 413, "BODY_413")
        assert str(BATCH_BODY_MAX_BYTES) in problem["detail"]
        problem = assert_problem(client.post("/tasks/batch"), 422, "VALIDATION_422")
        assert problem["detail"] == "A JSON body is required."
        assert_problem(client.post("/tasks/batch", content=b"{}"), 415, "BODY_415")
        answer = client.post("/tasks/batch", content=b'{"tasks":', headers=as_json)
        assert_problem(answer, 400, "BODY_400")
        answer = client.post("/tasks/batch", content=b'{"tasks": [{"a": 1e999}]}', headers=as_json)
        assert_problem(answer, 422, "BODY_422")
    assert store.count() == 3


def test_unknown_names_are_rejected_where_the_configuration_asks_for_it(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("greet")(lambda **_: None)
    tasks = some(50, name="greet")
    tasks[3]["name"] = tasks[40]["name"] = "gret"
    with running(store, registry, unknown_tasks=UnknownTasks.Reject) as client:
        details = refused(send(client, tasks), 422, "TASK_NAME_422")
        assert list(details) == ["tasks.3.name", "tasks.40.name"]
        assert "greet, send_report" in details["tasks.3.name"]
        response = send(client, some(50))
        assert len(refused(response, 422, "TASK_NAME_422")) == BATCH_FAULTS_NAMED
        assert response.json()["detail"].endswith("; and 30 more.")
        assert store.count() == 0
        assert len(created(client, some(2, name="greet"))) == 2


# ------------------------------------------------------------- the callers' own ids


def test_one_id_may_not_stand_in_two_tasks(store: Backend) -> None:
    tasks = some(5)
    tasks[1]["task_id"] = str(uuid4())
    tasks[3]["task_id"] = tasks[1]["task_id"].upper()
    with running(store) as client:
        details = refused(send(client, tasks))
        assert details == {"tasks.3.task_id": "The same task_id as that of tasks.1."}
    assert store.count() == 0


def test_repeated_batch_yields_the_same_tasks(store: Backend) -> None:
    tasks = [task | {"task_id": str(uuid4())} for task in some(20)]
    more = [*some(1), *tasks, *some(1)]
    with running(store) as client:
        alone = post(client, **tasks[7])
        answered = created(client, tasks)
        assert answered[7] == alone
        assert created(client, tasks) == answered
        assert created(client, more)[1:-1] == answered
    assert store.count() == 22


def test_another_body_under_an_id_refuses_all(store: Backend) -> None:
    tasks = [task | {"task_id": str(uuid4())} for task in some(4)]
    with running(store) as client:
        post(client, **tasks[1])
        present = post(client, **tasks[2] | {"name": "another"})
        details = refused(send(client, tasks), 409, "TASK_CREATE_409")
        assert list(details) == ["tasks.2.task_id"]
        assert present["task_id"] in details["tasks.2.task_id"]
        assert len(services_of(client).timer) == 0
    assert store.count() == 2


def test_of_concurrent_different_batches_one_wins(store: Backend) -> None:
    ids = [str(uuid4()) for _ in range(50)]
    bodies = [some(1, name="a"), some(1, name="b")] * 4
    batches = [[body | {"task_id": task_id} for task_id in ids] for [body] in bodies]
    # Half of them in the opposite order: they are not to wait for each other.
    batches = [batch[:: 1 - n // 4 * 2] for n, batch in enumerate(batches)]
    with running(store) as client:
        answers = together([lambda batch=batch: send(client, batch) for batch in batches])  # type: ignore[misc]
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [201] * 4 + [409] * 4
        assert len(set(statuses[::2])) == 1
    assert store.count() == 50


# --------------------------------------------------------------- Idempotency-Key


def test_key_names_the_whole_batch(store: Backend) -> None:
    tasks = some(20)
    with running(store) as client:
        answered = created(client, tasks, "import-7")
        assert created(client, tasks, '"import-7"') == answered
        assert {UUID(task["task_id"]).version for task in answered} == {5}
        single = client.post("/tasks", json=tasks[0], headers={"Idempotency-Key": "import-7"})
        assert single.status_code == 201
        assert single.json()["task_id"] not in {task["task_id"] for task in answered}
        created(client, tasks, "import-70")
        created(client, tasks)
    assert store.count() == 61


def test_key_has_the_same_tasks_for_ever(store: Backend) -> None:
    # A release that reckoned otherwise would make a second batch for a key of the one before.
    with running(store) as client:
        answered = created(client, some(2), "8e03978e-40d5-43dd-bc93-6894a57f9324")
    assert [task["task_id"] for task in answered] == [
        "c7796ffb-64a8-531f-a93d-820b69fed18f",
        "f7d9730e-29ca-5067-a405-e1ab947684eb",
    ]


@pytest.mark.parametrize("number", [1, 9, 11, 40])
def test_shorter_or_longer_batch_under_the_same_key_is_refused(store: Backend, number: int) -> None:
    with running(store) as client:
        answered = created(client, some(10), "import-7")
        problem = assert_problem(send(client, some(number), "import-7"), 422, "IDEMPOTENCY_422")
        assert "'import-7' was used for a batch with another body" in problem["detail"]
        [error] = problem["errors"]
        assert (error["location"], error["field"]) == ("header", "Idempotency-Key")
        assert created(client, some(10), "import-7") == answered
    assert store.count() == 10


def test_other_tasks_under_the_same_key_are_refused(store: Backend) -> None:
    tasks = some(10)
    with running(store) as client:
        created(client, tasks, "import-7")
        tasks[9]["payload"] = {"n": 9.0}
        assert_problem(send(client, tasks, "import-7"), 422, "IDEMPOTENCY_422")
        assert_problem(send(client, tasks[::-1], "import-7"), 422, "IDEMPOTENCY_422")
    assert store.count() == 10


def test_batch_of_which_a_task_is_gone_is_not_completed(store: Backend) -> None:
    with running(store) as client:
        answered = created(client, some(3), "import-7")
        client.delete(f"/tasks/{answered[1]['task_id']}")
        problem = assert_problem(send(client, some(3), "import-7"), 422, "IDEMPOTENCY_422")
        assert "some of that batch's tasks are gone" in problem["detail"]
        assert store.count() == 2
        for task in (answered[0], answered[2]):
            client.delete(f"/tasks/{task['task_id']}")
        again = created(client, some(3), "import-7")
    assert [task["task_id"] for task in again] == [task["task_id"] for task in answered]
    assert store.count() == 3


def test_of_concurrent_batches_under_one_key_one_wins(store: Backend) -> None:
    sizes = [5, 10, 20, 10, 5, 20]
    with running(store) as client:
        answers = together(
            [lambda size=size: send(client, some(size), "import-7") for size in sizes]  # type: ignore[misc]
        )
        number = store.count()
        for size, answer in zip(sizes, answers, strict=True):
            assert answer.status_code == (201 if size == number else 422)


def test_key_and_task_id_exclude_each_other(store: Backend) -> None:
    tasks = some(3)
    tasks[2]["task_id"] = str(uuid4())
    with running(store) as client:
        problem = assert_problem(send(client, tasks, "import-7"), 422, "VALIDATION_422")
        assert "Leave out task_id, or the header" in problem["detail"]
    assert store.count() == 0


# ------------------------------------------------------------------ when it fails


def lose_the_connection(client: TestClient, *, at: str, made: bool) -> None:
    """Let it break once, after the INSERT or at the COMMIT, with the commit made or not."""
    engine = services_of(client).database.engine
    lost = OperationalError(at, {}, ConnectionError("the driver's own words"))

    def at_commit(connection: Connection) -> None:
        if connection.get_execution_options().get("immediate"):
            event.remove(engine, "commit", at_commit)
            if made:
                connection.connection.commit()
            else:
                connection.connection.rollback()
            raise lost

    def after_insert(*arguments: Any) -> None:
        if arguments[2].startswith("INSERT INTO scheduled_tasks"):
            event.remove(engine, "after_cursor_execute", after_insert)
            raise lost

    if at == "COMMIT":
        event.listen(engine, "commit", at_commit)
    else:
        event.listen(engine, "after_cursor_execute", after_insert)


@pytest.mark.parametrize(
    ("at", "made", "code"),
    [
        ("INSERT", False, "DATABASE_503"),
        ("COMMIT", False, "DATABASE_503_UNKNOWN"),
        ("COMMIT", True, "DATABASE_503_UNKNOWN"),
    ],
)
def test_repetition_after_an_outage_makes_each_task_once(
    store: Backend, registry: HandlerRegistry, at: str, made: bool, code: str
) -> None:
    runs: list[int] = []
    registry.task("note")(lambda n: runs.append(n))
    tasks = some(300, name="note", run_at=later(1))
    with running(store, registry) as client:
        lose_the_connection(client, at=at, made=made)
        response = send(client, tasks, "import-7")
        assert_problem(response, 503, code)
        assert int(response.headers["Retry-After"]) > 0
        assert "own words" not in response.text
        assert store.count() == (300 if made else 0)
        assert len(created(client, tasks, "import-7")) == 300
        wait_until(lambda: len(runs) >= 300, 20, "the runs")
        finished(client, post(client, run_at=later(0.1))["task_id"])
    assert sorted(runs) == list(range(300))
    assert store.count("name = 'note'") == 300


@only_postgresql
def test_outage_before_the_batch_leaves_nothing_behind(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:
        behind = Backend(proxy.url_for(store.db_url))
        with running(behind) as client:
            proxy.cut()
            assert_problem(send(client, some(10, run_at=later(3))), 503, "DATABASE_503")
            assert len(services_of(client).timer) == 0
            proxy.heal()
            wait_until(lambda: send(client, some(10)).status_code == 201, 20, "the database")
    assert store.count() == 10


def test_database_that_refuses_one_task_leaves_nothing_behind(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    tasks = some(300, run_at=later(3))
    tasks[299]["name"] = "refused"
    with inserts_refused(store), running(store, scheduler=lambda: scheduler) as client:
        response = send(client, tasks)
        problem = assert_problem(response, 500, "TASK_CREATE_500")
        assert "300 tasks could not be scheduled, and none" in problem["detail"]
        assert "own words" not in response.text
        assert (store.count(), len(services_of(client).timer), scheduler.get_jobs()) == (0, 0, [])


class Forgetful(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler brings no types
    """An APScheduler that takes so many jobs, and no more."""

    room = 250

    def add_job(self, *arguments: Any, **options: Any) -> Any:
        """Take a job, if there is room."""
        if len(self.get_jobs()) >= self.room:
            raise RuntimeError("the scheduler's own words")
        return super().add_job(*arguments, **options)


def test_scheduler_that_takes_some_and_refuses_one_leaves_nothing_behind(store: Backend) -> None:
    scheduler = Forgetful()
    tasks = [task_body(run_at=later(2 + n / 200)) for n in range(300)]
    with running(store, scheduler=lambda: scheduler) as client:
        assert_problem(send(client, tasks), 500, "TASK_CREATE_500")
        assert (store.count(), len(services_of(client).timer), scheduler.get_jobs()) == (0, 0, [])
        scheduler.room = 1_000
        assert len(created(client, tasks)) == 300
        assert len(scheduler.get_jobs()) == 300


def test_scheduler_that_stands_still_accepts_no_batch(store: Backend) -> None:
    scheduler = AsyncIOScheduler()
    with running(store, scheduler=lambda: scheduler) as client:
        scheduler.pause()
        assert_problem(send(client, some(2)), 500, "TASK_CREATE_500")
    assert store.count() == 0


def test_request_that_is_cancelled_leaves_its_tasks_to_the_sweep_or_to_nobody(
    store: Backend, registry: HandlerRegistry
) -> None:
    runs: list[int] = []
    registry.task("note")(lambda n: runs.append(n))
    tasks = some(300, name="note", run_at=later(1))
    inserted, go_on = threading.Event(), threading.Event()

    def wait_after_insert(*arguments: Any) -> None:
        if arguments[2].startswith("INSERT INTO scheduled_tasks"):
            inserted.set()
            go_on.wait(10)

    with running(store, registry) as client:
        services = services_of(client)
        event.listen(services.database.engine, "after_cursor_execute", wait_after_insert)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await client.app(scope | {"state": dict(client.app_state)}, receive, send)

        async def cancel_in_the_middle() -> None:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as caller:
                call = asyncio.ensure_future(caller.post("/tasks/batch", json={"tasks": tasks}))
                assert await asyncio.to_thread(inserted.wait, 10)
                assert len(services.timer) == 300
                call.cancel()
                await asyncio.wait([call])
                assert call.cancelled()
                assert len(services.timer) == 0
                go_on.set()

        assert client.portal is not None
        client.portal.call(cancel_in_the_middle)
        wait_until(lambda: len(runs) >= 300, 20, "the runs")
        with services.batches.room(2 * BATCH_BODY_MAX_BYTES):
            assert not services.batches.turn.locked()
    assert sorted(runs) == list(range(300))


# -------------------------------------------------------------------- many at once


def test_body_that_does_not_arrive_holds_its_room_for_a_while_only(store: Backend) -> None:
    sent: list[Any] = []

    async def nothing_comes() -> Any:
        await asyncio.sleep(3_600)

    async def send_part(message: Any) -> None:
        sent.append(message)

    with running(store) as client:
        services_of(client).batches.upload_seconds = 0.1
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/tasks/batch",
            "query_string": b"",
            "headers": [(b"content-length", str(BATCH_BODY_MAX_BYTES).encode())],
            "state": dict(client.app_state),
        }
        client.portal.call(client.app, scope, nothing_comes, send_part)  # type: ignore[union-attr]
        start, body = sent
        assert (start["status"], json.loads(body["body"])["error_code"]) == (408, "BODY_408")
        with services_of(client).batches.room(2 * BATCH_BODY_MAX_BYTES):
            pass


def test_bodies_for_which_there_is_no_room_are_refused_at_once(store: Backend) -> None:
    with running(store) as client:
        services = services_of(client)
        with services.batches.room(2 * BATCH_BODY_MAX_BYTES - 1_000):
            response = send(client, some(100))
            assert_problem(response, 503, "OVERLOADED_503")
            assert int(response.headers["Retry-After"]) > 0
            assert len(created(client, some(1))) == 1
            # One whose length is not told may become as long as any.
            content = (part for part in [b'{"tasks": []}'])
            chunked = {"Content-Type": "application/json"}
            response = client.post("/tasks/batch", content=content, headers=chunked)
            assert_problem(response, 503, "OVERLOADED_503")
        assert len(created(client, some(100))) == 100
    assert store.count() == 101


def test_room_is_given_back_however_it_ends() -> None:
    admission = Admission(1, 10, 60.0)

    def fail() -> None:
        with admission.room(10):
            with pytest.raises(Overloaded), admission.room(1):
                raise AssertionError("there is none")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with admission.room(10):
        pass


def test_many_batches_at_once_are_all_created(store: Backend) -> None:
    with running(store) as client:
        answers = together([lambda: created(client, some(200))] * 8)
    assert len({task["task_id"] for tasks in answers for task in tasks}) == 1_600
    assert store.count() == 1_600
