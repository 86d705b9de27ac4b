"""GET /tasks: every task, in order, page by page; GET /tasks/{task_id}: one of them."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    running,
    services_of,
    statements,
)

NOON = "2031-07-01 12:00:00.000000+00:00"


def next_link(response: Any) -> str | None:
    """The address of the next page (RFC 8288), if there is one."""
    if "Link" not in response.headers:
        return None
    found = re.fullmatch(r'<(/tasks\?[^>]+)>; rel="next"', response.headers["Link"])
    assert found, response.headers["Link"]
    return found.group(1)


def pages(client: TestClient, path: str) -> Iterator[list[dict[str, Any]]]:
    """Follow the links from page to page."""
    following: str | None = path
    while following is not None:
        response = client.get(following)
        assert response.status_code == 200, response.text
        yield response.json()
        following = next_link(response)


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    """The ids of tasks, in their order."""
    return [task["task_id"] for task in tasks]


def test_no_task_is_an_empty_array(store: Backend) -> None:
    with running(store) as client:
        response = client.get("/tasks")
    assert (response.status_code, response.json()) == (200, [])
    assert "Link" not in response.headers


def test_list_holds_scheduled_and_completed_tasks_by_run_at(
    store: Backend, registry: HandlerRegistry
) -> None:
    registry.task("fine")(lambda: {"sum": 3})
    registry.task("broken")(lambda: [][0])
    with running(store, registry) as client:
        last = post(client, run_at="9999-12-31T23:59:59Z")
        soon = post(client, run_at=later(3600))
        failed = finished(client, post(client, name="broken", run_at=later(0))["task_id"])
        done = finished(client, post(client, name="fine", run_at="0001-01-01T00:00:00Z")["task_id"])
        listed = client.get("/tasks").json()
    assert listed == [done, failed, soon, last]
    assert [task["status"] for task in listed] == ["done", "failed", "scheduled", "scheduled"]
    assert (done["result"], failed["result"]) == ({"sum": 3}, "IndexError: list index out of range")
    times = [parse_time(task["run_at"]) for task in listed]
    assert times == sorted(times)


def test_running_and_missed_tasks_are_listed_as_what_they_are(store: Backend) -> None:
    with running(store) as client:
        # After the start: recovery would see to both.
        executing = store.insert_task(
            status="running",
            run_at="2001-01-01 00:00:00.000000+00:00",
            started_at=NOON,
            instance_id=services_of(client).heartbeat.instance_id,
        )
        missed = store.insert_task(run_at="2001-01-01 00:00:01.000000+00:00", missed_at=NOON)
        first, second = client.get("/tasks").json()
    assert (first["task_id"], first["status"]) == (executing, "running")
    assert (second["task_id"], second["status"]) == (missed, "scheduled")
    assert parse_time(second["missed_at"]) == parse_time(first["started_at"])
    assert "claim_token" not in first


def test_one_task_is_shown_as_it_is_listed(store: Backend) -> None:
    with running(store) as client:
        post(client)
        task_id = store.insert_task("by hand", run_at=NOON)
        shown = client.get(f"/tasks/{task_id}").json()
        assert client.get(f"/tasks/{task_id.upper()}").json() == shown
        assert shown == client.get("/tasks", params={"name": "by hand"}).json()[0]
        assert_problem(client.get(f"/tasks/{uuid4()}"), 404, "TASK_404")
    assert (shown["task_id"], shown["run_at"]) == (task_id, "2031-07-01T12:00:00Z")


# ------------------------------------------------------------------------ pages


@pytest.mark.parametrize("limit", [1, 3, 4, 12, 13])
def test_pages_hold_each_task_once_also_those_of_one_instant(store: Backend, limit: int) -> None:
    store.insert_tasks(9, run_at=NOON)
    store.insert_task(run_at="2031-07-01 11:59:59.999999+00:00")
    store.insert_task(run_at="2031-07-01 12:00:00.000001+00:00")
    store.insert_task(run_at="0001-01-01 00:00:00.000000+00:00", missed_at=NOON)
    with running(store) as client:
        whole = client.get("/tasks").json()
        found = list(pages(client, f"/tasks?limit={limit}"))
    assert len(whole) == 12
    assert whole == sorted(whole, key=lambda task: (parse_time(task["run_at"]), task["task_id"]))
    assert [task for page in found for task in page] == whole
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert 0 < len(found[-1]) <= limit, "no page is empty"


def test_pages_hold_each_task_once_while_others_come_and_go(store: Backend) -> None:
    store.insert_tasks(20, run_at=NOON)
    with running(store) as client:
        staying = set(ids(client.get("/tasks").json()))
        seen: list[str] = []
        for number, page in enumerate(pages(client, "/tasks?limit=3")):
            seen += ids(page)
            # One before, one at the very end and one amid; and the cursor's own row goes.
            for run_at in ("2031-07-01 11:00:00+00:00", "2031-07-01 13:00:00+00:00", NOON):
                store.insert_task(f"new {number}", run_at=run_at)
            assert client.delete(f"/tasks/{seen[-1]}").status_code == 200
            if number < 5:
                gone = staying - set(seen)
                victim = max(gone)
                assert client.delete(f"/tasks/{victim}").status_code == 200
                staying.discard(victim)
            if number > 20:
                break
    assert len(seen) == len(set(seen)), "a task came twice"
    assert staying <= set(seen), "a task was left out"


def test_page_holds_a_thousand_tasks_unless_asked_otherwise(store: Backend) -> None:
    store.insert_tasks(1001, run_at=NOON)
    with running(store) as client:
        with statements(services_of(client).database.engine) as executed:
            first = client.get("/tasks")
        lists = [statement for statement in executed if ", scheduled_tasks.payload" in statement]
        assert len(first.json()) == 1000
        assert len(lists) == 1, "one statement, however many rows"
        following = next_link(first)
        assert following is not None
        second = client.get(following)
        assert len(second.json()) == 1
        assert next_link(second) is None
        assert len(client.get("/tasks?limit=10000").json()) == 1001


def test_next_page_keeps_limit_and_filters(store: Backend) -> None:
    name = 'a&b=c; d/é?#"+%00'
    store.insert_tasks(5, name=name, run_at=NOON)
    store.insert_tasks(5, name="other", run_at=NOON)
    store.sql("UPDATE scheduled_tasks SET status = 'done' WHERE name = 'other'")
    with running(store) as client:
        params: dict[str, str | int] = {"limit": 2, "name": name, "status": "scheduled"}
        first = client.get("/tasks", params=params)
        following = next_link(first)
        assert following is not None
        query = parse_qs(urlsplit(following).query)
        assert query.pop("cursor")
        assert query == {"limit": ["2"], "name": [name], "status": ["scheduled"]}
        found = [*first.json(), *(task for page in pages(client, following) for task in page)]
    assert len(set(ids(found))) == len(found) == 5
    assert {task["name"] for task in found} == {name}


# ---------------------------------------------------------------------- filters


def test_filters_by_status_and_name(store: Backend, subtests: pytest.Subtests) -> None:
    with running(store) as client:
        # A run of nobody would soon be taken for cut off.
        instance_id = services_of(client).heartbeat.instance_id
        for status in ("scheduled", "running", "done", "failed"):
            for name in ("one", "two"):
                store.insert_task(name, status=status, run_at=NOON, instance_id=instance_id)
        for status in ("scheduled", "running", "done", "failed"):
            with subtests.test(status):
                found = client.get("/tasks", params={"status": status}).json()
                assert [task["status"] for task in found] == [status] * 2
                found = client.get("/tasks", params={"status": status, "name": "two"}).json()
                assert [(task["status"], task["name"]) for task in found] == [(status, "two")]
        for name, number in {"one": 4, "two": 4, "On": 0, "o%": 0, "ONE": 0, "'": 0}.items():
            with subtests.test(name):
                found = client.get("/tasks", params={"name": name}).json()
                assert [task["name"] for task in found] == [name] * number


def test_unusable_queries_are_refused_with_a_remedy(
    store: Backend, subtests: pytest.Subtests
) -> None:
    refused = {
        "limit=0": ("limit", "greater than or equal to 1"),
        "limit=10001": ("limit", "less than or equal to 10000"),
        "limit=99999999999999999999999": ("limit", "from 1 to 10000"),
        "limit=-1": ("limit", "from 1 to 10000"),
        "limit=1.0": ("limit", "from 1 to 10000"),
        "limit=1e3": ("limit", "from 1 to 10000"),
        "limit=1_000": ("limit", "from 1 to 10000"),
        "limit=%205": ("limit", "from 1 to 10000"),
        "limit=%D9%A5": ("limit", "from 1 to 10000"),
        "limit=": ("limit", "from 1 to 10000"),
        "limit=all": ("limit", "from 1 to 10000"),
        "limit=true": ("limit", "from 1 to 10000"),
        "limit=1&limit=2": ("limit", "given 2 times. Keep one"),
        "cursor=a&cursor=b&cursor=c": ("cursor", "given 3 times. Keep one"),
        "status=": ("status", "'done', 'failed', 'unknown' or 'cancelled'"),
        "status=Scheduled": ("status", "'done', 'failed', 'unknown' or 'cancelled'"),
        "status=canceled": ("status", "'done', 'failed', 'unknown' or 'cancelled'"),
        "status=done,failed": ("status", "'done', 'failed', 'unknown' or 'cancelled'"),
        "name=": ("name", "Must not be empty"),
        "name=%00": ("name", "Must not contain NUL"),
        "name=" + "x" * 256: ("name", "at most 255 characters"),
        "cursor=": ("cursor", "Must not be empty"),
        "cursor=nonsense": ("cursor", "Take it from the answer before"),
        "cursor=%FF": ("cursor", "Take it from the answer before"),
        "cursor=AAAA": ("cursor", "Take it from the answer before"),
        "cursor=A": ("cursor", "Take it from the answer before"),
        "cursor=%C3%A9": ("cursor", "Take it from the answer before"),
        # 0123456789ab|tomorrow|01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61
        "cursor=MDEyMzQ1Njc4OWFifHRvbW9ycm93fDAxOTgwZDJhLTZjMWUtN2MzYS05ZjU3LTNmMGY0YzFmMmE2MQ": (
            "cursor",
            "Take it from the answer before",
        ),
        # 0123456789ab|2031-07-01T12:00:00Z|nonsense
        "cursor=MDEyMzQ1Njc4OWFifDIwMzEtMDctMDFUMTI6MDA6MDBafG5vbnNlbnNl": (
            "cursor",
            "Take it from the answer before",
        ),
        "nme=probe": ("nme", "There is no such field here"),
        "limit=1&Status=done": ("Status", "There is no such field here"),
    }
    with running(store) as client:
        for query, (field, remedy) in refused.items():
            with subtests.test(query[:40]):
                problem = assert_problem(client.get(f"/tasks?{query}"), 422, "VALIDATION_422")
                [error] = problem["errors"]
                assert (error["location"], error["field"]) == ("query", field)
                assert remedy in error["detail"]
                assert field in problem["detail"]
