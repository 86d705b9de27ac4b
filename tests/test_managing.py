"""What a person does to a task that is not running: change it, pause it, have it run now."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import (
    Backend,
    assert_problem,
    finished,
    later,
    parse_time,
    post,
    running,
    shown,
)
from tests.support.services import wait_until

MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"
FUTURE = "2031-07-01T12:00:00Z"


def changed(client: Any, task_id: str, change: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Change a task."""
    response = client.patch(f"/tasks/{task_id}", json=change, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


# ------------------------------------------------------------------- pause and resume


def test_paused_task_does_not_start_until_it_is_resumed(backend: Backend) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=FUTURE)["task_id"]
        for _ in range(2):
            assert client.post(f"/tasks/{task_id}/pause").json()["status"] == "paused"
        client.patch(f"/tasks/{task_id}", json={"run_at": later(-1).replace(" ", "T")})
        other = post(client, run_at=later(0))["task_id"]
        finished(client, other)
        assert shown(client, task_id)["status"] == "paused"
        assert client.post(f"/tasks/{task_id}/resume").json()["status"] == "scheduled"
        assert finished(client, task_id)["status"] == "done"


def test_resuming_what_is_scheduled_changes_nothing(store: Backend) -> None:
    with running(store) as client:
        task = post(client, run_at=FUTURE)
        assert client.post(f"/tasks/{task['task_id']}/resume").json() == task


def test_resumed_task_goes_on_with_the_next_of_its_times(store: Backend) -> None:
    with running(store) as client:
        task_id = store.insert_task(
            run_at=later(-5400), status="paused", recurrence='{"interval_seconds": 3600}'
        )
        over = store.insert_task(
            run_at=later(-5400),
            status="paused",
            recurrence='{"interval_seconds": 3600, "end_at": "2020-01-01T00:00:00+00:00"}',
        )
        odd = store.insert_task(run_at=later(-5400), status="paused", recurrence='{"odd": 1}')
        ahead = store.insert_task(
            run_at=later(5400), status="paused", recurrence='{"interval_seconds": 3600}'
        )
        before = shown(client, task_id)
        task = client.post(f"/tasks/{task_id}/resume").json()
        moved = parse_time(task["run_at"]) - parse_time(before["run_at"])
        assert moved.total_seconds() == 7200
        assert (
            client.post(f"/tasks/{ahead}/resume").json()["run_at"] == shown(client, ahead)["run_at"]
        )
        assert client.post(f"/tasks/{over}/resume").json()["missed_at"] is not None
        client.post(f"/tasks/{odd}/resume")
        assert finished(client, odd)["status"] == "done"


def test_resumed_task_is_not_missed_any_more(store: Backend) -> None:
    with running(store) as client:
        task_id = store.insert_task(run_at=later(-60), status="paused", missed_at=later(-30))
        client.post(f"/tasks/{task_id}/resume")
        assert finished(client, task_id)["status"] == "done"


@pytest.mark.parametrize("status", ["scheduled", "paused"])
def test_paused_task_can_be_cancelled_or_removed(store: Backend, status: str) -> None:
    with running(store) as client:
        one, other = (store.insert_task(status=status, run_at=later(3600)) for _ in range(2))
        assert client.post(f"/tasks/{one}/cancel").json()["status"] == "cancelled"
        assert client.delete(f"/tasks/{other}").status_code == 200
        assert client.get(f"/tasks/{other}").status_code == 404


@pytest.mark.parametrize("status", ["done", "failed", "unknown", "cancelled", "running"])
@pytest.mark.parametrize(
    ("action", "code"),
    [("pause", "TASK_PAUSE_409"), ("resume", "TASK_RESUME_409"), ("run", "TASK_RUN_409")],
)
def test_it_is_too_late_when_a_task_has_begun(
    store: Backend, status: str, action: str, code: str
) -> None:
    with running(store) as client:
        instance_id = store.sql("SELECT instance_id FROM instances")[0]["instance_id"]
        task_id = store.insert_task(status=status, instance_id=instance_id)
        problem = assert_problem(client.post(f"/tasks/{task_id}/{action}"), 409, code)
        assert f"is {status}" in problem["detail"]
        can_be_retried = action == "run" and status in ("failed", "unknown")
        assert (f"POST /tasks/{task_id}/retry" in problem["detail"]) == can_be_retried
        assert "{" not in problem["detail"]
        assert_problem(client.patch(f"/tasks/{task_id}", json={}), 409, "TASK_CHANGE_409")
        assert_problem(client.post(f"/tasks/{MISSING}/{action}"), 404, "TASK_404")


# ----------------------------------------------------------------------------- run now


@pytest.mark.parametrize("status", ["scheduled", "paused"])
def test_task_is_run_now_and_keeps_its_time(backend: Backend, status: str) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=FUTURE)["task_id"]
        if status == "paused":
            client.post(f"/tasks/{task_id}/pause")
        answer = client.post(f"/tasks/{task_id}/run").json()
        assert answer["status"] == "scheduled"
        ended = finished(client, task_id)
    assert (ended["status"], ended["run_at"]) == ("done", FUTURE)


def test_task_that_was_missed_or_waits_for_a_repetition_is_run_now(store: Backend) -> None:
    with running(store) as client:
        missed = store.insert_task(run_at=later(-60), missed_at=later(-30))
        waiting = store.insert_task(
            run_at=later(-60), retry_at=later(3600), attempt=1, max_attempts=3
        )
        for task_id in (missed, waiting):
            client.post(f"/tasks/{task_id}/run")
            assert finished(client, task_id)["status"] == "done"


def test_extra_run_of_a_recurring_task_is_a_task_of_its_own(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe(hours: int) -> int:
        return hours

    with running(store, registry) as client:
        body = {"name": "probe", "cron": "@yearly", "payload": {"hours": 5}, "priority": 1}
        task = client.post("/tasks", json=body).json()
        extra = client.post(f"/tasks/{task['task_id']}/run").json()
        ended = finished(client, extra["task_id"])
        assert extra["task_id"] != task["task_id"]
        assert (ended["result"], ended["caused_by"]) == (5, task["task_id"])
        assert (ended["priority"], ended["recurrence"]) == (1, None)
        assert shown(client, task["task_id"]) == task


# ------------------------------------------------------------------------------ change


def test_change_replaces_what_is_given_and_keeps_the_rest(store: Backend) -> None:
    with running(store) as client:
        body = {
            "run_at": FUTURE,
            "payload": {"a": 1},
            "priority": 2,
            "timeout": 30,
            "retry_delay": [1, 2],
            "on_done": {"url": "https://example.com/"},
        }
        task = post(client, **body)
        after = changed(client, task["task_id"], {"payload": {"b": [2]}, "timeout": None})
        kept = {"updated_at", "payload", "timeout"}
        assert {k: v for k, v in after.items() if k not in kept} == {
            k: v for k, v in task.items() if k not in kept
        }
        assert (after["payload"], after["timeout"]) == ({"b": [2]}, None)
        assert parse_time(after["updated_at"]) >= parse_time(task["updated_at"])
        assert shown(client, task["task_id"]) == after


def test_task_moves_to_another_time(backend: Backend) -> None:
    with running(backend) as client:
        task_id = post(client, run_at=FUTURE)["task_id"]
        changed(client, task_id, {"run_at": later(0.5).replace(" ", "T")})
        assert finished(client, task_id)["status"] == "done"
        soon = post(client, run_at=later(1))["task_id"]
        changed(client, soon, {"run_at": FUTURE})
        finished(client, post(client, run_at=later(1.2))["task_id"])
        assert shown(client, soon)["status"] == "scheduled"


def test_another_time_begins_anew_and_the_same_does_not(store: Backend) -> None:
    with running(store) as client:
        one = store.insert_task(
            run_at="2031-07-01 12:00:00.000000+00:00",
            retry_at=later(3600),
            attempt=2,
            max_attempts=5,
        )
        same = changed(client, one, {"priority": 1, "run_at": FUTURE})
        assert (same["attempt"], same["retry_at"] is None) == (2, False)
        moved = changed(client, one, {"run_at": "2031-07-01T13:00:00Z"})
        assert (moved["attempt"], moved["retry_at"]) == (0, None)


def test_task_becomes_recurring_and_again_one_that_runs_once(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=FUTURE)["task_id"]
        weekly = {"cron": "0 9 * * MON", "start_at": FUTURE, "jitter_seconds": 60}
        task = changed(client, task_id, {"run_at": None} | weekly)
        assert (task["run_at"], task["run_count"]) == ("2031-07-07T09:00:00Z", 0)
        assert parse_time(task["retry_at"]) >= parse_time(task["run_at"])
        priority = changed(client, task_id, {"priority": 3})
        assert priority["retry_at"] == task["retry_at"]
        daily = changed(client, task_id, {"cron": "@daily"})
        assert (daily["run_at"], daily["recurrence"]["start_at"]) == (
            "2031-07-02T00:00:00Z",
            "2031-07-01T12:00:00+00:00",
        )
        counted = changed(client, task_id, {"interval_seconds": 3600})
        assert "cron" not in counted["recurrence"]
        back = changed(client, task_id, {"run_at": FUTURE})
        assert (back["run_at"], back["recurrence"], back["run_count"]) == (FUTURE, None, None)


def test_change_of_a_recurrence_that_leaves_its_times_alone_keeps_time_and_attempts(
    store: Backend,
) -> None:
    with running(store) as client:
        task_id = store.insert_task(
            run_at="2031-07-01 12:00:00.000000+00:00",
            retry_at=later(3600),
            attempt=1,
            max_attempts=3,
            recurrence='{"interval_seconds": 604800}',
            run_count=4,
        )
        before = shown(client, task_id)
        kept = ("run_at", "retry_at", "attempt", "run_count")
        for change in (
            {"overlap": "queue"},
            {"jitter_seconds": 1},
            {"end_at": "2031-07-02T00:00Z"},
        ):
            after = changed(client, task_id, change)
            assert [after[name] for name in kept] == [before[name] for name in kept]
        response = client.patch(f"/tasks/{task_id}", json={"max_runs": 4})
        problem = assert_problem(response, 422, "VALIDATION_422")
        assert problem["errors"][0]["field"] == "max_runs"
        store.sql("UPDATE scheduled_tasks SET run_count = 99")
        assert changed(client, task_id, {"max_runs": 100})["run_count"] == 99
        store.sql("UPDATE scheduled_tasks SET run_count = 200")
        assert client.get(f"/tasks/{task_id}/next").json() == []
        moved = changed(client, task_id, {"max_runs": 300, "end_at": "2031-06-30T00:00Z"})
        assert moved["run_at"] < "2031-06-30"


def test_version_is_the_same_however_it_was_read(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=FUTURE, timeout=30, retry_max_delay=60)["task_id"]
        response = client.patch(f"/tasks/{task_id}", json={"timeout": 40})
        assert client.get(f"/tasks/{task_id}").headers["ETag"] == response.headers["ETag"]
        odd = store.insert_task(payload='{"n": 1e999}', run_at=later(3600))
        assert client.get(f"/tasks/{odd}").status_code == 200


def test_local_times_of_a_change_are_of_the_zone_that_the_task_has(store: Backend) -> None:
    with running(store) as client:
        weekly = {"cron": "0 9 * * MON", "timezone": "America/New_York"}
        once = {"run_at": "2031-07-01T10:00:00", "start_before": "2031-07-01T11:00:00"}

        def moved(**change: Any) -> tuple[str, str]:
            task_id = post(client, run_at=None, **weekly)["task_id"]
            after = changed(client, task_id, once | change)
            assert after["recurrence"] is None
            return after["run_at"], after["start_before"]

        assert moved() == ("2031-07-01T14:00:00Z", "2031-07-01T15:00:00Z")
        assert moved(timezone="Asia/Tokyo") == ("2031-07-01T01:00:00Z", "2031-07-01T02:00:00Z")
        by_hand = store.insert_task(recurrence='{"interval_seconds": 60}')
        assert changed(client, by_hand, once)["run_at"] == "2031-07-01T10:00:00Z"
        assert moved(timezone=None) == ("2031-07-01T10:00:00Z", "2031-07-01T11:00:00Z")


def test_zone_alone_does_not_change_what_runs_once(store: Backend) -> None:
    with running(store) as client:
        task = post(client, run_at=FUTURE, name="once")
        path = f"/tasks/{task['task_id']}"
        zone = {"timezone": "Europe/Berlin"}
        for body in (zone, zone | {"priority": 1}, zone | {"start_before": None}):
            problem = assert_problem(client.patch(path, json=body), 422, "VALIDATION_422")
            [error] = problem["errors"]
            assert error["field"] == "timezone"
            assert "run_at" in error["detail"]
            many = client.patch("/tasks?name=once", json=body)
            errors = assert_problem(many, 422, "VALIDATION_422")["errors"]
            assert [each["field"] for each in errors] == [f"tasks.{task['task_id']}.timezone"]
        assert shown(client, task["task_id"]) == task
        changed(client, task["task_id"], {"timezone": None})
        limited = changed(client, task["task_id"], zone | {"start_before": "2031-07-01T15:00:00"})
        assert limited["start_before"] == "2031-07-01T13:00:00Z"
        moved = changed(client, task["task_id"], zone | {"run_at": "2031-07-01T13:00:00"})
        assert moved["run_at"] == "2031-07-01T11:00:00Z"
        daily = changed(client, task["task_id"], zone | {"cron": "@daily", "start_before": None})
        assert daily["recurrence"]["timezone"] == "Europe/Berlin"
        tokyo = changed(client, task["task_id"], {"timezone": "Asia/Tokyo"})
        assert tokyo["run_at"].endswith("T15:00:00Z")


def test_null_takes_away_what_has_a_default_too(store: Backend) -> None:
    with running(store) as client:
        hook = {"url": "https://example.com/", "method": "PUT", "follow_redirects": True}
        task = post(client, run_at=FUTURE, priority=2, on_done=hook)
        plain = {"url": "https://example.com/", "method": None, "follow_redirects": None}
        after = changed(client, task["task_id"], {"priority": None, "on_done": plain})
        assert (after["priority"], after["on_done"]) == (0, {"url": "https://example.com/"})
        changed(client, task["task_id"], {"priority": 1})
        assert client.patch("/tasks?name=probe", json={"priority": None}).json()["tasks"] == 1
        assert shown(client, task["task_id"])["priority"] == 0


@pytest.mark.parametrize("how", ["run", "change"])
def test_task_that_the_timer_holds_for_later_is_run_at_once(store: Backend, how: str) -> None:
    with running(store) as client:
        task = post(client, run_at=later(4))
        wait_until(lambda: client.get("/health").json()["scheduler"]["held"] == 1)
        if how == "run":
            client.post(f"/tasks/{task['task_id']}/run")
        else:
            changed(client, task["task_id"], {"run_at": later(-1).replace(" ", "T")})
        ended = finished(client, task["task_id"])
    assert parse_time(ended["started_at"]) < parse_time(task["run_at"])


def test_change_that_cannot_be_is_refused_and_changes_nothing(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe(hours: int) -> None:
        """Take an argument."""

    with running(store, registry) as client:
        task = post(client, run_at=FUTURE, payload={"hours": 1})
        for change, code, field in (
            ({"priority": 7}, "VALIDATION_422", "priority"),
            ({"task_id": MISSING}, "VALIDATION_422", "task_id"),
            ({"status": "done"}, "VALIDATION_422", "status"),
            ({"run_at": None}, "VALIDATION_422", "run_at"),
            ({"cron": "@daily", "run_at": FUTURE}, "VALIDATION_422", "run_at"),
            ({"timezone": ""}, "VALIDATION_422", "timezone"),
            ({"payload": {"hours": "x"}}, "PAYLOAD_422", "payload.hours"),
            ({"name": None}, "VALIDATION_422", "name"),
        ):
            response = client.patch(f"/tasks/{task['task_id']}", json=change)
            errors = assert_problem(response, 422, code)["errors"]
            assert [error["field"] for error in errors] == [field]
        for body in (b"[]", b"3", b'"x"', b"null"):
            for path in (f"/tasks/{task['task_id']}", "/tasks?name=probe"):
                response = client.patch(
                    path, content=body, headers={"Content-Type": "application/json"}
                )
                [error] = assert_problem(response, 422, "VALIDATION_422")["errors"]
                assert (error["field"], error["detail"]) == ("", "Must be a JSON object.")
        assert shown(client, task["task_id"]) == task
        missing = client.patch(f"/tasks/{MISSING}", json={})
        assert_problem(missing, 404, "TASK_404")


# ----------------------------------------------------------------------- lost updates


def test_change_is_guarded_by_the_version_that_was_read(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=FUTURE)["task_id"]
        path = f"/tasks/{task_id}"
        read = client.get(path).headers["ETag"]
        first = client.patch(path, json={"priority": 1}, headers={"If-Match": read})
        assert first.status_code == 200
        late = client.patch(path, json={"priority": 2}, headers={"If-Match": read})
        assert_problem(late, 412, "TASK_412")
        assert shown(client, task_id)["priority"] == 1
        now = first.headers["ETag"]
        assert client.get(path).headers["ETag"] == now
        for given in ('"x", {}', ',"a,b" ,, {},W/"x"', "*", " * "):
            headers = {"If-Match": given.format(now)}
            assert client.patch(path, json={}, headers=headers).status_code == 200
            now = client.get(path).headers["ETag"]
        lines = [("If-Match", '"x"'), ("If-Match", now)]
        assert client.patch(path, json={}, headers=lines).status_code == 200
        for other in (b'"x"', b'""', '"x", "ä"'.encode("latin-1"), f'"x{now[1:]}'.encode()):
            answer = client.patch(path, json={}, headers={b"If-Match": other})
            assert "has changed" in assert_problem(answer, 412, "TASK_412")["detail"]


def test_weak_version_never_matches_and_it_is_said_why(store: Backend) -> None:
    with running(store) as client:
        path = f"/tasks/{post(client, run_at=FUTURE)['task_id']}"
        now = client.get(path).headers["ETag"]
        for given in (f"W/{now}", f'"x", W/{now}', 'W/""'):
            answer = client.patch(path, json={"priority": 1}, headers={"If-Match": given})
            detail = assert_problem(answer, 412, "TASK_412")["detail"]
            assert "weak" in detail
            assert "without the W/" in detail
        assert client.get(path).headers["ETag"] == now


@pytest.mark.parametrize(
    "given", ["", ",", "x", '"x', 'x"', 'w/"x"', '"a" "b"', '*, "a"', '"a b"', 'W/ "x"', "**"]
)
def test_what_is_no_version_is_refused(store: Backend, given: str) -> None:
    with running(store) as client:
        task = post(client, run_at=FUTURE)
        path = f"/tasks/{task['task_id']}"
        answer = client.patch(path, json={"priority": 1}, headers={"If-Match": given})
        [error] = assert_problem(answer, 422, "VALIDATION_422")["errors"]
        assert (error["location"], error["field"]) == ("header", "If-Match")
        assert "double quotes" in error["detail"]
        assert shown(client, task["task_id"]) == task


def test_of_many_changes_at_once_none_is_lost(store: Backend) -> None:
    with running(store) as client:
        task_id = post(client, run_at=FUTURE, payload={"n": 0})["task_id"]

        def add_one(_: int) -> None:
            while True:
                response = client.get(f"/tasks/{task_id}")
                change = {"payload": {"n": response.json()["payload"]["n"] + 1}}
                etag = {"If-Match": response.headers["ETag"]}
                answer = client.patch(f"/tasks/{task_id}", json=change, headers=etag)
                if answer.status_code == 200:
                    return
                assert answer.status_code == 412

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add_one, range(12)))
        assert shown(client, task_id)["payload"] == {"n": 12}


def test_task_that_is_just_starting_is_changed_before_or_not_at_all(store: Backend) -> None:
    registry = HandlerRegistry()
    ran = []
    gate = threading.Event()

    @registry.task("probe")
    async def probe(value: int) -> int:
        ran.append(value)
        await asyncio.sleep(0)
        return value

    with running(store, registry) as client:
        for number in range(10):
            task_id = post(client, run_at=later(0.05), payload={"value": -1})["task_id"]
            gate.wait(0.045)
            answer = client.patch(f"/tasks/{task_id}", json={"payload": {"value": number}})
            result = finished(client, task_id)["result"]
            assert answer.status_code in (200, 409)
            assert result == (number if answer.status_code == 200 else -1)
    assert len(ran) == 10


def test_pause_wins_or_comes_too_late(store: Backend) -> None:
    with running(store) as client:
        for _ in range(10):
            task_id = post(client, run_at=later(0.05))["task_id"]
            threading.Event().wait(0.045)
            answer = client.post(f"/tasks/{task_id}/pause")
            if answer.status_code == 200:
                assert shown(client, task_id)["status"] == "paused"
            else:
                assert answer.status_code == 409
                assert finished(client, task_id)["status"] == "done"
