"""The OpenAPI document tells the truth, and schemathesis finds nothing to object to."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from job_scheduler.constants import TaskStatus
from job_scheduler.core.events import Place
from job_scheduler.core.schemas_events import TaskChanged
from job_scheduler.core.schemas_health import Health
from job_scheduler.core.schemas_problem import Problem
from job_scheduler.core.schemas_task import Task
from job_scheduler.main import create_app
from tests.support.app import Backend, running, service_process

# An integer beyond 64 bits is refused, a float of the same value is not. JSON Schema, which knows
# values and not how they are written, cannot say that: schemathesis leaves such integers out.
# Neither can a schema say that a key and a task_id exclude each other, that a key belongs to the
# body that it came with first, or that a task_id stands in a batch once: tests/test_idempotency.py
# and tests/test_post_batch.py do.
HOOKS = """
import json
from datetime import UTC, datetime

import schemathesis

bodies = {}
batches = set()


def holds_long_integer(node):
    if isinstance(node, dict):
        return any(holds_long_integer(value) for value in node.values())
    if isinstance(node, list):
        return any(holds_long_integer(value) for value in node)
    return isinstance(node, int) and not -(2**63) <= node < 2**63


def holds_nul(node):
    if isinstance(node, dict):
        return any(holds_nul(part) for pair in node.items() for part in pair)
    if isinstance(node, list):
        return any(holds_nul(value) for value in node)
    return isinstance(node, str) and "\\0" in node


def tasks_of(body):
    tasks = body.get("tasks", [body]) if isinstance(body, dict) else []
    return [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []


def ids_of(body):
    ids = [task.get("task_id") for task in tasks_of(body)]
    return [str(task_id).lower() for task_id in ids if task_id is not None]


def keys_of(body):
    return [str(task["unique_key"]) for task in tasks_of(body) if task.get("unique_key")]


def instant(text):
    moment = datetime.fromisoformat(text.upper())
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# What is not sent here: a webhook may go out, and no program is allowed.
OTHER_WORK = ("webhook", "command", "on_done", "on_failed")


RECURRING = (
    "cron", "interval_seconds", "start_at", "end_at", "max_runs", "jitter_seconds",
    "dst_gap", "dst_fold", "overlap", "catch_up",
)


BOUND = ("max_running", "on_conflict", "unique_key")


def given(task, *names):
    return [name for name in names if task.get(name) is not None]


# No schema tells which texts are lines of cron or zones, and of whom only one may stand there.
def has_one_time(task):
    if given(task, "timezone", "start_at", "end_at"):
        return False
    if given(task, "run_at"):
        return not given(task, *RECURRING)
    return given(task, "cron", "interval_seconds") == ["interval_seconds"] and not given(
        task, "start_before"
    )


# What is changed is a task of any kind, perhaps of a handler that takes certain arguments.
def can_be_changed(change):
    return change.get("run_at", "") is not None and not given(
        change, *RECURRING, *OTHER_WORK, "timezone", "payload", "start_before", "max_running"
    )


def can_be_taken(task):
    if not has_one_time(task):
        return False
    if any(isinstance(task.get(name), (dict, list)) for name in OTHER_WORK):
        return False
    for name, needed in (("max_running", "concurrency_key"), ("on_conflict", "unique_key")):
        if task.get(name) is not None and task.get(needed) is None:
            return False
    # No schema says of two members which is to come first.
    try:
        return instant(task["run_at"]) <= instant(task["start_before"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return True


@schemathesis.hook
def filter_body(context, body):
    return (
        not holds_long_integer(body)
        and not holds_nul(body)
        and len(ids_of(body)) == len(set(ids_of(body)))
        and len(keys_of(body)) == len(set(keys_of(body)))
        and all(map(can_be_taken if takes_tasks(context) else can_be_changed, tasks_of(body)))
    )


def takes_tasks(context):
    return context.operation.method.upper() == "POST"


@schemathesis.hook
def filter_case(context, case):
    key = (case.headers or {}).get("Idempotency-Key")
    if key is None or not isinstance(case.body, dict):
        return True
    body = json.dumps(case.body, sort_keys=True, default=repr)
    return not ids_of(case.body) and bodies.setdefault((case.path, key), body) == body


# Some cases are made to cover a schema, and are filtered by nobody.
def mend(case):
    if case.path == "/tasks" and case.method.upper() in ("PATCH", "DELETE"):
        case.query = {**(case.query or {}), "name": ["nightly"]}
        case.query.pop("cursor", None)
    for task in tasks_of(case.body):
        if case.method.upper() == "PATCH" and not can_be_changed(task):
            task.clear()
        elif case.path in ("/tasks", "/tasks/batch", "/tasks/preview") and not can_be_taken(task):
            for name in (*RECURRING, *OTHER_WORK, "timezone", "start_before", *BOUND):
                task.pop(name, None)
            task["run_at"] = "2027-07-01T10:00:00Z"


# A link may have put the task_id of an answer into a body that came with a key. And of a batch that
# was made before, a task may have been cancelled: it is not to be repeated then.
@schemathesis.hook
def before_call(context, case, kwargs):
    for name in list(case.headers or {}):
        if name.lower() == "if-match":
            del case.headers[name]  # nobody knows the version
        elif name.lower() == "prefer":
            case.headers[name] = "wait=1"
    if case.meta is None or case.meta.generation.mode.is_positive:
        mend(case)
    key = (case.headers or {}).get("Idempotency-Key")
    if key is not None and (ids_of(case.body) or (case.path, key) in batches):
        del case.headers["Idempotency-Key"]


@schemathesis.hook
def after_call(context, case, response):
    if case.path == "/tasks/batch" and response.status_code == 201:
        batches.add((case.path, (case.headers or {}).get("Idempotency-Key")))


@schemathesis.serializer("application/x-ndjson")
def as_lines(context, value):
    return json.dumps(value).encode()


@schemathesis.hook
def before_add_examples(context, examples):
    for case in examples:
        mend(case)
        if not filter_case(context, case):
            del case.headers["Idempotency-Key"]
"""

# A fixed seed, and no memory of former runs: the same build is tested in the same way.
SCHEMATHESIS = """
seed = 2
hooks = "hooks.py"

[generation]
max-examples = 15
deterministic = true
database = "none"

# A cursor is opaque: no schema can say which ones are ours, so that one that is made up (though it
# fits the pattern) is a 422 by design. So is no filter at all, where tasks are changed or removed.
# All other statuses and operations keep the check as it is.
[[operations]]
include-operation-id = ["listTasks", "deleteTasks", "changeTasks"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "409", "422"]
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document as it is served."""
    served: dict[str, Any] = json.loads(json.dumps(create_app().openapi()))
    return served


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation with its method and path."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_operation_ids_are_stable(document: dict[str, Any]) -> None:
    # They are the names of functions in generated clients: to change one breaks those.
    assert {name: operation["operationId"] for name, operation in operations(document)} == {
        "POST /tasks": "createTask",
        "POST /tasks/batch": "createTasks",
        "GET /tasks": "listTasks",
        "GET /tasks/{task_id}": "showTask",
        "DELETE /tasks/{task_id}": "deleteTask",
        "POST /tasks/{task_id}/cancel": "cancelTask",
        "POST /tasks/retry": "retryTasks",
        "PATCH /tasks/{task_id}": "changeTask",
        "POST /tasks/{task_id}/run": "runTask",
        "POST /tasks/{task_id}/pause": "pauseTask",
        "POST /tasks/{task_id}/resume": "resumeTask",
        "POST /tasks/preview": "previewTask",
        "GET /tasks/{task_id}/next": "listTimes",
        "GET /tasks/{task_id}/explain": "explainTask",
        "GET /tasks/{task_id}/runs": "listRuns",
        "GET /tasks/export": "exportTasks",
        "POST /tasks/import": "importTasks",
        "DELETE /tasks": "deleteTasks",
        "PATCH /tasks": "changeTasks",
        "GET /events": "watchEvents",
        "GET /forecast": "forecast",
        "GET /handlers": "listHandlers",
        "POST /tasks/{task_id}/retry": "retryTask",
        "GET /recovery/plan": "planRecovery",
        "POST /recovery/approve": "approveRecovery",
        "GET /health": "health",
        "GET /metrics": "metrics",
        "GET /livez": "livez",
        "GET /healthz": "healthz",
        "GET /readyz": "readyz",
    }


def test_every_operation_has_a_summary_a_description_and_a_tag(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    summaries = [operation["summary"] for _, operation in operations(document)]
    assert len(set(summaries)) == len(summaries)
    for name, operation in operations(document):
        assert " " in operation["summary"], name
        assert operation["description"].endswith("."), name
        assert set(operation["tags"]) <= tags, name
    assert document["info"]["title"] == "Job Scheduler Service"
    assert "error_code" in document["info"]["description"]


def test_every_operation_documents_its_errors_as_problems(document: dict[str, Any]) -> None:
    statuses = {
        name: {int(status) for status in operation["responses"] if int(status) >= 400}
        for name, operation in operations(document)
    }
    assert statuses == {
        "POST /tasks": {400, 409, 413, 415, 422, 500, 503},
        "POST /tasks/batch": {400, 408, 409, 413, 415, 422, 500, 503},
        "GET /tasks": {422, 500, 503},
        "GET /tasks/{task_id}": {404, 500, 503},
        "DELETE /tasks/{task_id}": {404, 409, 500, 503},
        "GET /tasks/{task_id}/runs": {404, 422, 500, 503},
        "GET /events": {422, 500, 503},
        "GET /forecast": {422, 500, 503},
        "GET /handlers": {500},
        "POST /tasks/{task_id}/retry": {404, 409, 500, 503},
        "POST /tasks/{task_id}/cancel": {404, 409, 500, 503},
        "POST /tasks/retry": {400, 409, 413, 415, 422, 500, 503},
        "GET /tasks/export": {422, 500, 503},
        "POST /tasks/import": {400, 408, 415, 422, 500, 503},
        "DELETE /tasks": {422, 500, 503},
        "PATCH /tasks": {400, 409, 413, 415, 422, 500, 503},
        "PATCH /tasks/{task_id}": {400, 404, 409, 412, 413, 415, 422, 500, 503},
        "POST /tasks/{task_id}/run": {404, 409, 500, 503},
        "POST /tasks/{task_id}/pause": {404, 409, 500, 503},
        "POST /tasks/{task_id}/resume": {404, 409, 500, 503},
        "POST /tasks/preview": {400, 413, 415, 422, 500, 503},
        "GET /tasks/{task_id}/next": {404, 422, 500, 503},
        "GET /tasks/{task_id}/explain": {404, 500, 503},
        "GET /recovery/plan": {500, 503},
        "POST /recovery/approve": {409, 500, 503},
        "GET /health": {500, 503},
        "GET /metrics": {500},
        "GET /livez": {500},
        "GET /healthz": {500},
        "GET /readyz": {500, 503},
    }
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) < 400 or (name, status) == ("GET /health", "503"):
                continue  # /health reports on each part when it is unavailable, too.
            [(media_type, content)] = response["content"].items()
            assert media_type == "application/problem+json", (name, status)
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (name, status)


def test_every_error_has_an_example_of_its_own(document: dict[str, Any]) -> None:
    codes: dict[tuple[str, str], str] = {}
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/problem+json")
            if content is None:
                continue
            example = content["example"]
            Problem.model_validate(example, extra="forbid", strict=True)
            assert example["status"] == int(status)
            assert example["error_code"] in response["description"], (name, status)
            codes[name, status] = example["error_code"]
    assert codes["POST /tasks", "409"] == "TASK_CREATE_409"
    assert codes["POST /tasks", "500"] == "TASK_CREATE_500"
    assert codes["DELETE /tasks/{task_id}", "409"] == "TASK_DELETE_409"
    assert codes["DELETE /tasks/{task_id}", "500"] == "TASK_DELETE_500"
    assert codes["GET /tasks/{task_id}", "404"] == "TASK_404"
    assert codes["GET /tasks/{task_id}", "500"] == "INTERNAL_500"
    assert codes["POST /tasks", "413"] == "BODY_413"
    assert codes["GET /readyz", "503"] == "UNAVAILABLE_503"


def has_example(document: dict[str, Any], content: dict[str, Any]) -> bool:
    """Tell whether an example stands beside a schema, or in it, or in that of its items."""
    schema = content.get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "example" in content or content.get("examples") or schema.get("examples"):
        return True
    return "items" in schema and has_example(document, {"schema": schema["items"]})


def test_every_body_and_every_success_has_a_schema_and_an_example(
    document: dict[str, Any],
) -> None:
    missing = []
    for name, operation in operations(document):
        bodies = {"body": operation["requestBody"]} if "requestBody" in operation else {}
        successes = {
            status: answer
            for status, answer in operation["responses"].items()
            if int(status) < 400 or (name, status) == ("GET /health", "503")
        }
        assert successes, name
        for what, described in (bodies | successes).items():
            assert described["content"], (name, what)
            missing += [
                (name, what, media_type)
                for media_type, content in described["content"].items()
                if not content.get("schema") or not has_example(document, content)
            ]
    assert not missing


def test_examples_are_what_is_sent_and_taken(document: dict[str, Any], store: Backend) -> None:
    contents = {
        (name, what): next(iter(described["content"].values()))
        for name, operation in operations(document)
        for what, described in (
            *operation["responses"].items(),
            ("body", operation.get("requestBody")),
        )
        if described is not None
    }
    exported = contents["GET /tasks/export", "200"]["example"]
    lines = contents["POST /tasks/import", "body"]["example"]
    assert exported.endswith("\n")
    for line in exported.splitlines():
        Task.model_validate_json(line, extra="forbid")
    for status in ("200", "503"):
        Health.model_validate(contents["GET /health", status]["example"], extra="forbid")
    first, second, rest = contents["GET /events", "200"]["example"].split("\n\n")
    assert rest == ""
    for event, name in ((first, "open"), (second, None)):
        told = dict(line.split(": ", 1) for line in event.splitlines())
        assert told.get("event") == name
        assert Place.parse(told["id"])
        if name is None:
            TaskChanged.model_validate_json(told["data"], extra="forbid")
        else:
            assert json.loads(told["data"]) == {"complete": True}
    with running(store) as client:
        answer = client.post(
            "/tasks/import", content=lines, headers={"Content-Type": "application/x-ndjson"}
        ).json()
        assert (answer["created"], answer["refused"]) == (2, 0)
        shown = client.get("/metrics").text
    assert metrics_in(contents["GET /metrics", "200"]["example"]) == metrics_in(shown)


def metrics_in(text: str) -> list[tuple[str, str, str, list[str]]]:
    """What metrics a text of Prometheus has: their names, meanings, kinds and samples."""
    return [
        (each.name, each.documentation, each.type, [sample.name for sample in each.samples])
        for each in text_string_to_metric_families(text)
    ]


def test_no_schema_of_the_framework_own_errors_is_left(document: dict[str, Any]) -> None:
    assert "ValidationError" not in json.dumps(document)


def test_every_reference_leads_somewhere_and_every_schema_is_used(
    document: dict[str, Any],
) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    used = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert used == set(schemas)


def test_schemas_of_what_is_sent_and_shown_are_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("TaskCreate", "Task", "Run", "Message", "Problem"):
        assert schemas[name]["description"], name
        assert schemas[name]["examples"], name
    assert schemas["TaskCreate"]["additionalProperties"] is False
    assert schemas["TaskStatus"]["enum"] == [status.value for status in TaskStatus]


def test_reader_meets_the_commonest_operations_first(document: dict[str, Any]) -> None:
    paths = list(document["paths"])
    assert paths[0] == "/tasks"
    assert next(iter(document["paths"]["/tasks"])) == "post"
    of_tasks = [path for path in paths if path.startswith("/tasks")]
    assert of_tasks[-2:] == ["/tasks/export", "/tasks/import"]


def test_document_is_the_same_each_time(document: dict[str, Any]) -> None:
    app = create_app()
    assert json.loads(json.dumps(app.openapi())) == document
    assert json.loads(json.dumps(app.openapi())) == document


@pytest.mark.slow
def test_schemathesis_finds_nothing(store: Backend, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    (tmp_path / "hooks.py").write_text(HOOKS)
    with service_process(tmp_path, store.environment()) as service, service.start():
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run"),
                *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
                *("--exclude-path", "/events"),  # a stream that has no end
                f"{service.url}/openapi.json",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr + service.output()
        service.stop()
    assert "Operations:       29 selected / 30 total" in run.stdout
    assert "Stateful" in run.stdout
    assert "ERROR" not in service.output()
