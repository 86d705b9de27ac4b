"""The Python client against the real service; both kinds of client do the same."""

import asyncio
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, assert_type, get_type_hints
from uuid import UUID, uuid4

import httpx
import pytest

import job_scheduler
from job_scheduler import client as package
from job_scheduler.client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    Event,
    EventFilter,
    Explanation,
    FieldError,
    Forecast,
    ForecastInterval,
    ForecastName,
    Handler,
    ImportReport,
    Invalid,
    Moment,
    NewTask,
    NotEnded,
    NotFound,
    Outcome,
    Preview,
    Reason,
    Refusal,
    Run,
    ServiceUnavailable,
    Task,
    TaskFilter,
    TaskMatch,
    Unreachable,
)
from job_scheduler.client.shapes import Shape
from job_scheduler.core import (
    schemas_events,
    schemas_explain,
    schemas_forecast,
    schemas_handlers,
    schemas_runs,
    schemas_task,
    schemas_times,
    schemas_transfer,
)
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_list import FilterQuery, ListQuery
from tests.support.app import ROOT, ServiceProcess
from tests.support.clients import Make, Respond, Wire, answering, lost, problem, refused
from tests.support.services import find_free_port, wait_until

NOON = datetime(2099, 7, 1, 12, tzinfo=UTC)
MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
SHOWN = {
    "task_id": MISSING,
    "name": "greet",
    "run_at": "2099-07-01T12:00:00Z",
    "status": "scheduled",
}


@pytest.fixture
def client(make: Make, remote: ServiceProcess) -> Any:
    """A client of the real service, of each kind."""
    return make(remote.url)


# ----------------------------------------------------------------------- making tasks


def test_every_member_of_a_task_arrives(client: Any) -> None:
    members: dict[str, Any] = {
        "run_at": datetime(2099, 7, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        "payload": {"name": "Ada", "times": 2},
        "max_attempts": 3,
        "on_crash": "hold",
        "retry_delay": [1, 2.5],
        "retry_max_delay": 60.0,
        "start_before": NOON + timedelta(hours=1),
        "timeout": 2.5,
        "priority": 2,
        "concurrency_key": "k",
        "max_running": 3,
        "on_done": {"url": "https://example.com/done"},
        "on_failed": {"url": "https://example.com/failed"},
        "tags": ("billing", "é"),
    }
    task = client.create("greet", **members)
    assert isinstance(task, Task)
    kept = members | {"run_at": NOON, "tags": ["billing", "é"]}
    assert {name: getattr(task, name) for name in kept} == kept
    assert (task.name, task.status, task.ended) == ("greet", "scheduled", False)
    assert task.created_at is not None
    assert abs(task.created_at - datetime.now(UTC)) < timedelta(minutes=1)  # noqa: TID251
    assert client.get(task.task_id) == task


def test_recurring_task_and_webhook_and_own_id_arrive(client: Any) -> None:
    task_id = uuid4()
    task = client.create(
        "probe",
        task_id=task_id,
        cron="0 9 * * MON-FRI",
        timezone="Europe/Berlin",
        start_at=datetime(2099, 1, 1),  # noqa: DTZ001 (a local time is what is tried)
        webhook={"url": "https://example.com/"},
    )
    assert (task.task_id, task.webhook["url"]) == (str(task_id), "https://example.com/")
    assert task.run_at == datetime(2099, 1, 1, 8, tzinfo=UTC)
    assert task.recurrence["timezone"] == "Europe/Berlin"
    assert client.create("probe", interval_seconds=60).recurrence["interval_seconds"] == 60


def test_task_without_a_time_runs_now(client: Any) -> None:
    task = client.create("greet", run_at=None, payload={"name": "Ada"})
    done = client.wait(task.task_id, timeout=30)
    assert (done.status, done.result, done.ended) == ("done", "Hello Ada", True)
    [run] = client.runs(task.task_id)
    assert type(run) is Run
    assert (run.attempt, run.outcome, run.started_at) == (1, "done", done.started_at)
    assert run.finished_at is not None
    assert run.duration == (run.finished_at - run.started_at).total_seconds()
    assert client.runs(task.task_id, limit=1) == [run]


def test_many_are_made_at_once_in_their_order(client: Any) -> None:
    wanted: list[NewTask] = [
        {"name": "greet", "run_at": NOON, "task_id": uuid4()},
        {"name": "probe", "run_at": "2099-07-01T12:00:00Z"},
    ]
    first, second = client.create_many(iter(wanted))
    assert (first.task_id, first.name) == (str(wanted[0]["task_id"]), "greet")
    assert (second.name, second.run_at) == ("probe", NOON)
    with pytest.raises(Invalid) as refused:
        client.create_many([{"name": "greet", "run_at": "soon"}])
    assert refused.value.errors[0].field == "tasks.0.run_at"


def test_key_of_ones_own_makes_one_task(client: Any) -> None:
    key = str(uuid4())
    first = client.create("greet", run_at=NOON, idempotency_key=key)
    assert client.create("greet", run_at=NOON, idempotency_key=key) == first
    batch: list[NewTask] = [{"name": "greet", "run_at": NOON}]
    assert client.create_many(batch, idempotency_key=key) == client.create_many(
        batch, idempotency_key=key
    )
    with pytest.raises(Invalid) as refused:
        client.create("probe", run_at=NOON, idempotency_key=key)
    assert (refused.value.status, refused.value.error_code) == (422, "IDEMPOTENCY_422")
    [fault] = refused.value.errors
    assert (fault.location, fault.field) == ("header", "Idempotency-Key")


def test_what_has_no_json_form_is_not_sent(make: Make) -> None:
    client, _ = answering(make, lambda _: pytest.fail("sent"))
    for payload, error in (({"a": {1}}, TypeError), ({"a": float("nan")}, ValueError)):
        with pytest.raises(error):
            client.create("greet", payload=payload)


def test_times_and_ids_are_written_wherever_they_stand(make: Make) -> None:
    sent: list[Any] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(201, json=SHOWN)

    client, _ = answering(make, respond)
    local = timezone(timedelta(minutes=19, seconds=32))
    at = datetime(2027, 7, 1, 12, 19, 32, 1, local)
    client.create("greet", run_at=at, payload={"at": NOON, "ids": [UUID(MISSING)]})
    assert sent == [
        {
            "name": "greet",
            "run_at": "2027-07-01T12:00:00.000001Z",
            "payload": {"at": "2099-07-01T12:00:00Z", "ids": [MISSING]},
        }
    ]


# ------------------------------------------------------------------ asking once more


@pytest.mark.parametrize("losses", [1, 3])
def test_lost_answer_to_a_create_makes_one_task(
    make: Make, remote: ServiceProcess, losses: int
) -> None:
    wire = Wire(losses=losses)
    pauses: list[float] = []
    client = make(remote.url, transport=wire, pause=pauses.append)
    tag = str(uuid4())
    task = client.create("greet", run_at=NOON, tags=[tag])
    keys = {request.headers["Idempotency-Key"] for request in wire.requests}
    assert (len(wire.requests), len(keys)) == (losses + 1, 1)
    assert pauses == [0.2, 0.4, 0.8][:losses]
    assert list(client.list(tag=tag)) == [task]
    assert client.create("greet", run_at=NOON) != task
    assert wire.requests[-1].headers["Idempotency-Key"] not in keys


@pytest.mark.parametrize(
    ("ids", "sent"), [((None, None), 2), ((uuid4, uuid4), 2), ((None, uuid4), 1)]
)
def test_batch_is_repeated_where_that_makes_each_task_once(
    make: Make, remote: ServiceProcess, ids: tuple[Any, ...], sent: int
) -> None:
    wire = Wire(losses=1)
    client = make(remote.url, transport=wire, pause=lambda _: None)
    tag = str(uuid4())
    wanted = [
        {"name": "greet", "run_at": NOON, "tags": [tag]} | ({"task_id": each()} if each else {})
        for each in ids
    ]
    if sent == 1:
        with pytest.raises(Unreachable):
            client.create_many(wanted)
    else:
        assert len(client.create_many(wanted)) == 2
    assert len(wire.requests) == sent
    assert len(list(client.list(tag=tag))) == 2


ASKED: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "create": (lambda one: one.create("greet"), True),
    "create, own id": (lambda one: one.create("greet", task_id=MISSING), True),
    "preview": (lambda one: one.preview("greet"), True),
    "get": (lambda one: one.get(MISSING), True),
    "list": (lambda one: list(one.list()), True),
    "pause": (lambda one: one.pause(MISSING), True),
    "resume": (lambda one: one.resume(MISSING), True),
    "change": (lambda one: one.change(MISSING, priority=1), True),
    "change, guarded": (lambda one: one.change(MISSING, if_match='"a"', priority=1), False),
    "run": (lambda one: one.run(MISSING), False),
    "cancel": (lambda one: one.cancel(MISSING), False),
    "retry": (lambda one: one.retry(MISSING), False),
    "delete": (lambda one: one.delete(MISSING), False),
    "create_each": (lambda one: one.create_each([{"name": "greet"}]), True),
    "change_many": (lambda one: one.change_many({"priority": 1}, tag="a"), False),
    "change_many, dry run": (
        lambda one: one.change_many({"priority": 1}, tag="a", dry_run=True),
        True,
    ),
    "delete_many": (lambda one: one.delete_many(tag="a"), False),
    "delete_many, dry run": (lambda one: one.delete_many(tag="a", dry_run=True), True),
    "import_tasks": (lambda one: one.import_tasks([{"name": "greet"}]), True),
    "export": (lambda one: list(one.export()), True),
    "events": (lambda one: list(one.events()), True),
}


TROUBLE: dict[str, tuple[Respond, bool]] = {
    "lost": (lost, False),
    "503, perhaps done": (
        lambda _: problem(503, "DATABASE_503_UNKNOWN", **{"Retry-After": "2"}),
        False,
    ),
    "503 of a proxy": (lambda _: httpx.Response(503, headers={"Retry-After": "2"}), False),
    "refused": (refused, True),
    "503": (lambda _: problem(503, "DATABASE_503", **{"Retry-After": "2"}), True),
    "503, overloaded": (lambda _: problem(503, "OVERLOADED_503", **{"Retry-After": "2"}), True),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("asked", ASKED)
def test_repeated_is_what_has_done_nothing_or_does_no_more(
    make: Make, asked: str, trouble: str
) -> None:
    respond, nothing_done = TROUBLE[trouble]
    ask, harmless = ASKED[asked]
    requests: list[httpx.Request] = []

    def noting(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return respond(request)

    client, pauses = answering(make, noting)
    with pytest.raises(ServiceUnavailable):
        ask(client)
    assert len(requests) == (4 if harmless or nothing_done else 1)
    assert len(pauses) == len(requests) - 1


@pytest.mark.parametrize(
    ("headers", "paused"),
    [
        ({"Retry-After": "0"}, [0.2, 0.4, 0.8]),
        ({"Retry-After": "7"}, [7.0, 7.0, 7.0]),
        ({"Retry-After": "30"}, [30.0, 30.0, 30.0]),
        ({"Retry-After": "31"}, []),
        ({"Retry-After": "Thu, 26 Nov 2099 07:00:00 GMT"}, []),
        ({"Retry-After": "-1"}, []),
        ({}, []),
    ],
)
def test_retry_after_is_honoured_within_bounds(
    make: Make, headers: dict[str, str], paused: list[float]
) -> None:
    client, pauses = answering(make, lambda _: problem(503, "DATABASE_503", **headers))
    with pytest.raises(ServiceUnavailable, match="in words") as failed:
        client.get(MISSING)
    assert not isinstance(failed.value, Unreachable)
    assert pauses == paused


def test_repetition_that_is_answered_is_the_answer(make: Make) -> None:
    answers = iter([httpx.Response(200, json=SHOWN)])
    outcomes: list[Any] = [lost, lambda _: next(answers)]
    client, pauses = answering(make, lambda request: outcomes.pop(0)(request), retries=1)
    assert client.get(MISSING).name == "greet"
    assert pauses == [0.2]
    for retries, expected in ((0, []), (6, [0.2, 0.4, 0.8, 1.6, 2.0, 2.0])):
        client, pauses = answering(make, lost, retries=retries)
        with pytest.raises(Unreachable):
            client.get(MISSING)
        assert pauses == expected


@pytest.mark.parametrize("status", [400, 404, 409, 412, 422, 500, 502, 504])
def test_what_was_answered_otherwise_is_not_repeated(make: Make, status: int) -> None:
    client, pauses = answering(make, lambda _: problem(status, "CODE", **{"Retry-After": "1"}))
    with pytest.raises(ApiError):
        client.get(MISSING)
    assert pauses == []


def test_nobody_at_the_address_is_told_with_the_address(make: Make) -> None:
    url = f"http://127.0.0.1:{find_free_port()}"
    pauses: list[float] = []
    with pytest.raises(Unreachable) as failed:
        make(url, pause=pauses.append).health()
    assert (failed.value.status, failed.value.error_code) == (None, "UNREACHABLE")
    told = str(failed.value)
    assert told.startswith(f"{url} cannot be reached (")
    assert told.endswith("Check the address, and that the service runs.")
    assert "Errno" not in told
    assert isinstance(failed.value.__cause__, httpx.ConnectError)
    assert pauses == [0.2, 0.4, 0.8]
    client, _ = answering(make, refused)
    with pytest.raises(Unreachable, match=r"reached \(Connection refused\)\. Check"):
        client.health()

    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("", request=request)

    client, _ = answering(make, silent)
    with pytest.raises(Unreachable, match=r"reached \(ReadError\)"):
        client.health()


def test_usual_pause_waits_in_earnest(make: Make) -> None:
    outcomes: list[Respond] = [lost, lambda _: httpx.Response(200, json=SHOWN)]
    transport = httpx.MockTransport(lambda request: outcomes.pop(0)(request))
    begin = time.monotonic()
    make(transport=transport).get(MISSING)
    assert 0.2 <= time.monotonic() - begin < 5


# -------------------------------------------------------------------- waiting for its end


def test_end_of_a_task_is_waited_for(client: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    task = client.create("await_file", payload={"file": str(file)})
    wait_until(lambda: client.get(task.task_id).progress)
    with pytest.raises(NotEnded, match=f"Task {task.task_id} .* it is running") as late:
        client.wait(task.task_id, timeout=0.2)
    assert late.value.task.progress == {"fraction": 0.25, "message": "looking"}
    assert isinstance(late.value, TimeoutError)
    assert client.get(task.task_id, wait=1).status == "running"
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(client.wait, task.task_id)
        file.touch()
        assert ended.result(30).result == "found"
    stumbled = client.wait(client.create("stumble").task_id, timeout=30)
    assert (stumbled.status, stumbled.result) == ("failed", "it stumbled")


def test_wait_asks_the_service_to_wait_and_has_the_patience(make: Make) -> None:
    asked: list[tuple[str | None, float]] = []
    statuses = ["scheduled", "running", "done"]

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append((request.headers.get("Prefer"), request.extensions["timeout"]["read"]))
        return httpx.Response(200, json=SHOWN | {"status": statuses.pop(0)})

    client, pauses = answering(make, respond, timeout=5)
    assert client.wait(MISSING).status == "done"
    # The service did not wait: it is not asked again at once.
    assert (asked, pauses) == ([("wait=30", 35)] * 3, [1.0, 1.0])
    statuses, asked = ["done"], []
    client, _ = answering(make, respond)
    client.get(MISSING)
    statuses = ["unknown"]
    client.wait(MISSING, timeout=7.9)
    statuses = ["cancelled"]
    client.wait(MISSING, timeout=-1)
    assert asked == [(None, 30), ("wait=7", 37), (None, 30)]


def test_wait_that_the_service_has_kept_is_followed_by_the_next_at_once(
    client: Any, make: Make, remote: ServiceProcess
) -> None:
    task = client.create("greet", run_at=NOON)
    wire = Wire()
    asked: list[int] = []
    patient = make(remote.url, transport=wire, pause=lambda _: asked.append(len(wire.requests)))
    with pytest.raises(NotEnded):
        patient.wait(task.task_id, timeout=1.6)
    assert wire.requests[0].headers["Prefer"] == "wait=1"
    assert asked[0] == 2, "the second question follows the first without a pause"


# -------------------------------------------------------------------------- finding them


def test_list_goes_through_all_pages(make: Make, remote: ServiceProcess) -> None:
    wire = Wire()
    client = make(remote.url, transport=wire)
    tag = str(uuid4())
    wanted: list[NewTask] = [
        {"name": f"n{number % 2}", "run_at": NOON + timedelta(seconds=number), "tags": [tag]}
        for number in range(1_001)
    ]
    made = client.create_many(wanted)
    wire.requests.clear()
    assert list(client.list(tag=tag)) == made
    assert len(wire.requests) == 2
    wire.requests.clear()
    assert list(client.list(tag=tag, limit=1_001, sort="-run_at")) == made[::-1]
    assert [request.url.params["limit"] for request in wire.requests] == ["1000", "1"]
    wire.requests.clear()
    assert list(client.list(tag=tag, limit=2)) == made[:2]
    assert len(wire.requests) == 1
    few = client.list(tag=[tag], name=("n0", "n1"), due_before=NOON + timedelta(seconds=2), q=None)
    assert list(few) == made[:2]
    assert list(client.list(tag=tag, name="n1", due_after="2099-07-01T12:16:00Z")) == made[961::2]
    assert list(client.list(tag=tag, status=["done", "failed"])) == []


def test_list_follows_links_to_where_the_service_is(make: Make) -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if "cursor" in request.url.params:
            return httpx.Response(200, json=[SHOWN])
        link = '<http://inside.invalid/tasks?name=a%26b&cursor=abc&limit=5>; rel="next"'
        return httpx.Response(200, json=[], headers={"Link": link})

    client, _ = answering(make, respond, base_url="https://example.com/jobs")
    assert [task.name for task in client.list(name="a&b")] == ["greet"]
    assert asked == [
        "https://example.com/jobs/tasks?name=a%26b",
        "https://example.com/jobs/tasks?name=a%26b&cursor=abc&limit=5",
    ]


# ----------------------------------------------------------------------- acting on them


def test_change_replaces_and_takes_away(client: Any) -> None:
    task = client.create("greet", run_at=NOON, priority=2, timeout=5, tags=["a"])
    version = client.get(task.task_id)
    assert version.etag
    changed = client.change(
        task.task_id, if_match=version.etag, name="probe", run_at="2099-07-02T12:00:00Z", tags=None
    )
    assert (changed.name, changed.tags, changed.priority) == ("probe", None, 2)
    assert changed.run_at == NOON + timedelta(days=1)
    assert changed.etag not in (None, version.etag)
    with pytest.raises(Conflict) as late:
        client.change(task.task_id, if_match=version.etag, priority=3)
    assert late.value.error_code == "TASK_412"
    assert client.change(task.task_id, timeout=None).timeout is None


def test_task_is_paused_resumed_run_and_removed(client: Any) -> None:
    task_id = UUID(client.create("greet", run_at=NOON).task_id)
    assert client.pause(task_id).status == "paused"
    assert client.resume(task_id).status == "scheduled"
    assert client.run(task_id).retry_at < NOON
    assert client.wait(task_id, timeout=30).result == "Hello you"
    with pytest.raises(Conflict) as late:
        client.pause(task_id)
    assert (late.value.status, late.value.error_code) == (409, "TASK_PAUSE_409")
    other = client.create("greet", run_at=NOON).task_id
    assert client.delete(other) == f"Task {other} is cancelled."
    with pytest.raises(NotFound) as gone:
        client.get(other)
    assert (gone.value.status, gone.value.error_code) == (404, "TASK_404")
    third = client.create("greet", run_at=NOON).task_id
    assert client.cancel(third).status == "cancelled"


def test_failed_task_is_tried_again(client: Any) -> None:
    task_id = client.create("stumble").task_id
    client.wait(task_id, timeout=30)
    assert client.retry(task_id).status == "scheduled"
    assert client.wait(task_id, timeout=30).attempt == 2


# ------------------------------------------------------------------------- the service


def test_times_are_told(client: Any) -> None:
    weekdays = {"cron": "0 9 * * MON-FRI", "timezone": "Europe/Berlin", "start_at": NOON}
    preview = client.preview("greet", n=2, **weekdays)
    assert isinstance(preview, Preview)
    assert preview.description == "At 09:00 on Monday through Friday (Europe/Berlin)."
    assert preview.warnings == []
    first, second = preview.next
    assert isinstance(first, Moment)
    assert (first.utc, first.local) == (NOON.replace(day=2, hour=7), "2099-07-02T09:00:00")
    assert (second.offset, len(client.preview("greet", **weekdays).next)) == ("+02:00", 5)
    task = client.create("greet", **weekdays)
    assert client.next_times(task.task_id, n=2) == [first, second]
    assert len(client.next_times(task.task_id)) == 10


def test_handlers_and_health_are_told(client: Any) -> None:
    known = {each.name: each for each in client.handlers()}
    assert {"send_report", "greet"} <= known.keys()
    assert isinstance(known["greet"], Handler)
    assert known["greet"].payload["properties"].keys() == {"name", "times"}
    assert client.health()["status"] == "ok"


def test_health_is_told_also_when_no_work_can_be_done(make: Make) -> None:
    document = {"status": "unavailable", "database": {"status": "unavailable"}}
    client, pauses = answering(make, lambda _: httpx.Response(503, json=document))
    assert (client.health(), pauses) == (document, [])
    others = [problem(503, "DATABASE_503"), httpx.Response(503, text="no")]
    client, _ = answering(make, lambda _: others.pop())
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            client.health()
    client, _ = answering(make, lambda _: problem(500, "INTERNAL_500"))
    with pytest.raises(ApiError, match="in words"):
        client.health()


# ------------------------------------------------------------------ answers and errors


def test_what_a_newer_service_says_is_kept(make: Make) -> None:
    shown = SHOWN | {"status": "frozen", "mood": ["good"], "raw": 1, "etag": 2, "started_at": None}
    client, _ = answering(make, lambda _: httpx.Response(200, json=shown, headers={"ETag": '"a"'}))
    task = client.get(MISSING)
    assert (task.raw, task.raw["mood"], task.etag) == (shown, ["good"], '"a"')
    assert (task.status, task.ended, task.started_at) == ("frozen", False, None)
    assert "mood" not in repr(task)
    with pytest.raises(AttributeError):
        task.name = "other"


def test_what_an_older_service_does_not_say_has_its_usual_value(make: Make) -> None:
    answers = [SHOWN, SHOWN | {"mood": "good"}]
    client, _ = answering(make, lambda _: httpx.Response(200, json=answers.pop()))
    task, other = client.get(MISSING), client.get(MISSING)
    assert task == other  # what is known of them is the same
    assert (task.attempt, task.max_attempts, task.priority, task.tags) == (0, 1, 0, None)
    handler = {"name": "greet", "description": "", "payload": {}}
    client, _ = answering(make, lambda _: httpx.Response(200, json=[handler]))
    [known] = client.handlers()
    assert (known.max_attempts, known.timeout) == (1, None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (404, NotFound),
        (405, ApiError),
        (408, Invalid),
        (409, Conflict),
        (412, Conflict),
        (413, Invalid),
        (415, Invalid),
        (422, Invalid),
        (500, ApiError),
        (502, ServiceUnavailable),
        (503, ServiceUnavailable),
        (504, ServiceUnavailable),
    ],
)
def test_each_status_has_its_error(make: Make, status: int, kind: type[ApiError]) -> None:
    client, _ = answering(make, lambda _: problem(status, "CODE_1"))
    with pytest.raises(ApiError) as failed:
        client.get(MISSING)
    assert type(failed.value) is kind
    assert str(failed.value) == failed.value.detail == "in words"
    told = (failed.value.status, failed.value.error_code, failed.value.errors)
    assert told == (status, "CODE_1", ())
    assert str(pickle.loads(pickle.dumps(failed.value))) == "in words"  # noqa: S301 (our own)


def test_each_field_that_is_refused_is_told(client: Any) -> None:
    with pytest.raises(Invalid) as refused_:
        client.create("greet", run_at="soon", priority=9)
    first, second = refused_.value.errors
    assert isinstance(first, FieldError)
    assert (first.location, first.field) == ("body", "run_at")
    assert first.detail.startswith("Not an ISO 8601 date and time.")
    assert second.field == "priority"


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>Bad Gateway</html>"},
        {"json": ["no", "problem"]},
        {"json": {"detail": "no code"}},
        {"json": {"error_code": "A", "detail": "b", "errors": [5]}},
        {"json": 5},
    ],
)
def test_error_that_is_not_the_services_own_is_told_as_such(
    make: Make, answer: dict[str, Any]
) -> None:
    client, _ = answering(make, lambda _: httpx.Response(502, **answer))
    with pytest.raises(ServiceUnavailable) as failed:
        list(client.list(name="secret"))
    assert failed.value.error_code == "HTTP_502"
    assert str(failed.value) == (
        "http://127.0.0.1:8000/tasks answered 502 Bad Gateway, and not as the service does. "
        "Check the address, and what stands in between."
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>Welcome</html>"},
        {"json": []},
        {"json": {"name": "greet"}},
        {"json": SHOWN | {"run_at": "soon"}},
        {"json": None},
    ],
)
def test_success_that_is_not_the_services_own_is_an_error(
    make: Make, answer: dict[str, Any]
) -> None:
    client, _ = answering(make, lambda _: httpx.Response(200, **answer))
    for ask in (client.get, client.retry):
        with pytest.raises(ApiError) as failed:
            ask(MISSING)
        assert (type(failed.value), failed.value.status) == (ApiError, 200)
        assert failed.value.error_code == "ANSWER_UNREADABLE"
        assert "http://127.0.0.1:8000/tasks/" in str(failed.value)
    with pytest.raises(ApiError):
        client.preview("greet")
    with pytest.raises(ApiError):
        client.health()


@pytest.mark.parametrize("task_id", ["", ".", "..", "a/b", "preview", MISSING[:8], f"{MISSING}/"])
def test_what_is_no_id_is_not_asked_for(make: Make, task_id: str) -> None:
    client, _ = answering(make, lambda _: pytest.fail("asked"))
    for ask in (client.get, client.delete, client.run, client.runs, client.wait):
        with pytest.raises(NotFound, match=f"There is no task '{re.escape(task_id)}'"):
            ask(task_id)


def test_address_that_is_none_is_refused() -> None:
    for kind in (Client, AsyncClient):
        for url in ("127.0.0.1:8000", "ftp://a.example", "http://", "http://me:secret@a.example"):
            with pytest.raises(ValueError, match=r"^base_url: ") as told:
                kind(url)
            assert repr(url) in str(told.value) or "secret" in url


def test_only_other_machines_are_reached_through_a_proxy(
    make: Make, remote: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_free_port()}")
    for host in ("127.0.0.1", "localhost"):
        assert make(remote.url.replace("127.0.0.1", host)).health()["status"] == "ok"
    for host in ("scheduler.invalid", "192.0.2.1"):
        monkeypatch.setenv("HTTP_PROXY", remote.url)  # it takes itself for the host that is meant
        assert make(f"http://{host}").health()["status"] == "ok"


# ----------------------------------------------------------------------------- the package


def test_client_knows_all_that_the_service_takes_and_tells() -> None:
    assert get_type_hints(NewTask).keys() == TaskCreate.model_fields.keys()
    assert get_type_hints(TaskFilter).keys() == ListQuery.model_fields.keys() - {"limit", "cursor"}
    assert get_type_hints(TaskMatch).keys() == FilterQuery.model_fields.keys()
    assert get_type_hints(EventFilter).keys() == schemas_events.EventQuery.model_fields.keys()
    told: list[tuple[type[Shape], Any, set[str]]] = [
        (Task, schemas_task.Task, {"etag"}),
        (Run, schemas_runs.Run, set()),
        (Moment, schemas_times.Moment, set()),
        (Preview, schemas_times.Preview, set()),
        (Handler, schemas_handlers.HandlerShown, set()),
        (Event, schemas_events.TaskChanged, {"id"}),
        (Outcome, schemas_task.TaskOutcome, set()),
        (ImportReport, schemas_transfer.ImportResult, set()),
        (Refusal, schemas_transfer.ImportProblem, set()),
        (Reason, schemas_explain.TaskReason, set()),
        (Explanation, schemas_explain.TaskExplanation, set()),
        (ForecastName, schemas_forecast.NameForecast, set()),
        (ForecastInterval, schemas_forecast.IntervalForecast, set()),
        (Forecast, schemas_forecast.Forecast, set()),
    ]
    for shape, model, own in told:
        assert get_type_hints(shape).keys() == model.model_fields.keys() | own | {"raw"}


def test_reasons_and_what_is_to_come_are_told(client: Client) -> None:
    key = str(uuid4())
    task = client.create("greet", run_at=NOON, unique_key=key)
    again = client.create("greet", run_at=NOON, unique_key=key, on_conflict="return")
    assert (again.task_id, again.unique_key) == (task.task_id, key)
    found = client.explain(task.task_id)
    assert (found.task_id, found.status) == (task.task_id, "scheduled")
    [reason] = found.reasons
    assert (reason.code, reason.text, reason.until) == ("not_due", found.summary, NOON)
    assert reason.seconds is not None
    assert (reason.times, reason.raw) == (None, found.raw["reasons"][0])
    soon = datetime.now(UTC) + timedelta(minutes=30)  # noqa: TID251 (tests have a clock too)
    client.create(key, run_at=soon)
    ahead = client.forecast(hours=1)
    assert ahead.until - ahead.begin == timedelta(hours=1)
    [one] = [each for each in ahead.intervals if each.at <= soon < each.at + timedelta(minutes=1)]
    assert key in [each.name for each in one.names]
    assert (one.raw in ahead.raw["intervals"], one in ahead.peaks) == (True, True)
    assert not ahead.truncated
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=[]))
    with Client(transport=transport) as other, pytest.raises(ApiError):
        other.explain(task.task_id)


def test_times_of_a_reason_are_told() -> None:
    answer: dict[str, Any] = {
        "task_id": MISSING,
        "status": "scheduled",
        "summary": "Its time …",
        "reasons": [
            {
                "code": "times_missed",
                "text": "Its time …",
                "remedy": "…",
                "count": 1,
                "times": ["2099-07-01T12:00:00Z"],
            }
        ],
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    with Client(transport=transport) as client:
        [reason] = client.explain(MISSING).reasons
    assert reason.times == [NOON]


def test_both_clients_can_do_the_same() -> None:
    waits, awaits = (
        {name for name in dir(kind) if not name.startswith("_")} for kind in (Client, AsyncClient)
    )
    assert waits == awaits
    assert (Client().get.__name__, AsyncClient().get.__doc__) == ("get", Client().get.__doc__)


def test_types_are_known_to_whoever_uses_them() -> None:
    assert (Path(job_scheduler.__file__).parent / "py.typed").is_file()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=SHOWN))

    async def scenario() -> None:
        async with AsyncClient(transport=transport) as client:
            assert_type(await client.get(MISSING), Task)
            assert_type(client.export(), AsyncGenerator[Task, None])
            assert_type(client.events(), AsyncGenerator[Event, None])

    asyncio.run(scenario())
    with Client(transport=transport) as client:
        task = client.create("greet", run_at=NOON, tags=["a"])
        assert_type(task, Task)
        assert_type(task.started_at, datetime | None)
        assert_type(client.export(), Generator[Task, None, None])
        # The checks would complain if these were taken.
        client.create("greet", prioritty=1)  # type: ignore[call-arg]
        client.create("greet", priority="high")  # type: ignore[arg-type]


def test_clients_are_closed_by_their_blocks(remote: ServiceProcess) -> None:
    async def scenario() -> None:
        async with AsyncClient(remote.url) as client:
            assert (await client.health())["status"] == "ok"
        with pytest.raises(RuntimeError, match="closed"):
            await client.health()

    asyncio.run(scenario())
    with Client(remote.url) as client:
        assert client.health()["status"] == "ok"
    with pytest.raises(RuntimeError, match="closed"):
        client.health()


@pytest.mark.parametrize(
    ("name", "absent"), [("enqueue", "httpx"), ("Client", "sqlalchemy"), ("__all__", "httpx")]
)
def test_only_what_is_asked_for_is_loaded(name: str, absent: str) -> None:
    code = f"import sys; from job_scheduler.client import {name}; print({absent!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_package_has_what_it_names_and_nothing_else() -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        _ = package.Clinet  # type: ignore[attr-defined]  # what is tried
