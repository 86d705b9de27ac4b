"""What README.md, .env.sample, CHANGELOG.md and docs/ say is true."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from job_scheduler import exceptions
from job_scheduler.cli import cli
from job_scheduler.client import Client
from job_scheduler.config import Settings
from job_scheduler.constants import (
    BATCH_BODY_MAX_BYTES,
    BATCH_FAULTS_NAMED,
    BATCH_MAX_TASKS,
    BODY_MAX_BYTES,
    CHANNEL,
    JSON_MAX_DEPTH,
    LIST_DEFAULT_LIMIT,
    LIST_MAX_LIMIT,
    NAME_MAX_LENGTH,
    RESULT_MAX_BYTES,
    TRANSITIONS,
)
from job_scheduler.main import create_app
from tests.support.app import Backend, finished, later, post, running, service_process
from tests.support.remote import in_shell, installed_command
from tests.support.services import skip_or_fail, wait_until

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ENV_SAMPLE = (ROOT / ".env.sample").read_text()
STATES = (ROOT / "docs" / "states.md").read_text()
CLIENTS = "From Python and the shell"
MEBIBYTE = 1024 * 1024

FIXED_FILES = [
    *("job_scheduler/", "tests/", "migrate.py", "docker-compose.yml", "Dockerfile"),
    *(".env.sample", ".gitignore", "pyproject.toml", "pytest.ini", "requirements.txt", "README.md"),
    *(".ci/", "Makefile", "CHANGELOG.md", "benchmarks/", "docs/"),
    *(
        f"job_scheduler/{name}.py"
        for name in (
            *("main", "dependencies", "database", "redis_client", "logger", "config"),
            *("exceptions", "constants", "core/api", "core/recovery", "core/tasks"),
            *("core/models", "core/schemas"),
        )
    ),
    *(
        f"tests/{name}.py"
        for name in (
            *("conftest", "test_post_task", "test_get_tasks", "test_delete_task"),
            *("test_core_tasks", "test_recovery", "test_lifespan"),
        )
    ),
]

USERS_COMMANDS = (
    "pip install -r requirements.txt",
    "python migrate.py",
    "uvicorn job_scheduler.main:app --reload",
    "docker-compose up --build",
    "pytest",
    "pytest --cov=job_scheduler --cov-report=term-missing --cov-report=html",
)

Row = list[str]
OpenApi = dict[str, Any]


def section(title: str) -> str:
    """The text under a heading of the README, up to the next heading of its rank or above."""
    (head,) = re.finditer(rf"^(##+) {re.escape(title)}\n", README, re.MULTILINE)
    beyond = re.compile(rf"^#{{1,{len(head[1])}}} ", re.MULTILINE).search(README, head.end())
    return README[head.end() : None if beyond is None else beyond.start()]


def table(text: str) -> list[Row]:
    """The cells of a text's one table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert set(lines[1]) == {"|", "-"}, "the text has a table, and only one"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that configures nothing."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def openapi() -> OpenApi:
    """The API as it describes itself."""
    return create_app().openapi()


def shown_default(settings: Settings, name: str) -> str:
    """A setting's value as one writes it into `.env`."""
    value = getattr(settings, name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


# ----------------------------------------------------------------------- commands and files


@pytest.mark.parametrize("path", FIXED_FILES)
def test_file_that_the_user_fixed_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("command", USERS_COMMANDS)
def test_users_command_stands_in_the_readme(command: str) -> None:
    assert f"`{command}`" in section("Commands")


def test_first_screen_shows_the_two_commands() -> None:
    assert [row[0] for row in table(README.partition("\n## ")[0])] == ["`make run`", "`make test`"]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = code(README) + [content for language, content in blocks(README) if language == "sh"]
    named = [words for text in commands for words in re.findall(r"\bmake ([a-z]+)\b", text)]
    assert {"run", "test", "lock"} <= set(named) <= targets


def test_every_path_of_the_file_table_exists() -> None:
    rows = table(section("Where do I change …?"))
    paths = [path for _, where in rows for path in code(where) if not path.startswith("make ")]
    assert all(code(where) for _, where in rows)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_module_stands_in_the_file_table() -> None:
    named = code(section("Where do I change …?"))
    places = tuple(path for path in named if path.endswith("/"))
    package = ROOT / "job_scheduler"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    without_choice = {
        "job_scheduler/__main__.py",  # it calls the command line
        "job_scheduler/identifiers.py",
        "job_scheduler/migrations/env.py",  # Alembic wants one
        "job_scheduler/migrations/upgrade.py",
    }
    missing = {
        module
        for module in modules - set(named) - without_choice
        if not module.startswith(places) and not module.endswith("__init__.py")
    }
    assert missing == set()


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
    targets = re.findall(r"\]\((?!https://)([^)]+)\)", README)
    assert targets
    for target in targets:
        assert target[1:] in anchors if target.startswith("#") else (ROOT / target).is_file()


def test_changelog_names_the_present_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_messages_under_troubleshooting_are_the_ones_that_people_see() -> None:
    sources = [*(ROOT / "job_scheduler").rglob("*.py"), ROOT / "Makefile"]
    # Literals that are continued on the next line are read as one.
    texts = re.sub(r'"\n\s*f?"', "", "\n".join(path.read_text() for path in sources))
    quoted = [
        text
        for seen, _ in table(section("Troubleshooting"))
        for text in code(seen)
        if " " in text and not text.startswith("GET ")
    ]
    assert len(quoted) >= 8
    for text in quoted:
        constant = re.split(r" \d|…|: ", text)[0].strip()
        assert constant in texts, text


# --------------------------------------------------------------------------- configuration


@pytest.mark.usefixtures("no_variables")
def test_configuration_table_has_every_setting_with_its_default() -> None:
    defaults = Settings(_env_file=None)
    expected = [
        [f"`{name.upper()}`", f"`{value}`" if value else "(empty)"]
        for name in Settings.model_fields
        for value in [shown_default(defaults, name)]
    ]
    assert [row[:2] for row in table(section("Configuration"))] == expected


@pytest.mark.usefixtures("no_variables")
def test_sample_has_every_setting_once_with_its_default() -> None:
    defaults = Settings(_env_file=None)
    expected = [f"{name.upper()}={shown_default(defaults, name)}" for name in Settings.model_fields]
    assert [line for line in ENV_SAMPLE.splitlines() if line and line[0] != "#"] == expected


def test_sample_explains_every_setting() -> None:
    lines = ENV_SAMPLE.splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert before.startswith("# "), line


@pytest.mark.usefixtures("no_variables")
def test_sample_can_be_used_as_it_is() -> None:
    assert Settings(_env_file=ROOT / ".env.sample") == Settings(_env_file=None)


@pytest.mark.parametrize(
    ("low", "high", "name"), re.findall(r"From ([\d.]+) to ([\d.]+)\.\n(\w+)=", ENV_SAMPLE)
)
def test_bounds_in_the_sample_are_the_settings_own(low: str, high: str, name: str) -> None:
    bounds = {
        kind: getattr(constraint, kind)
        for constraint in Settings.model_fields[name.lower()].metadata
        for kind in ("ge", "le")
        if hasattr(constraint, kind)
    }
    assert bounds == {"ge": float(low), "le": float(high)}


# ------------------------------------------------------------------------- what can be tried


def shape(value: Any) -> Any:
    """A JSON document without what differs from one run to the next."""
    match value:
        case dict():
            return {key: shape(member) for key, member in value.items()}
        case list():
            return [shape(member) for member in value]
        case float():
            return "a number"
        case str():
            value = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "a time", value)
            return re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "an id", value)
        case _:
            return value


def shape_of_text(output: str) -> Any:
    """The shape of what a command prints: a JSON document, or lines of any kind."""
    try:
        return shape(json.loads(output))
    except json.JSONDecodeError:
        return [shape(line) for line in output.splitlines()]


def typed(commands: str, url: str) -> str:
    """What a shell prints when the README's commands are typed into it."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        ["/bin/sh", "-ec", commands.replace("http://127.0.0.1:8000", url)],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
        env=environment,
    )
    return done.stdout


def prints(commands: str, url: str, expected: Any) -> bool:
    """Whether the README's commands print something of this shape."""
    return bool(shape_of_text(typed(commands, url)) == expected)


def test_transcript_happens_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    shown = [content for _, content in blocks(section("Try it"))]
    with service_process(tmp_path, {}) as service, service.start():
        for commands, output in zip(shown[::2], shown[1::2], strict=True):
            expected = shape_of_text(output)
            if " -d " in commands or " -X " in commands:
                assert shape_of_text(typed(commands, service.url)) == expected
            else:  # it looks for a result, and a slow machine may have to look again
                shows = partial(prints, commands, service.url, expected)
                wait_until(shows, 15, f"what the README shows for {commands}")
    assert (tmp_path / "job_scheduler.db").exists()


def test_first_own_task_happens_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    (_, start), (_, commands), (_, output) = blocks(section("Your first own task"))
    variable, _, modules = start.split()[0].partition("=")
    with service_process(tmp_path, {variable: modules}) as service, service.start():
        assert typed(commands, service.url) == output


def test_examples_of_task_handlers_run(tmp_path: Path) -> None:
    modules = [one for kind, one in blocks(section("Your own tasks")) if kind == "python"]
    for name, module in zip(("my_tasks", "my_retries"), modules, strict=True):
        (tmp_path / f"{name}.py").write_text(module)
    environment = {"TASK_MODULES": "my_tasks,my_retries"}
    with service_process(tmp_path, environment) as service, service.start() as client:
        now = later(0)
        posted = [
            post(client, name=name, run_at=now, payload=payload)
            for name, payload in (
                ("greet", {"name": "Ada"}),
                ("greet", {"name": ""}),
                ("count_down", {"start": 1}),
                ("send_report", {"hours": 1, "until": now, "format": "markdown"}),
                ("charge", {"customer": 7}),
                ("charge", {"customer": 0}),
            )
        ]
        ended = [finished(client, task["task_id"]) for task in posted]
    greeting, refusal, count, report, charged, stranger = ended
    assert (charged["result"], charged["attempt"]) == ("charged 7", 2)
    assert (stranger["result"], stranger["attempt"]) == ("there is no such customer", 1)
    assert (greeting["status"], greeting["result"]) == ("done", "Hello Ada")
    assert (refusal["status"], refusal["result"]) == ("failed", "ValueError: nobody to greet")
    assert (count["status"], count["result"]) == ("done", {"counted": 1})
    assert report["status"] == "done"
    assert f"`{refusal['result']}`" in section("Your own tasks")


def test_recurring_task_is_made_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    (_, commands), (_, shown) = blocks(section("Again and again"))
    with service_process(tmp_path, {}) as service, service.start():
        answer, _, task = typed(commands, service.url).rpartition('{"task_id')
    assert json.loads(answer) == json.loads(shown)
    assert json.loads('{"task_id' + task)["recurrence"]["cron"] == "0 9 * * MON-FRI"


def test_batch_is_made_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    ((_, commands),) = blocks(section("Many at once"))
    with service_process(tmp_path, {}) as service, service.start():
        first, second = json.loads(typed(commands, service.url))
        assert json.loads(typed(commands, service.url)) == [first, second]
    assert (first["run_at"], second["payload"]) == ("2099-07-01T10:00:00Z", {"hours": 48})


def test_doubles_are_kept_out_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    ((_, commands),) = blocks(section("No doubles"))
    with service_process(tmp_path, {}) as service, service.start() as client:
        first, second = (json.loads(typed(commands, service.url)) for _ in range(2))
        assert first["task_id"] == second["task_id"]
        assert len(client.get("/tasks").json()) == 1


def test_many_are_changed_and_moved_as_it_is_shown(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    ((_, batch),) = blocks(section("Many at once"))
    (_, changes), (_, answers) = blocks(section("Change or remove many"))
    ((_, moving),) = blocks(section("Move tasks"))
    with service_process(tmp_path, {}) as service, service.start():
        typed(batch, service.url)
        shown = [json.loads(line) for line in answers.splitlines()]
        found = typed(changes, service.url).replace("}{", "}\n{").splitlines()
        assert [json.loads(line) for line in found] == shown
        commands = moving.replace("tasks.ndjson", str(tmp_path / "tasks.ndjson"))
        result = json.loads(typed(commands, service.url))
        assert (result["lines"], result["present"]) == (2, 2)


def test_python_client_does_as_it_is_shown(tmp_path: Path) -> None:
    (program,) = [one for kind, one in blocks(section(CLIENTS)) if kind == "python"]
    with service_process(tmp_path, {}) as service, service.start():
        done = subprocess.run(
            [sys.executable, "-c", program.replace("http://127.0.0.1:8000", service.url)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=60,
        )
    report, daily, conflict = done.stdout.splitlines()
    assert report == "done []"
    assert daily.startswith("send_report ")
    assert daily.endswith("T09:00:00")
    assert conflict.startswith("TASK_RETRY_409 Task ")


def test_every_method_of_the_client_is_named() -> None:
    methods = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    assert methods <= set(code(section(CLIENTS)))


def test_commands_for_tasks_do_as_they_are_shown(tmp_path: Path) -> None:
    (_, commands), (_, shown) = [one for one in blocks(section(CLIENTS)) if one[0] != "python"]
    environment = installed_command(tmp_path)
    with service_process(tmp_path, {}) as service, service.start():
        environment["JOB_SCHEDULER_URL"] = service.url
        printed = in_shell(environment, commands)
    printed = re.sub(r'{"from": .*}', '{"from": …}', printed)

    def masked(text: str) -> Any:
        return shape_of_text(re.sub(r"(?m)\d{4}-\d\d-\d\d \d\d:\d\d|[+-]\d\d:00$|\d\dZ", "…", text))

    assert masked(printed) == masked(shown)


def test_every_command_for_tasks_is_named() -> None:
    commands: Any = typer.main.get_command(cli)
    of_tasks = {name for name, one in commands.commands.items() if one.rich_help_panel}
    rows = [line for line in section(CLIENTS).splitlines() if line.startswith("| `")]
    named = {words.split()[0] for row in rows for words in code(row.split("|")[1])}
    assert named == of_tasks


def test_timer_has_the_result_that_is_shown(store: Backend) -> None:
    ((_, shown),) = [one for one in blocks(section("Names without a handler")) if one[0] == "json"]
    (name,) = re.findall(r"named '(\w+)'", shown)
    with running(store) as client:
        task = finished(client, post(client, name=name, run_at=later(0))["task_id"])
    assert task["status"] == "done"
    assert shape(task["result"]) == shape(json.loads(shown))


def test_refused_name_has_the_code_that_is_named(store: Backend) -> None:
    with running(store, unknown_tasks="reject") as client:
        answer = client.post("/tasks", json={"name": "tea", "run_at": later(60)})
    assert f"{answer.status_code} and `{answer.json()['error_code']}`" in section(
        "Names without a handler"
    )


def test_inserted_row_is_a_task(store: Backend) -> None:
    text = section("Tasks by plain SQL")
    (statements,) = [content for language, content in blocks(text) if language == "sql"]
    (insert,) = re.findall(r"^INSERT .*?;$", statements, re.MULTILINE | re.DOTALL)
    if store.dialect == "sqlite":
        (time,) = [words for words in code(text) if words.startswith("datetime(")]
        insert = insert.replace("now() + interval '1 minute'", time)
    store.sql(insert)
    with running(store) as client:
        (task,) = client.get("/tasks").json()
    assert (task["name"], task["status"]) == ("send_report", "scheduled")
    assert task["payload"] == {"hours": 1}
    assert later(30) < task["run_at"].replace("T", " ") < later(90)


def test_example_of_enqueue_makes_tasks(store: Backend, tmp_path: Path) -> None:
    (program,) = [
        content
        for language, content in blocks(section("Tasks by plain SQL"))
        if language == "python"
    ]
    (tmp_path / "shop.py").write_text(
        re.sub(r'create_engine\(".*"\)', f"create_engine({store.db_url!r})", program)
    )
    subprocess.run(
        [sys.executable, "shop.py"],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=30,
    )
    now, tomorrow = store.sql("SELECT * FROM scheduled_tasks ORDER BY run_at")
    assert (now["name"], now["max_attempts"]) == ("send_report", 1)
    assert (tomorrow["payload"], tomorrow["max_attempts"]) == (None, 3)
    assert store.count("payload IS NOT NULL") == 1


def test_notification_that_is_named_is_the_one_that_is_heard() -> None:
    assert f"`NOTIFY {CHANNEL};`" in section("Tasks by plain SQL")


# ---------------------------------------------------------------------------------- the API


def operations(openapi: OpenApi) -> dict[str, dict[str, Any]]:
    """All operations, as "METHOD /path"."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    }


def test_route_table_has_every_route(openapi: OpenApi) -> None:
    routes = [route for row in table(section("The API")) for route in code(row[0])]
    assert sorted(routes) == sorted(operations(openapi))


def test_every_status_of_the_route_table_is_documented(openapi: OpenApi) -> None:
    for routes, _, statuses, codes in table(section("The API")):
        named = set(re.findall(r"\b\d{3}\b", statuses)) | set(re.findall(r"_(\d{3})`", codes))
        for route in code(routes):
            assert named <= operations(openapi)[route]["responses"].keys(), route


def error_codes(kind: type[exceptions.JobSchedulerError]) -> Iterator[str]:
    """The codes of an exception and of all that derive from it."""
    yield kind.error_code
    for derived in kind.__subclasses__():
        yield from error_codes(derived)


def test_every_error_code_is_named(store: Backend) -> None:
    never_sent = {
        "SCHEDULER_500",  # a route turns it into a code of its own
        "START_500",  # nobody is served then
    }
    with running(store) as client:
        of_the_framework = {
            client.get("/nowhere").json()["error_code"],
            client.put("/tasks").json()["error_code"],
        }
    named = set(re.findall(r"`([A-Z]+_[A-Z_]*\d{3}(?:_[A-Z]+)?)`", section("The API")))
    existing = set(error_codes(exceptions.JobSchedulerError)) | of_the_framework
    assert named == existing - never_sent


def test_limits_are_the_ones_of_the_code() -> None:
    api = section("The API")
    assert f"default {LIST_DEFAULT_LIMIT}, at most {LIST_MAX_LIMIT}" in api
    assert f"A name has 1 to {NAME_MAX_LENGTH} characters" in api
    assert f"{BODY_MAX_BYTES / MEBIBYTE:g} MiB and {JSON_MAX_DEPTH} levels of nesting" in api
    assert f"that of a batch {BATCH_BODY_MAX_BYTES / MEBIBYTE:g} MiB" in api
    assert f"up to {BATCH_MAX_TASKS} tasks" in api
    assert f"At most {BATCH_FAULTS_NAMED} places are named" in api
    assert f"of more than {RESULT_MAX_BYTES / MEBIBYTE:g} MiB" in section("Your own tasks")


# ------------------------------------------------------------------------------- the states


def test_diagram_shows_the_transitions_of_the_code() -> None:
    ((_, diagram),) = blocks(STATES)
    arrows = set(re.findall(r"^ +(\S+) --> (\S+)", diagram, re.MULTILINE))
    moves = {(former.value, state.value) for former in TRANSITIONS for state in TRANSITIONS[former]}
    final = {former.value for former, states in TRANSITIONS.items() if not states}
    ends = {(state, "[*]") for state in {*final, "scheduled", "paused"}}
    assert arrows == moves | ends | {("[*]", "scheduled")}


def test_table_of_states_shows_the_transitions_of_the_code() -> None:
    rows = [[code(cell) for cell in row] for row in table(STATES)]
    moves = {(former.value, state.value) for former in TRANSITIONS for state in TRANSITIONS[former]}
    assert {(former, state) for (former,), (state,), _, _ in rows} == moves
    assert all((ROOT / path).is_file() for *_, (path,) in rows)


def test_readme_names_every_state() -> None:
    states = ", ".join(f"`{state.value}`" for state in list(TRANSITIONS)[:-1])
    assert f"`status` is {states} or `{list(TRANSITIONS)[-1].value}`" in section("The API")
