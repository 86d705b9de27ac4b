"""Every error is a problem document that says what to do; hostile input leaves no trace."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from job_scheduler.chaos.proxy import Proxy
from job_scheduler.config import load_settings
from job_scheduler.constants import BODY_MAX_BYTES
from job_scheduler.exceptions import ConfigurationError
from job_scheduler.main import create_app
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    SteppedClock,
    assert_problem,
    finished,
    later,
    post,
    running,
    service_process,
    task_body,
)
from tests.support.services import wait_until

only_postgresql = pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
only_sqlite = pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)

JSON = "application/json"
NAME = '"name": "probe"'
RUN_AT = '"run_at": "2031-07-01T10:00:00Z"'
SOUND = f"{{{NAME}, {RUN_AT}}}"
INSTANT = "Write it like 2027-07-01T10:00:00Z"


def with_name(value: str) -> str:
    """A body with this JSON as the name."""
    return f'{{"name": {value}, {RUN_AT}}}'


def with_run_at(value: str) -> str:
    """A body with this JSON as the time."""
    return f'{{{NAME}, "run_at": {value}}}'


def with_member(member: str) -> str:
    """A body with one member more."""
    return f"{{{NAME}, {RUN_AT}, {member}}}"


# What is sent → the fields that are named, and what is said of each.
INVALID: list[tuple[str, str | bytes, dict[str, str]]] = [
    ("null", "null", {"": "Must be a JSON object"}),
    ("an array", "[]", {"": "Must be a JSON object"}),
    ("a text", '"probe"', {"": "Must be a JSON object"}),
    ("a number", "1", {"": "Must be a JSON object"}),
    ("nothing in it", "{}", {"name": "required", "run_at": "exactly one of run_at"}),
    ("two faults", '{"name": 1, "x": 1}', dict.fromkeys(("name", "run_at", "x"), "")),
    ("name empty", with_name('""'), {"name": "Must not be empty"}),
    ("name white", with_name('" \\n\\u2003"'), {"name": "white space"}),
    ("name long", with_name(f'"{"x" * 10_000}"'), {"name": "at most 255 characters"}),
    ("name a number", with_name("1"), {"name": "Must be text"}),
    ("name true", with_name("true"), {"name": "Must be text"}),
    ("name null", with_name("null"), {"name": "Must be text"}),
    ("name an array", with_name('["a"]'), {"name": "Must be text"}),
    ("time in words", with_run_at('"tomorrow"'), {"run_at": INSTANT}),
    ("time infinity", with_run_at('"infinity"'), {"run_at": INSTANT}),
    ("time now", with_run_at('"now"'), {"run_at": INSTANT}),
    ("time an epoch", with_run_at("1893456000"), {"run_at": INSTANT}),
    ("time an epoch's text", with_run_at('"1893456000"'), {"run_at": INSTANT}),
    ("time a float", with_run_at("1893456000.5"), {"run_at": INSTANT}),
    ("time true", with_run_at("true"), {"run_at": INSTANT}),
    ("time null", with_run_at("null"), {"run_at": "exactly one of run_at"}),
    ("time empty", with_run_at('""'), {"run_at": INSTANT}),
    ("time an array", with_run_at('["2031-07-01T10:00:00Z"]'), {"run_at": INSTANT}),
    ("time a date only", with_run_at('"2031-07-01"'), {"run_at": INSTANT}),
    ("time a week", with_run_at('"2031-W27-2T10:00:00Z"'), {"run_at": INSTANT}),
    ("time compact", with_run_at('"20310701T100000Z"'), {"run_at": INSTANT}),
    ("time in other digits", with_run_at('"٢٠٣١-07-01T10:00:00Z"'), {"run_at": INSTANT}),
    ("time with a tail", with_run_at('"2031-07-01T10:00:00Z\\n"'), {"run_at": INSTANT}),
    ("no such day", with_run_at('"2031-02-29T10:00:00Z"'), {"run_at": INSTANT}),
    ("no such hour", with_run_at('"2031-07-01T25:00:00Z"'), {"run_at": INSTANT}),
    ("no such offset", with_run_at('"2031-07-01T10:00:00+25:00"'), {"run_at": INSTANT}),
    ("year 0", with_run_at('"0000-01-01T00:00:00Z"'), {"run_at": INSTANT}),
    ("before year 1", with_run_at('"0001-01-01T00:00:00+00:01"'), {"run_at": INSTANT}),
    ("after year 9999", with_run_at('"9999-12-31T23:59:59-00:01"'), {"run_at": INSTANT}),
    ("year 10000", with_run_at('"10000-01-01T00:00:00Z"'), {"run_at": INSTANT}),
    ("payload an array", with_member('"payload": [1]'), {"payload": "Must be a JSON object"}),
    ("payload a text", with_member('"payload": "{}"'), {"payload": "Must be a JSON object"}),
    ("payload false", with_member('"payload": false'), {"payload": "Must be a JSON object"}),
    ("id no UUID", with_member('"task_id": "1"'), {"task_id": "Not a UUID. Write it like"}),
    ("id without dashes", with_member(f'"task_id": "{"0" * 32}"'), {"task_id": "Not a UUID"}),
    ("id a number", with_member('"task_id": 1'), {"task_id": "Must be text"}),
    ("unknown key", with_member('"runat": 1'), {"runat": "Remove it, or correct its name"}),
    ("a key of ours", with_member('"status": "done"'), {"status": "There is no such field"}),
]
UNUSABLE: list[tuple[str, str | bytes, dict[str, str]]] = [
    ("name with NUL", with_name('"a\\u0000"'), {"name": "NUL"}),
    ("name with half a pair", with_name('"\\ud800"'), {"name": "half a surrogate pair"}),
    ("NUL in the payload", with_member('"payload": {"a": ["\\u0000"]}'), {"payload.a.0": "NUL"}),
    ("NUL in its keys", with_member('"payload": {"\\u0000": 1}'), {"payload": "NUL"}),
    ("half a pair in its keys", with_member('"payload": {"\\udc00": 1}'), {"payload": "pair"}),
    ("same key twice", with_member(NAME), {"name": "Keep one of them"}),
    ("same key twice within", with_member('"payload": {"a": 1, "a": 1}'), {"a": "Keep one"}),
    ("beyond a float", with_member('"payload": {"a": 1e400}'), {"payload.a": "a string"}),
    ("time beyond a float", with_run_at("1e400"), {"run_at": "beyond"}),
    ("beyond 64 bits", with_member('"payload": {"a": [9223372036854775808]}'), {"payload.a.0": ""}),
    ("below 64 bits", with_member('"priority": -9223372036854775809'), {"priority": "64 bits"}),
    ("nested 101 deep", with_member('"payload": ' + '{"a":' * 100 + "1" + "}" * 100), {}),
    ("nested 1,000 deep", with_member(f'"payload": {"[" * 1_000}{"]" * 1_000}'), {}),
    ("nested 100,000 deep", with_member(f'"payload": {"[" * 100_000}{"]" * 100_000}'), {}),
    ("nested without end", "[" * 100_000, {}),
]
NOT_JSON: list[tuple[str, str | bytes, dict[str, str]]] = [
    ("cut off", SOUND[:-1], {}),
    ("a form", "name=probe&run_at=2031-07-01T10:00:00Z", {}),
    ("NaN", with_member('"payload": {"a": NaN}'), {}),
    ("time NaN", with_run_at("NaN"), {}),
    ("Infinity", with_member('"payload": {"a": -Infinity}'), {}),
    ("UTF-16", SOUND.encode("utf-16"), {}),
    ("UTF-16 without a mark", SOUND.encode("utf-16-be"), {}),
    ("UTF-32", SOUND.encode("utf-32"), {}),
    ("latin-1", with_name('"é"').encode("latin-1"), {}),
    ("half a pair in UTF-8", with_name('"é"').encode().replace(b"\xc3\xa9", b"\xed\xa0\x80"), {}),
    ("a raw NUL", with_name('"a\x00"'), {}),
    ("compressed", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", {}),
]
HOSTILE = [
    (kind, body, fields, status, code)
    for cases, status, code in (
        (INVALID, 422, "VALIDATION_422"),
        (UNUSABLE, 422, "BODY_422"),
        (NOT_JSON, 400, "BODY_400"),
    )
    for kind, body, fields in cases
]


def send(client: Any, body: str | bytes, content_type: str | None = JSON) -> Any:
    """POST a body as it is."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    raw = body.encode() if isinstance(body, str) else body
    return client.post("/tasks", content=raw, headers=headers)


def test_hostile_bodies_are_refused_with_field_and_remedy_and_leave_nothing(
    store: Backend, subtests: pytest.Subtests, caplog: pytest.LogCaptureFixture
) -> None:
    with running(store) as client:
        for kind, body, fields, status, code in HOSTILE:
            with subtests.test(kind):
                problem = assert_problem(send(client, body), status, code)
                errors = {error["field"]: error for error in problem.get("errors", [])}
                assert errors.keys() == fields.keys()
                for field, remedy in fields.items():
                    assert errors[field]["location"] == "body"
                    assert remedy in errors[field]["detail"]
                # Said in one sentence that stands alone, and in nobody's internal words.
                assert problem["detail"].endswith(".")
                assert len(problem["detail"]) < 500
                for word in ("Traceback", "pydantic", "dictionary", "codec"):
                    assert word not in problem["detail"]
        assert client.get("/tasks").json() == []
        assert post(client)["status"] == "scheduled"
    assert store.count() == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_field_is_named_as_it_was_sent(store: Backend) -> None:
    with running(store) as client:
        problem = assert_problem(
            send(client, with_member('"\\u00e9\\u2028😀": 1')), 422, "VALIDATION_422"
        )
    assert problem["errors"][0]["field"] == "é\u2028😀"


def test_post_without_a_body_asks_for_one(store: Backend) -> None:
    with running(store) as client:
        for content_type in (None, JSON, "text/plain", "nonsense"):
            problem = assert_problem(send(client, b"", content_type), 422, "VALIDATION_422")
            assert problem["detail"] == "A JSON body is required."
    assert store.count() == 0


def test_body_that_is_not_declared_as_json_is_refused(
    store: Backend, subtests: pytest.Subtests
) -> None:
    with running(store) as client:
        for content_type in (
            None,
            "",
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml+json2",
            "application/json; charset=utf-16",
            "application/json; charset=latin-1",
            "json",
            "*/*",
            "application/json, text/plain",
        ):
            with subtests.test(repr(content_type)):
                problem = assert_problem(send(client, SOUND, content_type), 415, "BODY_415")
                assert "Send the header 'Content-Type: application/json'" in problem["detail"]
                found = repr(content_type) if content_type else "none was given"
                assert found in problem["detail"]
    assert store.count() == 0


def test_body_that_is_declared_as_json_is_taken(store: Backend, subtests: pytest.Subtests) -> None:
    with running(store) as client:
        for content_type in (
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            'application/json; charset="UTF-8"',
            "application/json;charset=UTF8",
            "application/json; profile=x",
            "application/vnd.task+json",
            "application/json; charset=us-ascii",
        ):
            with subtests.test(content_type):
                assert send(client, SOUND, content_type).status_code == 201


@only_sqlite
def test_content_type_matters_only_where_a_body_is_wanted(store: Backend) -> None:
    headers = {"Content-Type": "text/plain"}
    with running(store) as client:
        task_id = post(client)["task_id"]
        for method, path in (
            ("GET", "/tasks"),
            ("GET", f"/tasks/{task_id}"),
            ("GET", "/health"),
            ("DELETE", f"/tasks/{task_id}"),
        ):
            response = client.request(method, path, headers=headers, content=b"any")
            assert response.status_code == 200, path


def test_body_is_taken_up_to_the_limit_and_not_a_byte_beyond(store: Backend) -> None:
    shell = with_member('"payload": {"a": ""}')
    whole = shell.replace('""', f'"{"x" * (BODY_MAX_BYTES - len(shell))}"')
    assert len(whole) == BODY_MAX_BYTES
    with running(store) as client:
        assert send(client, whole).status_code == 201
        for body in (whole + " ", "x" * 10_000_000, b"x" * (65 * BODY_MAX_BYTES)):
            problem = assert_problem(send(client, body), 413, "BODY_413")
            assert f"larger than {BODY_MAX_BYTES} bytes" in problem["detail"]
            assert "Send less in one request" in problem["detail"]
    assert store.count() == 1


def test_body_that_comes_in_pieces_is_measured_and_read_whole(store: Backend) -> None:
    def pieces(text: str) -> Iterator[bytes]:
        for start in range(0, len(text), 100_000):
            yield text[start : start + 100_000].encode()

    with running(store) as client:
        headers = {"Content-Type": JSON}
        long = with_member(f'"payload": {{"a": "{"x" * 900_000}"}}')
        response = client.post("/tasks", content=pieces(long), headers=headers)
        assert response.status_code == 201
        assert len(response.json()["payload"]["a"]) == 900_000
        response = client.post("/tasks", content=pieces("x" * 10_000_000), headers=headers)
        assert_problem(response, 413, "BODY_413")


def test_service_process_survives_what_comes_over_a_socket(tmp_path: Path) -> None:
    environment = {"REDIS_URL": "", "LOG_LEVEL": "DEBUG"}  # a line for each request
    with service_process(tmp_path, environment) as service, service.start() as client:
        for body in (b"x" * 10_000_000, b'{"a":' * 2_000_000):
            assert_problem(send(client, body), 413, "BODY_413")
        for kind, hostile, _, status, code in HOSTILE:
            response = send(client, hostile)
            assert (response.status_code, response.json()["error_code"]) == (status, code), kind
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port)) as half:
            half.sendall(
                b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n" + SOUND.encode()
            )
        wait_until(lambda: '"POST /tasks HTTP/1.1" 400' in service.output(), what="the hang-up")
        for query, status in (("", 404), ("?%80", 422)):
            response = client.get(f"/tasks/%ff%00{query}", headers=[(b"Accept", b"\x80")])
            assert response.status_code == status
        assert client.get("/tasks").json() == []
        task_id = post(client, run_at=later(0))["task_id"]
        assert finished(client, task_id)["status"] == "done"
        service.stop()
        assert "Traceback" not in service.output()


# ------------------------------------------------------------- routes and methods


def test_unknown_addresses_are_problems(store: Backend, subtests: pytest.Subtests) -> None:
    with running(store) as client:
        for path in ("/", "/task", "/tasks/a/b", "/tasks//a", "/TASKS", "/%00", "/..%2f"):
            for method in ("GET", "POST", "DELETE", "NONSENSE"):
                with subtests.test(f"{method} {path}"):
                    problem = assert_problem(client.request(method, path), 404, "ROUTE_404")
                    assert "GET /docs shows what there is" in problem["detail"]
        assert_problem(client.get("/static/none"), 404, "ROUTE_404")


@only_sqlite
def test_slash_at_the_end_leads_to_the_address_without(store: Backend) -> None:
    with running(store) as client:
        task = client.post("/tasks/", json=task_body()).json()
        assert client.get("/tasks/").json() == [task]


def test_method_that_is_not_taken_is_answered_with_those_that_are(
    store: Backend, subtests: pytest.Subtests
) -> None:
    allowed = {
        "PUT /tasks": "DELETE, GET, PATCH, POST",
        "OPTIONS /tasks": "DELETE, GET, PATCH, POST",
        "NONSENSE /tasks": "DELETE, GET, PATCH, POST",
        "POST /tasks/export": "GET",
        "PUT /tasks/import": "POST",
        "POST /tasks/00000000-0000-4000-8000-000000000000": "DELETE, GET, PATCH",
        "PUT /tasks/nonsense": "DELETE, GET, PATCH",
        "PUT /tasks/batch": "POST",
        "OPTIONS /tasks/nonsense": "DELETE, GET, PATCH",
        "POST /health": "GET",
        "DELETE /readyz": "GET",
        "POST /docs": "GET, HEAD",
        "PUT /openapi.json": "GET, HEAD",
        "POST /static/docs.js": "GET, HEAD",
    }
    with running(store) as client:
        for request, methods in allowed.items():
            with subtests.test(request):
                response = client.request(*request.split())
                problem = assert_problem(response, 405, "METHOD_405")
                assert "the Allow header names those it takes" in problem["detail"]
                assert ", ".join(sorted(response.headers["Allow"].split(", "))) == methods


# ---------------------------------------------------------------------- outages


@only_postgresql
def test_database_away_is_503_with_retry_after_and_the_service_recovers(store: Backend) -> None:
    with Proxy.before(store.db_url) as proxy:
        away = Backend(proxy.url_for(store.db_url))
        with running(away) as client:
            soon = post(client, run_at=later(0.4))
            far = post(client)
            proxy.cut()
            for method, path, body in (
                ("POST", "/tasks", task_body()),
                ("POST", "/tasks", task_body(run_at=later(0))),
                ("GET", "/tasks", None),
                ("GET", f"/tasks/{far['task_id']}", None),
                ("DELETE", f"/tasks/{far['task_id']}", None),
                ("DELETE", f"/tasks/{soon['task_id']}", None),
            ):
                response = client.request(method, path, json=body)
                problem = assert_problem(response, 503, "DATABASE_503")
                assert "nothing was changed" in problem["detail"]
                assert int(response.headers["Retry-After"]) > 0
            assert store.count() == 2
            proxy.heal()
            assert finished(client, soon["task_id"])["status"] == "done"
            assert client.get(f"/tasks/{far['task_id']}").json() == far
            task_id = post(client, run_at=later(0))["task_id"]
            assert finished(client, task_id)["status"] == "done"
            assert client.delete(f"/tasks/{far['task_id']}").status_code == 200


def test_unexpected_exception_is_a_problem_without_its_text(store: Backend) -> None:
    clock = SteppedClock()
    with running(store, clock=clock) as client:
        clock.broken = True
        response = client.post("/tasks", json=task_body())
        problem = assert_problem(response, 500, "INTERNAL_500")
        assert "own words" not in response.text
        assert "ZeroDivisionError" not in response.text
        assert "the service's log says what" in problem["detail"]
        clock.broken = False
        assert store.count() == 0
        assert post(client)["status"] == "scheduled"


# --------------------------------------------------------------- a failing start


def messages_of_start(app: Any) -> tuple[list[dict[str, Any]], BaseException | None]:
    """Start an application as a server does, and return what it sends, and raises."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def start() -> BaseException | None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception as error:  # noqa: BLE001 (whatever it is: it is what is asked for)
            return error
        return None

    return sent, asyncio.run(start())


def test_start_that_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_URL", "mysql://u:hunter2@h/d")
    [message], error = messages_of_start(create_app())
    assert isinstance(error, ConfigurationError)
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"] == str(error)
    assert "\n" not in message["message"]
    assert "hunter2" not in message["message"]


def test_start_that_fails_by_a_mistake_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tasks_with_a_mistake.py").write_text("1 / 0\n")
    settings = load_settings(
        _env_file=None,
        db_url=f"sqlite:///{tmp_path / 'tasks.db'}",
        task_modules="tasks_with_a_mistake",
    )
    [message], error = messages_of_start(create_app(settings))
    assert isinstance(error, ZeroDivisionError)
    assert message["type"] == "lifespan.startup.failed"
    assert "Traceback" in message["message"]
    assert "tasks_with_a_mistake.py" in message["message"]
