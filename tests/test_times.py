"""When a task runs: the preview, the times that are left, and local times."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, assert_problem, finished, later, parse_time, post, running

MISSING = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"


def preview(client: Any, n: int | None = None, **members: Any) -> dict[str, Any]:
    """Ask when a task would run."""
    parameters = {} if n is None else {"n": n}
    response = client.post("/tasks/preview", params=parameters, json={"name": "probe"} | members)
    assert response.status_code == 200, response.text
    return dict(response.json())


def moment(utc: str, local: str, offset: str) -> dict[str, str]:
    """A time as it is told."""
    return {"utc": utc, "local": local, "offset": offset}


# ------------------------------------------------------------------------ the preview


def test_preview_tells_the_next_times_and_stores_nothing(store: Backend) -> None:
    with running(store) as client:
        found = preview(
            client,
            cron="0 9 * * MON-FRI",
            timezone="Europe/Berlin",
            start_at="2027-03-26T09:00:00",
            n=3,
        )
    assert found["next"] == [
        moment("2027-03-26T08:00:00Z", "2027-03-26T09:00:00", "+01:00"),
        moment("2027-03-29T07:00:00Z", "2027-03-29T09:00:00", "+02:00"),
        moment("2027-03-30T07:00:00Z", "2027-03-30T09:00:00", "+02:00"),
    ]
    assert found["description"] == "At 09:00 on Monday through Friday (Europe/Berlin)."
    assert found["warnings"] == []
    assert store.count() == 0


def test_preview_counts_from_a_start_that_has_passed(store: Backend) -> None:
    with running(store) as client:
        found = preview(client, interval_seconds=86_400, start_at="2000-01-01T00:00:00Z", n=2)
    assert [each["utc"] for each in found["next"]] == [
        "2000-01-01T00:00:00Z",
        "2000-01-02T00:00:00Z",
    ]
    assert found["description"] == "Every 86400 seconds."
    with running(store) as client:
        assert preview(client, interval_seconds=1_000_000.5)["description"] == (
            "Every 1000000.5 seconds."
        )


def test_preview_counts_from_now_else(store: Backend) -> None:
    with running(store) as client:
        found = [parse_time(each["utc"]) for each in preview(client, interval_seconds=60)["next"]]
        hourly = [parse_time(each["utc"]) for each in preview(client, cron="@hourly")["next"]]
    now = datetime.now(UTC)  # noqa: TID251 (tests have a clock too)
    assert len(found) == len(hourly) == 5
    assert abs(found[0] - now - timedelta(seconds=60)) < timedelta(seconds=30)
    assert {after - before for before, after in pairwise(found)} == {timedelta(seconds=60)}
    assert now < hourly[0] + timedelta(minutes=1) <= now + timedelta(hours=1, minutes=1)


def test_preview_of_a_task_that_runs_once(store: Backend) -> None:
    with running(store) as client:
        found = preview(client, run_at="2031-07-01T12:00:00", timezone="Asia/Tokyo")
    assert found["next"] == [moment("2031-07-01T03:00:00Z", "2031-07-01T12:00:00", "+09:00")]
    assert (found["description"], found["warnings"]) == ("Once.", [])


def test_preview_ends_where_the_recurrence_does(store: Backend) -> None:
    with running(store) as client:
        daily = {"cron": "@daily", "start_at": "2031-01-01T00:00:00Z"}
        assert len(preview(client, n=9, max_runs=2, **daily)["next"]) == 2
        assert len(preview(client, n=9, end_at="2031-01-04T00:00:00Z", **daily)["next"]) == 4
        over = preview(client, cron="@daily", end_at="2020-01-01T00:00:00Z")
    assert over["next"] == []
    assert "it never runs" in over["warnings"][0]


def test_preview_warns_of_what_its_author_may_not_expect(store: Backend) -> None:
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe(hours: int) -> None:
        """Take an argument."""

    with running(store, registry) as client:
        found = preview(client, cron="30 2 31 * *", timezone="Europe/Berlin", payload={"h": 1})
    said = " ".join(found["warnings"])
    for words in ("31", "POST /tasks would refuse it", "hours"):
        assert words in said


def test_preview_says_that_times_that_have_passed_are_not_run(store: Backend) -> None:
    with running(store) as client:
        past: dict[str, Any] = {"interval_seconds": 86_400, "start_at": "2000-01-01T12:00:00Z"}
        found = preview(client, n=2, **past)
        [warning] = found["warnings"]
        task = client.post("/tasks", json={"name": "probe"} | past).json()
        assert warning == (
            "start_at lies in the past: its times before now are not run. The first one that is "
            f"comes at {task['run_at']}."
        )
        ended = preview(client, end_at="2001-01-01T00:00:00Z", **past)["warnings"]
        assert [words.partition(":")[0] for words in ended] == [
            "start_at lies in the past",
            "POST /tasks would refuse it",
        ]
        assert "comes at" not in ended[0]
        for start_at in (later(-60), later(3600)):
            assert preview(client, cron="0 0 1 1 *", start_at=start_at)["warnings"] == []


@pytest.mark.parametrize(
    ("members", "gap"),
    [
        ({"interval_seconds": 60.5, "jitter_seconds": 61}, "60.5 seconds"),
        ({"interval_seconds": 60, "jitter_seconds": 60}, None),
        ({"interval_seconds": 60, "jitter_seconds": 61, "max_runs": 1}, None),
        ({"cron": "0 9,10 * * MON", "jitter_seconds": 3601}, "3600 seconds"),
        ({"cron": "0 9,10 * * MON", "jitter_seconds": 3600}, None),
        ({"cron": "@monthly", "jitter_seconds": 2_419_201}, "2419200 seconds"),
        ({"cron": "@monthly", "jitter_seconds": 0}, None),
    ],
)
def test_preview_warns_of_jitter_beyond_the_next_time(
    store: Backend, members: dict[str, Any], gap: str | None
) -> None:
    with running(store) as client:
        found = preview(client, **members)["warnings"]
    assert len(found) == (gap is not None)
    for warning in found:
        assert "jitter_seconds" in warning
        assert f"only {gap} apart" in warning


@pytest.mark.parametrize("n", ["0", "1001", "x", "-1", "1.5"])
def test_number_of_times_has_bounds(store: Backend, n: str) -> None:
    task_id = store.insert_task()
    with running(store) as client:
        once = {"name": "probe", "run_at": "2031-07-01T12:00:00Z"}
        response = client.post("/tasks/preview", params={"n": n}, json=once)
        assert assert_problem(response, 422, "VALIDATION_422")["errors"][0]["field"] == "n"
        response = client.get(f"/tasks/{task_id}/next", params={"n": n})
        assert assert_problem(response, 422, "VALIDATION_422")["errors"][0]["field"] == "n"


def test_line_that_never_fires_is_refused_in_the_preview(store: Backend) -> None:
    with running(store) as client:
        for members in (
            {"cron": "0 0 30 2 *"},
            {"cron": "30 2 * 3 7L", "timezone": "Europe/Berlin", "dst_gap": "skip"},
        ):
            response = client.post("/tasks/preview", json={"name": "probe"} | members)
            problem = assert_problem(response, 422, "VALIDATION_422")
            assert problem["errors"][0]["field"] == "cron"


@pytest.mark.parametrize("wall", ["0001-01-02T00:00:00", "9999-12-30T00:00:00"])
def test_local_time_at_the_ends_of_time_needs_an_offset(store: Backend, wall: str) -> None:
    with running(store) as client:
        body = {"name": "probe", "run_at": wall, "timezone": "Europe/Berlin"}
        problem = assert_problem(client.post("/tasks", json=body), 422, "VALIDATION_422")
    assert problem["errors"][0]["detail"] == "Too far away. Give it an offset."


@pytest.mark.parametrize("year", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_times_at_the_ends_of_time_are_told_in_utc(store: Backend, year: str) -> None:
    zones = ("Pacific/Kiritimati", "Etc/GMT+12")
    with running(store) as client:
        for zone in zones:
            [found] = preview(client, run_at=year, timezone=zone)["next"]
            assert found["utc"] == year


# ------------------------------------------------------------- the times that are left


def test_times_that_are_left(store: Backend) -> None:
    with running(store) as client:
        once = post(client, run_at="2031-07-01T12:00:00Z")["task_id"]
        body = {
            "name": "probe",
            "cron": "0 12 * * *",
            "timezone": "Europe/Paris",
            "start_at": "2031-07-01T00:00:00Z",
            "max_runs": 3,
        }
        daily = client.post("/tasks", json=body).json()["task_id"]
        found = client.get(f"/tasks/{daily}/next").json()
        assert [each["local"] for each in found] == [
            "2031-07-01T12:00:00",
            "2031-07-02T12:00:00",
            "2031-07-03T12:00:00",
        ]
        assert len(client.get(f"/tasks/{daily}/next?n=1").json()) == 1
        assert client.get(f"/tasks/{once}/next").json() == [
            moment("2031-07-01T12:00:00Z", "2031-07-01T12:00:00", "+00:00")
        ]
        client.post(f"/tasks/{daily}/cancel")
        assert client.get(f"/tasks/{daily}/next").json() == []
        ended = finished(client, post(client, run_at=later(0))["task_id"])
        assert client.get(f"/tasks/{ended['task_id']}/next").json() == []
        assert_problem(client.get(f"/tasks/{MISSING}/next"), 404, "TASK_404")


def test_run_that_is_under_way_is_none_of_the_times_that_are_left(store: Backend) -> None:
    gate = threading.Event()
    registry = HandlerRegistry()
    registry.task("probe")(lambda: gate.wait(30))
    with running(store, registry) as client:
        start = later(0).replace(" ", "T")
        body = {"name": "probe", "interval_seconds": 3600, "start_at": start}
        task = client.post("/tasks", json=body).json()
        soon = client.get(f"/tasks/{task['task_id']}/next?n=1").json()
        gate.set()
    ahead = parse_time(soon[0]["utc"]) - parse_time(start.replace("+00:00", "Z"))
    assert ahead == timedelta(hours=1)


# ------------------------------------------------------------------------ local times


def test_local_time_is_one_of_the_zone(store: Backend) -> None:
    with running(store) as client:
        task = post(client, run_at="2031-07-01T12:00:00", timezone="America/New_York")
        given = post(client, run_at="2031-07-01T12:00:00Z", timezone="America/New_York")
    assert task["run_at"] == "2031-07-01T16:00:00Z"
    assert given["run_at"] == "2031-07-01T12:00:00Z"
    assert task["recurrence"] is None


def test_end_of_the_worth_of_a_task_is_a_time_of_the_zone_too(store: Backend) -> None:
    for zone, hour in (("America/New_York", "14"), ("Asia/Tokyo", "01")):
        with running(store) as client:
            task = post(
                client,
                run_at="2031-07-01T10:00:00",
                start_before="2031-07-01T10:30:00",
                timezone=zone,
            )
            assert task["start_before"] == f"2031-07-01T{hour}:30:00Z"
            given = {"run_at": "2031-07-01T00:00:00Z", "start_before": "2031-07-01T10:30:00Z"}
            assert post(client, timezone=zone, **given)["start_before"] == given["start_before"]
            early = {"run_at": "2031-07-01T10:00:00", "start_before": "2031-07-01T09:59:00"}
            response = client.post("/tasks", json={"name": "probe", "timezone": zone} | early)
            problem = assert_problem(response, 422, "VALIDATION_422")
            assert [error["field"] for error in problem["errors"]] == ["start_before"]


@pytest.mark.parametrize("field", ["run_at", "start_before"])
@pytest.mark.parametrize(
    ("wall", "zone", "words"),
    [
        (
            "2027-03-28T02:30:00",
            "Europe/Berlin",
            ["does not exist", "2027-03-28T01:30:00+01:00", "2027-03-28T03:30:00+02:00"],
        ),
        (
            "2027-10-31T02:30:00",
            "Europe/Berlin",
            ["comes twice", "2027-10-31T02:30:00+02:00", "2027-10-31T02:30:00+01:00"],
        ),
        ("2011-12-30T10:00:00", "Pacific/Apia", ["does not exist", "2011-12-2", "2011-12-31"]),
    ],
)
def test_local_time_that_is_none_or_two_is_refused_with_what_to_write(
    store: Backend, wall: str, zone: str, words: list[str], field: str
) -> None:
    with running(store) as client:
        body = {"name": "probe", "run_at": "2001-01-01T00:00:00Z", "timezone": zone, field: wall}
        problem = assert_problem(client.post("/tasks", json=body), 422, "VALIDATION_422")
        [error] = problem["errors"]
        assert error["field"] == field
        for each in words:
            assert each in error["detail"]
        chosen = [word for word in words if word.startswith("20") and len(word) > 12]
        for each in chosen:
            assert post(client, run_at=each)["status"] == "scheduled"
