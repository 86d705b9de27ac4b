"""The commands that ask a service: what they print, and their exit statuses."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import typer

from job_scheduler.client import (
    Client,
    Explanation,
    Forecast,
    ForecastInterval,
    ForecastName,
    Moment,
    Reason,
    Task,
)
from job_scheduler.core.schemas_list import ListQuery
from job_scheduler.task_commands import shown, telling
from job_scheduler.task_commands.looking import list_tasks
from job_scheduler.task_commands.words import duration
from job_scheduler.terminal import Column, cell_width, printable, table, terminal_width
from tests.support.app import ROOT, ServiceProcess, service_process
from tests.support.commands import answered, following, next_line, typed
from tests.support.receiver import Receiver
from tests.support.remote import in_shell, installed_command
from tests.support.services import find_free_port, wait_until

FAR = "2099-07-01T12:00:00Z"
MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"


@pytest.fixture
def url(remote: ServiceProcess) -> str:
    """Where the service is."""
    return remote.url


@pytest.fixture
def client(url: str) -> Any:
    """A client, for what the tests themselves want to know."""
    with Client(url) as client:
        yield client


# ------------------------------------------------------------------------------- add


def test_task_is_added_with_all_that_is_said_of_it(url: str) -> None:
    task = answered(
        url,
        *("add", "greet", "--at", "2099-07-01T14:00", "--tz", "Europe/Berlin", "--priority", "2"),
        *("-p", "name=Ada", "--payload", "times=2", "--key", "k", "--tag", "a", "--tag", "b=c"),
        *("--max-attempts", "3", "--set", "timeout=2.5", "--set", "retry_delay=[1,2]"),
        *("--set", "on_crash=hold"),
    )
    assert task == httpx.get(f"{url}/tasks/{task['task_id']}").json()
    expected = {
        "name": "greet",
        "run_at": FAR,
        "priority": 2,
        "concurrency_key": "k",
        "payload": {"name": "Ada", "times": 2},
        "tags": ["a", "b=c"],
        "max_attempts": 3,
        "timeout": 2.5,
        "retry_delay": [1, 2],
        "on_crash": "hold",
    }
    assert {name: task[name] for name in expected} == expected


def test_task_is_added_for_now_for_later_and_again_and_again(url: str) -> None:
    now = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    due = {
        name: datetime.fromisoformat(answered(url, "add", "greet", *when)["run_at"]) - now
        for name, when in {"now": (), "later": ("--in", "1h30m")}.items()
    }
    assert timedelta() <= due["now"] < timedelta(minutes=1)
    assert timedelta(hours=1.5) <= due["later"] < timedelta(hours=1.6)
    every = answered(url, "add", "greet", "--every", "90s", "--set", "overlap=queue")
    assert (every["recurrence"]["interval_seconds"], every["recurrence"]["overlap"]) == (
        90,
        "queue",
    )
    cron = answered(url, "add", "greet", "--cron", "0 9 * * MON-FRI", "--tz", "Europe/Berlin")
    assert cron["recurrence"]["cron"] == "0 9 * * MON-FRI"
    assert cron["recurrence"]["timezone"] == "Europe/Berlin"
    webhook = answered(url, "add", "probe", "--at", FAR, "--webhook", "https://example.com/")
    assert webhook["webhook"]["url"] == "https://example.com/"


def test_added_task_is_shown_in_a_line(url: str) -> None:
    line = typed(url, "add", "greet", "--at", FAR).stdout
    task_id, status, day, second, name = line.split()
    assert (status, day, second, name) == ("scheduled", "2099-07-01", "12:00:00Z", "greet")
    assert httpx.get(f"{url}/tasks/{task_id}").is_success


def test_key_makes_one_task_of_repeated_commands(url: str) -> None:
    command = ("add", "greet", "--at", FAR, "--idempotency-key", str(uuid4()))
    assert answered(url, *command) == answered(url, *command)
    refused = typed(url, *command, "--priority", "1", exit_status=1)
    assert "The service refuses it (IDEMPOTENCY_422):\n  Idempotency-Key: " in refused.stderr


def test_payload_is_json_where_it_is_json_and_else_text(url: str) -> None:
    given = ('{"b": [1], "name": "x"}', "name=Ada", "n=1", 'text="1"', "none=null", "eq=a=b", "e=")
    options = [word for each in given for word in ("-p", each)]
    task = answered(url, "add", "probe", "--at", FAR, *options)
    assert task["payload"] == {
        "b": [1],
        "name": "Ada",
        "n": 1,
        "text": "1",
        "none": None,
        "eq": "a=b",
        "e": "",
    }


def test_end_is_waited_for_and_told_by_the_exit_status(url: str) -> None:
    done = typed(url, "add", "greet", "-p", "name=Ada", "--wait")
    assert done.stdout.split(maxsplit=4)[1:2] == ["done"]
    assert done.stdout.endswith("  greet  Hello Ada\n")
    failed = typed(url, "add", "stumble", "--wait", exit_status=1)
    assert failed.stdout.endswith("Z  stumble  it stumbled\n")
    assert answered(url, "add", "greet", "--wait")["result"] == "Hello you"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing argument 'NAME'"),
        (("greet", "--in", "5m", "--at", FAR), "Give one of --in, --at, --cron and --every."),
        (("greet", "--cron", "@daily", "--every", "1h"), "Give one of --in, --at"),
        (("greet", "--in", "soon"), "'--in': 'soon' is no length of time. Write it like 90s"),
        (("greet", "--every", ""), "'--every': '' is no length of time."),
        (("greet", "--in", "999999999w"), "'999999999w' is too long."),
        (("greet", "--cron", "@daily", "--wait"), "--wait: Goes with a task that runs once."),
        (("greet", "--every", "1h", "--wait"), "--wait: Goes with a task that runs once."),
        (("greet", "-p", "name"), "--payload: 'name' is neither name=value nor a JSON object."),
        (("greet", "-p", "=5"), "--payload: '=5' is neither name=value"),
        (("greet", "-p", "{5}"), "--payload: This is no JSON: Expecting property name"),
        (("greet", "--set", "timeout"), "--set: 'timeout' is neither"),
        (("greet", "--set", "name=other"), "--set: name is given already."),
        (("greet", "--tag", "a", "--set", "tags=[]"), "--set: tags is given already."),
        (("greet", "--priority", "4"), "--priority"),
        (("greet", "--url", "127.0.0.1"), "--url, JOB_SCHEDULER_URL: base_url: Must begin"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_asked(
    arguments: tuple[str, ...], complaint: str
) -> None:
    refused = typed("http://192.0.2.1", "add", *arguments, exit_status=2)
    assert refused.stdout == ""
    assert complaint in " ".join(refused.stderr.replace("│", " ").split())


def test_each_field_that_is_refused_has_a_line(url: str) -> None:
    command = ("add", "greet", "--at", "soon", "--set", "nonsense=1", "--set", "timeout=0")
    refused = typed(url, *command, exit_status=1)
    assert refused.stdout == ""
    first, *fields = refused.stderr.splitlines()
    assert first == "The service refuses it (VALIDATION_422):"
    assert sorted(each.split(":")[0] for each in fields) == ["  nonsense", "  run_at", "  timeout"]
    assert any("Write it like 2027-07-01T10:00:00Z" in each for each in fields)
    payload = typed(url, "add", "greet", "-p", "times=x", exit_status=1).stderr
    assert payload.startswith("The service refuses it (PAYLOAD_422):\n  payload.times: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("45", 45),
        ("1.5", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("1h30", 3630),
        ("0.5h", 1800),
    ],
)
def test_length_of_time_is_read(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "s", "m", "10x", "-5m", "5 m", "1h-30m", "5ss", "1e3", "٣s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no length of time"):
        duration(text)


# ------------------------------------------------------------------------------ list


def test_list_is_a_table_of_what_meets_all_filters(url: str, client: Client) -> None:
    tag = str(uuid4())
    later = client.create("probe", run_at="2099-07-01T13:00:59Z", tags=[tag], concurrency_key="k")
    sooner = client.create("greet", run_at=FAR, tags=[tag, "b"])
    done = client.wait(client.create("greet", tags=[tag]).task_id)
    title, *rows = typed(url, "list", "--tag", tag).stdout.splitlines()
    assert title == f"{'ID':<36}  STATUS     RUN AT (UTC)      NAME   RESULT"
    assert rows == [
        f"{done.task_id}  done       {done.run_at:%Y-%m-%d %H:%M}  greet  Hello you",
        f"{sooner.task_id}  scheduled  2099-07-01 12:00  greet",
        f"{later.task_id}  scheduled  2099-07-01 13:00  probe",
    ]
    filters = {
        ("--status", "done", "--status", "failed"): [done],
        ("--name", "probe", "--name", "greet", "--sort", "-run_at"): [later, sooner, done],
        ("--tag", "b"): [sooner],
        ("--key", "k"): [later],
        ("-q", "PRO"): [later],
        ("--due-after", "2099-07-01T12:30Z"): [later],
        ("--due-after", FAR, "--due-before", "2099-07-01T12:30Z"): [sooner],
        ("--created-before", "2020-01-01T00:00Z"): [],
        ("--created-after", "2020-01-01T00:00Z", "--limit", "2"): [done, sooner],
        ("--finished-after", "2020-01-01T00:00Z"): [done],
        ("--finished-before", "2020-01-01T00:00Z"): [],
    }
    for options, expected in filters.items():
        found = answered(url, "list", "--tag", tag, *options)
        assert found == [task.raw for task in expected], options


def test_list_has_an_option_for_each_filter() -> None:
    options = {"q" if name == "text" else name for name in signature(list_tasks).parameters}
    assert options - {"url", "as_json"} == ListQuery.model_fields.keys() - {"cursor"}


def test_list_is_the_services_json_and_says_when_there_is_more(url: str, client: Client) -> None:
    tag = str(uuid4())
    for _ in range(3):
        client.create("greet", run_at=FAR, tags=[tag])
    wanted = httpx.get(f"{url}/tasks", params={"tag": tag, "limit": 2})
    shortened = typed(url, "list", "--tag", tag, "--limit", "2", "--json")
    assert json.loads(shortened.stdout) == wanted.json()
    assert shortened.stderr == "There are more than 2: --limit 4 shows more.\n"
    assert len(typed(url, "list", "--tag", tag, "--limit", "2").stdout.splitlines()) == 3
    whole = typed(url, "list", "--tag", tag, "--limit", "3")
    assert (len(whole.stdout.splitlines()), whole.stderr) == (4, "")
    none = typed(url, "list", "--tag", str(uuid4()))
    assert (none.stdout, none.stderr) == ("", "There are no such tasks.\n")
    assert answered(url, "list", "--tag", str(uuid4())) == []


def test_list_fits_the_terminal_and_cannot_control_it(url: str, client: Client) -> None:
    tag = str(uuid4())
    client.create("a\x1b[31m\nlong name " + 20 * "x", run_at=FAR, tags=[tag])
    for columns in ("120", "80", "76"):
        shown_ = typed(url, "list", "--tag", tag, columns=columns).stdout
        assert "\x1b" not in shown_
        title, row = shown_.splitlines()
        assert len(row) <= int(columns)
        assert r"a\x1b[31" in row
        assert ("long" in row, row.endswith("…")) == (columns == "120", columns != "120")
        assert "RESULT" not in title or columns == "120"


# ------------------------------------------------------------------------------ show


def test_task_is_shown_with_its_attempts(url: str, client: Client) -> None:
    task = client.wait(client.create("greet", payload={"name": "Ada\nB"}, tags=["é"]).task_id)
    lines = typed(url, "show", task.task_id).stdout.splitlines()
    told = {each[:14].rstrip(): each[14:] for each in lines[: lines.index("")]}
    assert told["task_id"] == task.task_id
    assert told["run_at"].startswith(task.raw["run_at"] + " (")
    assert told["run_at"].endswith(" s ago)")
    assert (told["status"], told["tags"]) == ("done", '["é"]')
    assert (told["payload"], told["result"]) == (r'{"name": "Ada\nB"}', "Hello Ada")
    assert lines[lines.index("result        Hello Ada") + 1] == " " * 14 + "B"
    assert list(told)[:5] == ["task_id", "name", "status", "run_at", "started_at"]
    assert not told.keys() & {"webhook", "timeout", "recurrence"}
    head, title, run = lines[lines.index("") + 1 :]
    assert (head, title.split()[-1]) == ("Its attempts:", "RESULT")
    assert run.split()[0] == "1"
    assert run.endswith(r"s  done     Hello Ada\nB")
    narrow = typed(url, "show", task.task_id, columns="60").stdout.splitlines()
    assert narrow[-1].endswith("…")
    assert answered(url, "show", task.task_id) == httpx.get(f"{url}/tasks/{task.task_id}").json()


def test_recurring_task_is_shown_with_its_next_times(url: str, client: Client) -> None:
    task = client.create("greet", cron="0 9 * * *", timezone="Europe/Berlin", start_at=FAR)
    lines = typed(url, "show", task.task_id).stdout.splitlines()
    at = lines.index("Its next times:")
    assert lines[at + 1 : at + 3] == [
        "UTC                   LOCAL                OFFSET",
        "2099-07-02 07:00:00Z  2099-07-02 09:00:00  +02:00",
    ]
    assert len(lines) == at + 7
    assert "Its attempts:" not in lines


def test_task_that_is_under_way_is_shown(url: str, client: Client, tmp_path: Path) -> None:
    task_id = client.create("await_file", payload={"file": str(tmp_path / "file")}).task_id
    wait_until(lambda: client.get(task_id).progress)
    lines = typed(url, "show", task_id).stdout.splitlines()
    assert any(line.endswith('{"fraction": 0.25, "message": "looking"}') for line in lines)
    assert lines[-1].split()[-1] == "running"
    assert "await_file  25% looking\n" in typed(url, "list", "--name", "await_file").stdout
    client.cancel(task_id)
    client.wait(task_id)


def test_what_is_not_there_is_said(url: str) -> None:
    for task_id in (MISSING, "abc"):
        refused = typed(url, "show", task_id, exit_status=1)
        assert refused.stdout == ""
        assert refused.stderr.startswith(f"There is no task '{task_id}'")
        assert len(refused.stderr.splitlines()) == 1


# ------------------------------------------------------------------ explain, forecast


def test_reasons_are_told_with_what_to_do(url: str, client: Client) -> None:
    task_id = client.create("greet", run_at=FAR).task_id
    client.pause(task_id)
    lines = typed(url, "explain", task_id).stdout.splitlines()
    assert lines[0] == f"{task_id}  paused"
    assert lines[1:4] == [
        "",
        "paused: It is paused: it does not start until somebody lets it.",
        f"  POST /tasks/{task_id}/resume lets it start at its time. POST /tasks/{task_id}/run "
        "starts it now.",
    ]
    assert lines[5].startswith("not_due: It is not due for ")
    assert len(lines) == 7
    narrow = typed(url, "explain", task_id, columns="60").stdout.splitlines()
    assert max(map(len, narrow)) <= 60
    assert " ".join(narrow).split() == " ".join(lines).split()
    answer = answered(url, "explain", task_id)
    assert [each["code"] for each in answer["reasons"]] == ["paused", "not_due"]
    refused = typed(url, "explain", MISSING, exit_status=1)
    assert refused.stderr.startswith(f"There is no task '{MISSING}'")
    typed("http://127.0.0.1:1", "explain", task_id, exit_status=3)


def test_what_nobody_looks_at_is_not_wrapped() -> None:
    reason = Reason(raw={}, code="done", text="It is\x9bdone. " * 20, remedy="Nothing.")
    found = Explanation(raw={}, task_id=MISSING, status="done", summary="", reasons=[reason])
    assert list(telling.reason_lines(found, None)) == [
        f"{MISSING}  done",
        "",
        "done: " + r"It is\x9bdone. " * 20,
        "  Nothing.",
    ]


def test_what_is_to_come_is_a_table(url: str, client: Client) -> None:
    name = str(uuid4())
    due = datetime.now(UTC) + timedelta(minutes=50)  # noqa: TID251 (tests have a clock too)
    for _ in range(3):
        client.create(name, run_at=due)
    answer = answered(url, "forecast", "--hours", "1")
    assert answer["interval_seconds"] == 60
    lines = typed(url, "forecast", "--hours", "1").stdout.splitlines()
    assert f"{answer['total']} tasks fall due from " in lines[0]
    assert lines[0].endswith(", by intervals of 1 min.")
    at = lines.index("") + 1
    assert lines[at].split() == ["FROM", "(UTC)", "TASKS", "PEAK", "NAMES"]
    [line] = [line for line in lines[at:] if name in line]
    assert line.split()[:2] == f"{due:%Y-%m-%d %H:%M}".split()
    assert "peak" in line
    assert f"{name} 3" in line
    assert answered(url, "forecast")["interval_seconds"] == 900
    for hours in ("0", "169", "x"):
        typed(url, "forecast", "--hours", hours, exit_status=2)
    typed("http://127.0.0.1:1", "forecast", exit_status=3)


def test_forecast_says_what_it_has_not_counted() -> None:
    begin = datetime(2099, 7, 1, 12, tzinfo=UTC)
    interval = ForecastInterval(raw={}, at=begin, tasks=0, names=[])
    nothing = Forecast(
        raw={},
        begin=begin,
        until=begin + timedelta(hours=24),
        interval_seconds=900,
        intervals=[interval],
        total=0,
        peaks=[],
        overdue=0,
        truncated=False,
        complete_until=begin + timedelta(hours=24),
    )
    told = "due from 2099-07-01 12:00:00Z to 2099-07-02 12:00:00Z, by intervals of 15 min."
    assert list(telling.forecast_lines(nothing, None)) == [f"0 tasks fall {told}"]
    busiest = replace(interval, tasks=1, names=[ForecastName(raw={}, name="a", tasks=1)])
    more = replace(
        nothing,
        total=1,
        overdue=2,
        truncated=True,
        complete_until=begin + timedelta(hours=1),
        intervals=[busiest, replace(busiest, at=begin + timedelta(hours=1))],
        peaks=[busiest],
    )
    assert list(telling.forecast_lines(more, None)) == [
        f"1 task falls {told}",
        "Due already, and not started: 2.",
        "There is more to count: all is told up to 2099-07-01 13:00:00Z.",
        "",
        "FROM (UTC)        TASKS  PEAK  NAMES",
        "2099-07-01 12:00  1      peak  a 1",
        "2099-07-01 13:00  1            a 1",
    ]


def test_what_a_newer_service_says_is_shown_and_cannot_control_the_terminal() -> None:
    answer = {
        "task_id": MISSING,
        "name": "greet",
        "run_at": FAR,
        "status": "frozen",
        "ended": "\x9bné",
        "etag": 1,
        "raw": [2],
        "tags": None,
    }
    with Receiver() as receiver:
        receiver.answer = answer
        printed = typed(receiver.url, "show", MISSING, "--json").stdout
    assert json.loads(printed) == answer
    assert "\\u009bné" in printed
    task = Task(
        task_id=MISSING,
        name="greet",
        run_at=datetime.fromisoformat(FAR),
        status="frozen",
        raw=answer,
    )
    assert list(shown.detail_lines(task, [], [], task.run_at, None)) == [
        f"task_id  {MISSING}",
        "name     greet",
        "status   frozen",
        f"run_at   {FAR} (0 s ago)",
        "ended    \\x9bné",
        "etag     1",
        "raw      [2]",
    ]


def test_distance_is_told_in_words() -> None:
    now = datetime(2027, 7, 1, tzinfo=UTC)
    told = {
        0.4: "in 0 s",
        -1: "1 s ago",
        119: "in 119 s",
        120: "in 2 min",
        -7_199: "119 min ago",
        7_200: "in 2 h",
        -172_799: "47 h ago",
        172_800: "in 2 d",
    }
    for seconds, words in told.items():
        assert shown.relative(now + timedelta(seconds=seconds), now) == words
    assert shown.relative(now, now) == "0 s ago"


def test_progress_without_a_message_is_shown() -> None:
    members: dict[str, Any] = {
        "task_id": MISSING,
        "name": "greet",
        "run_at": datetime(2027, 7, 1, tzinfo=UTC),
        "raw": {},
        "progress": {"fraction": 0.5, "message": None},
    }
    assert shown.line(Task(status="running", **members)).endswith("Z  greet  50%")
    assert shown.line(Task(status="done", **members)).endswith("Z  greet")
    members["progress"] = None
    assert shown.line(Task(status="running", **members)).endswith("Z  greet")


# ----------------------------------------------------------------------------- watch


def test_task_is_followed_until_it_has_ended(url: str, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "file"
    task_id = client.create("await_file", run_at=FAR, payload={"file": str(file)}).task_id
    with following(url, "watch", task_id) as process:
        first = next_line(process)
        client.run(task_id)
        told = [first]
        while not told[-1].endswith("await_file  25% looking\n"):
            told.append(next_line(process))
            assert told[-1].startswith(f"{task_id}  "), told
        file.touch()
        rest, complaints = process.communicate(timeout=30)
    assert first == f"{task_id}  scheduled  2099-07-01 12:00:00Z  await_file\n"
    assert rest == f"{task_id}  done       2099-07-01 12:00:00Z  await_file  found\n"
    assert (process.returncode, complaints) == (0, "")
    assert len(told) == len(set(told))


@pytest.mark.parametrize("name", ["greet", "stumble"])
def test_outcome_of_a_watched_task_is_the_exit_status(url: str, client: Client, name: str) -> None:
    task = client.wait(client.create(name).task_id)
    status = 0 if name == "greet" else 1
    watched = typed(url, "watch", task.task_id, exit_status=status)
    assert watched.stdout == f"{shown.line(task)}\n"
    [line] = typed(url, "watch", task.task_id, "--json", exit_status=status).stdout.splitlines()
    assert json.loads(line) == task.raw
    assert typed(url, "watch", MISSING, exit_status=1).stdout == ""


def test_watch_outlasts_a_restart_of_the_service(tmp_path: Path) -> None:
    command = ("-m", "job_scheduler", "serve", "--port", str(find_free_port()))
    with service_process(tmp_path, {}, *command) as service:
        with service.start(), Client(service.url) as client:
            task_id = client.create("send_report", run_at=FAR).task_id
        with following(service.url, "watch", task_id) as process:
            assert "  scheduled  " in next_line(process)
            service.stop()
            with service.start(), Client(service.url) as client:
                client.run(task_id)
                rest, complaints = process.communicate(timeout=60)
    assert "  done  " in rest.splitlines()[-1]
    assert (process.returncode, complaints) == (0, "")


def test_service_that_does_not_wait_is_not_asked_all_the_time() -> None:
    task = {"task_id": MISSING, "name": "greet", "run_at": FAR, "status": "scheduled"}
    with Receiver() as receiver, ThreadPoolExecutor(1) as pool:
        receiver.answer = task
        watching = pool.submit(typed, receiver.url, "watch", MISSING)
        wait_until(lambda: len(receiver.requests) == 4)
        receiver.answer = task | {"status": "done"}
        lines = watching.result(30).stdout.splitlines()
    assert len(lines) == 2
    assert [each.headers.get("prefer") for each in receiver.requests] == [
        *(None, "wait=1", "wait=1", "wait=1", "wait=1")
    ][: len(receiver.requests)]
    apart = receiver.times[3] - receiver.times[1]
    assert 1.9 < apart < 10


# ------------------------------------------------------------------- acting on tasks


def test_tasks_are_paused_resumed_run_cancelled_and_removed(url: str, client: Client) -> None:
    ids = [client.create("greet", run_at=FAR).task_id for _ in range(2)]
    for command, status in (("pause", "paused"), ("resume", "scheduled"), ("cancel", "cancelled")):
        lines = typed(url, command, *ids).stdout.splitlines()
        assert lines == [f"{each}  {status:<9}  2099-07-01 12:00:00Z  greet" for each in ids]
        assert {client.get(each).status for each in ids} == {status}
    other = client.create("greet", run_at=FAR).task_id
    assert typed(url, "delete", other).stdout == f"Task {other} is cancelled.\n"
    other = client.create("greet", run_at=FAR).task_id
    assert answered(url, "run", other)["task_id"] == other
    assert client.wait(other).status == "done"
    other = client.create("greet", run_at=FAR).task_id
    assert answered(url, "delete", other) == {"message": f"Task {other} is cancelled."}
    failed = client.wait(client.create("stumble").task_id).task_id
    typed(url, "retry", failed)
    assert client.wait(failed).attempt == 2


def test_one_that_is_refused_does_not_keep_the_others(url: str, client: Client) -> None:
    first, last = (client.create("greet", run_at=FAR).task_id for _ in range(2))
    done = client.wait(client.create("greet").task_id).task_id
    result = typed(url, "pause", first, MISSING, done, last, exit_status=1)
    assert [line.split()[0] for line in result.stdout.splitlines()] == [first, last]
    missing, late = result.stderr.splitlines()
    assert missing == f"There is no task '{MISSING}'. GET /tasks lists those that exist."
    assert late.startswith(f"Task {done} is done: only a task that is scheduled can be paused.")
    typed(url, "delete", first, last)


# ----------------------------------------------------------------------------- trouble


def test_service_that_is_away_is_told_in_a_line() -> None:
    url = f"http://127.0.0.1:{find_free_port()}"
    for arguments in (("list",), ("pause", MISSING, MISSING), ("preview", "@daily")):
        away = typed(url, *arguments, exit_status=3)
        assert away.stdout == ""
        [line] = away.stderr.splitlines()
        assert line.startswith(f"{url} cannot be reached (")
        assert line.endswith("--url, or JOB_SCHEDULER_URL, names another address.")
    option = typed("http://192.0.2.1", "list", "--url", url, exit_status=3)
    assert option.stderr.startswith(f"{url} cannot")


def test_service_that_can_do_nothing_is_told_in_a_line() -> None:
    with Receiver([503]) as receiver:
        receiver.answer = {"error_code": "A_503", "detail": "Try\x1b again shortly."}
        away = typed(receiver.url, "list", exit_status=3)
    assert (away.stdout, away.stderr) == ("", "Try\\x1b again shortly.\n")


def test_field_without_a_name_is_told_by_its_place() -> None:
    with Receiver([422]) as receiver:
        fault = {"location": "body", "field": "", "detail": "Is\nmissing."}
        receiver.answer = {"error_code": "A_422", "detail": "no", "errors": [fault]}
        refused = typed(receiver.url, "list", exit_status=1)
    assert refused.stderr == "The service refuses it (A_422):\n  body: Is\\nmissing.\n"


# ----------------------------------------------------------------------------- preview


def test_line_of_cron_is_told_in_words_and_times(url: str) -> None:
    lines = typed(url, "preview", "0 9 * * MON-FRI", "--tz", "Europe/Berlin").stdout.splitlines()
    assert lines[0] == "At 09:00 on Monday through Friday (Europe/Berlin)."
    assert lines[2].split() == ["UTC", "LOCAL", "OFFSET"]
    assert len(lines) == 8
    assert all(" 09:00:00  +0" in line for line in lines[3:])
    last = typed(url, "preview", "0 0 31 * *", "-n", "1").stdout.splitlines()
    assert len(last) == 6
    assert last[5].startswith("Note: The 31st: skips February")
    answer = answered(url, "preview", "@daily", "--number", "3")
    assert answer.keys() == {"next", "description", "warnings"}
    assert len(answer["next"]) == 3
    assert answered(url, "preview", "@daily")["next"][0]["offset"] == "+00:00"
    refused = typed(url, "preview", "0 9 * *", exit_status=1)
    assert refused.stderr.startswith(
        "The service refuses it (VALIDATION_422):\n  cron: a cron line"
    )


def test_moments_are_a_table() -> None:
    moment = Moment(
        utc=datetime(2027, 7, 1, 8, 0, 0, 500_000, UTC),
        local="2027-07-01T10:00:00.500000",
        offset="+02:00",
        raw={},
    )
    assert shown.moment_lines([moment])[1].split("  ") == [
        *("2027-07-01 08:00:00Z", "2027-07-01 10:00:00.500000", "+02:00")
    ]


# ------------------------------------------------------------------------------ tables

COLUMNS = (Column("A"), Column("B", cut=True), Column("C", cut=True, spare=True))


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (None, ["A  B             C", "1  bbbbbbbbbbbb  cccccccccccc"]),
        (29, ["A  B             C", "1  bbbbbbbbbbbb  cccccccccccc"]),
        (28, ["A  B             C", "1  bbbbbbbbbbbb  cccccccccc…"]),
        (25, ["A  B             C", "1  bbbbbbbbbbbb  ccccccc…"]),
        (24, ["A  B", "1  bbbbbbbbbbbb"]),
        (15, ["A  B", "1  bbbbbbbbbbbb"]),
        (14, ["A  B", "1  bbbbbbbbbb…"]),
        (5, ["A  B", "1  bbbbbbb…"]),
    ],
)
def test_table_fits_its_width(width: int | None, lines: list[str]) -> None:
    assert table(COLUMNS, [("1", "b" * 12, "c" * 12)], width) == lines


def test_table_of_short_columns_is_left_alone() -> None:
    assert table(COLUMNS, [("1", "b", "c")], 7) == ["A  B  C", "1  b  c"]
    assert table(COLUMNS, [("1", "b", "c")], 6) == ["A  B", "1  b"]
    assert table(COLUMNS, [("1" * 12, "b", "c")], 6)[1] == "1" * 12 + "  b"
    assert table(COLUMNS, []) == ["A  B  C"]


def test_cells_are_counted_as_terminals_do() -> None:
    assert [cell_width(text) for text in ("abc", "日本", "e\u0301", "")] == [3, 4, 1, 0]
    columns = (Column("A", cut=True), Column("B"))
    rows = [("日本日本日本", "1"), ("e\u0301", "2")]
    assert table(columns, rows) == ["A             B", "日本日本日本  1", "e\u0301             2"]
    assert table(columns, rows, 11) == ["A         B", "日本日…   1", "e\u0301         2"]
    assert printable("a\tb\u202e\x9b日") == "a\\tb\\u202e\\x9b日"


def test_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal_width() == 77


def test_what_nobody_looks_at_is_not_cut() -> None:
    code = "from job_scheduler.terminal import terminal_width; print(terminal_width())"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"


# -------------------------------------------------------------- the command as installed


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the command is installed."""
    return installed_command(tmp_path)


def completed(environment: dict[str, str], line: str) -> list[str]:
    """What the Tab key offers at the end of a line."""
    words = len(line.split(" ")) - 1
    asked = {"COMP_WORDS": line.replace(" ", "\n"), "COMP_CWORD": str(words)}
    asked |= {"_JOB_SCHEDULER_COMPLETE": "complete_bash"}
    return in_shell(environment | asked, "job-scheduler").splitlines()


def test_shell_completes_commands_options_and_values(installed: dict[str, str]) -> None:
    script = in_shell(installed, "job-scheduler --show-completion")
    assert "complete -o default -F _job_scheduler_completion job-scheduler" in script
    assert "_JOB_SCHEDULER_COMPLETE=complete_bash" in script
    assert completed(installed, "job-scheduler wat") == ["watch"]
    assert completed(installed, "job-scheduler expl") == ["explain"]
    assert completed(installed, "job-scheduler forecast --h") == ["--hours", "--help"]
    assert completed(installed, "job-scheduler list --fin") == [
        *("--finished-after", "--finished-before")
    ]
    assert completed(installed, "job-scheduler list --status d") == ["done"]
    in_shell(installed, "job-scheduler --install-completion")
    home = Path(installed["HOME"])
    assert "job-scheduler.sh" in (home / ".bashrc").read_text()
    assert script.strip() in (home / ".bash_completions" / "job-scheduler.sh").read_text()
    # What bash itself makes of it.
    offered = in_shell(
        installed,
        f"source {home}/.bash_completions/job-scheduler.sh; COMP_WORDS=(job-scheduler prev); "
        "COMP_CWORD=1; _job_scheduler_completion job-scheduler; echo ${COMPREPLY[@]}",
    )
    assert offered == "preview\n"


def test_command_asks_the_service_from_a_shell(installed: dict[str, str], url: str) -> None:
    installed["JOB_SCHEDULER_URL"] = url
    shown_ = in_shell(installed, "job-scheduler add greet -p name=Ada --wait")
    assert shown_.endswith("greet  Hello Ada\n")


def test_other_commands_do_not_load_the_client() -> None:
    code = "import sys, job_scheduler.cli; print('httpx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_help_tells_the_exit_statuses() -> None:
    for command in ("add", "watch"):
        told = " ".join(typed("", command, "--help", columns="200").stdout.split())
        assert "Exit status: 0 it is" in told
        assert "3 the service cannot be reached" in told
