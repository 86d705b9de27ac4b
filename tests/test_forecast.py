"""GET /forecast: how many tasks fall due when, and which names make the peaks."""

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from job_scheduler.core import forecast_api
from job_scheduler.core.due_counts import Bounds, Due, read_due
from job_scheduler.core.forecast import Expansion, Grid, Recurring, summed
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.recurrence import Recurrence
from job_scheduler.questions import Questions
from tests.support.app import (
    Backend,
    assert_problem,
    later,
    parse_time,
    post,
    running,
    services_of,
    statements,
)
from tests.support.services import wait_until
from tests.test_explain import planned

NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)
HOUR = 3_600


def forecast(client: TestClient, **parameters: Any) -> dict[str, Any]:
    """Ask what falls due; check that the answer is true to itself."""
    response = client.get("/forecast", params=parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    begin, until = parse_time(answer["from"]), parse_time(answer["until"])
    assert until - begin == timedelta(hours=parameters.get("hours", 24))
    step = timedelta(seconds=answer["interval_seconds"])
    moments = [parse_time(each["at"]) for each in answer["intervals"]]
    assert moments[0] <= begin < moments[0] + step
    assert moments[-1] < until <= moments[-1] + step
    assert all(following - former == step for former, following in pairwise(moments))
    assert all(moment.timestamp() % answer["interval_seconds"] == 0 for moment in moments)
    assert answer["total"] == sum(each["tasks"] for each in answer["intervals"])
    for each in answer["intervals"]:
        assert sum(name["tasks"] for name in each["names"]) <= each["tasks"]
        assert len(each["names"]) <= 5
    busiest = sorted((each["tasks"] for each in answer["intervals"]), reverse=True)[:5]
    assert [each["tasks"] for each in answer["peaks"]] == [tasks for tasks in busiest if tasks]
    assert all(peak in answer["intervals"] for peak in answer["peaks"])
    assert answer["truncated"] == (answer["complete_until"] != answer["until"])
    return answer


def full(answer: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The intervals that hold anything: their names, with the numbers, by their begin."""
    return {
        each["at"]: {name["name"]: name["tasks"] for name in each["names"]}
        for each in answer["intervals"]
        if each["tasks"]
    }


def in_database_form(moment: datetime) -> str:
    """An instant as both databases take it."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


# ------------------------------------------------------------------- what runs once


def test_tasks_are_counted_by_intervals_and_names(store: Backend) -> None:
    with running(store) as client:
        empty = forecast(client)
        assert (empty["total"], empty["peaks"], empty["overdue"]) == (0, [], 0)
        assert (empty["interval_seconds"], len(empty["intervals"])) in ((900, 96), (900, 97))
        [two, ten] = (parse_time(empty["intervals"][place]["at"]) for place in (2, 10))
        for moment, name in (
            (two, "a"),
            (two + timedelta(minutes=14, seconds=59.999999), "a"),
            (two + timedelta(minutes=15), "c"),
            (two - timedelta(microseconds=1), "c"),
            (ten, "b"),
            (ten, "a"),
            (ten + timedelta(minutes=7), "b"),
        ):
            store.insert_task(name, run_at=in_database_form(moment))
        store.insert_task(
            "late", run_at=in_database_form(parse_time(empty["until"]) + timedelta(hours=1))
        )
        store.insert_task(
            "again", run_at=later(-60), retry_at=in_database_form(ten), attempt=1, max_attempts=2
        )
        answer = forecast(client)
    intervals = answer["intervals"]
    assert [each["tasks"] for each in intervals[:4]] == [0, 1, 2, 1]
    assert intervals[10]["tasks"] == 4
    assert intervals[10]["names"] == [
        {"name": "b", "tasks": 2},
        {"name": "a", "tasks": 1},
        {"name": "again", "tasks": 1},
    ]
    assert [peak["at"] for peak in answer["peaks"]] == [
        intervals[place]["at"] for place in (10, 2, 1, 3)
    ]
    assert answer["total"] == 8
    assert not answer["truncated"]


def test_most_frequent_names_are_told(store: Backend) -> None:
    with running(store) as client:
        moment = parse_time(forecast(client)["intervals"][50]["at"])
        for place, name in enumerate("abcdefg"):
            for _ in range(place + 1):
                store.insert_task(name, run_at=in_database_form(moment))
        [peak] = forecast(client)["peaks"]
    assert peak["tasks"] == 28
    assert [each["name"] for each in peak["names"]] == ["g", "f", "e", "d", "c"]


def test_what_does_not_wait_for_its_time_does_not_count(store: Backend) -> None:
    lock = threading.Event()
    registry = HandlerRegistry()
    registry.task("probe", max_running=1)(lambda: lock.wait(30))
    with running(store, registry) as client:
        for status in ("paused", "done", "failed", "cancelled", "unknown"):
            store.insert_task(status, status=status)
        store.insert_task("missed", missed_at=later(-60), run_at=later(-3600))
        post(client, run_at=later(0))
        wait_until(lambda: store.count("status = 'running'") == 1)
        blocked = post(client, run_at=later(0))["task_id"]
        wait_until(lambda: client.get(f"/tasks/{blocked}").json()["blocked_by"])
        answer = forecast(client)
        lock.set()
    assert (answer["total"], answer["overdue"]) == (0, 1)


@pytest.mark.parametrize(
    ("hours", "intervals", "seconds"),
    [
        (1, None, 60),
        (3, None, 60),
        (4, None, 300),
        (24, None, 900),
        (168, None, 3_600),
        (1, 1, 3_600),
        (1, 1_000, 4),
        (168, 1_000, 605),
        (24, 24, 3_600),
    ],
)
def test_length_of_intervals(
    store: Backend, hours: int, intervals: int | None, seconds: int
) -> None:
    parameters = {"hours": hours} | ({} if intervals is None else {"intervals": intervals})
    with running(store) as client:
        answer = forecast(client, **parameters)
    assert answer["interval_seconds"] == seconds
    assert len(answer["intervals"]) <= (intervals or 200) + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hours", value) for value in ("0", "169", "1.5", "x", "")),
        *(("intervals", value) for value in ("0", "1001", "-1", "x")),
    ],
)
def test_bounds_of_what_may_be_asked(store: Backend, name: str, value: str) -> None:
    with running(store) as client:
        response = client.get("/forecast", params={name: value})
        assert assert_problem(response, 422, "VALIDATION_422")["errors"][0]["field"] == name


# --------------------------------------------------------------------------- recurring


def test_recurring_tasks_are_expanded(store: Backend) -> None:
    with running(store) as client:
        hour = parse_time(forecast(client, hours=2, intervals=2)["intervals"][1]["at"])
        start = hour.isoformat()
        for body in (
            {"name": "minutely", "cron": "* * * * *"},
            {"name": "every 10 s", "interval_seconds": 10, "start_at": start},
            {"name": "twice", "interval_seconds": 60, "start_at": start, "max_runs": 2},
            {"name": "ends", "cron": "* * * * *", "start_at": start, "end_at": start},
        ):
            response = client.post("/tasks", json=body)
            assert response.status_code == 201, response.text
        paused = client.post("/tasks", json={"name": "paused", "cron": "* * * * *"}).json()
        client.post(f"/tasks/{paused['task_id']}/pause")
        post(client, name="minutely", run_at=start)
        answer = forecast(client, hours=3, intervals=3)
    names = full(answer)[start.replace("+00:00", "Z")]
    assert names == {"every 10 s": 360, "minutely": 61, "twice": 2, "ends": 1}
    assert answer["peaks"][0]["names"][0] == {"name": "every 10 s", "tasks": 360}


def test_task_every_second_for_a_week_is_reckoned(store: Backend) -> None:
    with running(store) as client:
        rule = {"interval_seconds": 1, "timezone": "UTC"}
        store.insert_task("often", recurrence=json.dumps(rule), run_at=later(1), run_count=0)
        answer = forecast(client, hours=168)
    assert 604_790 <= answer["total"] <= 604_800
    assert not answer["truncated"]
    assert answer["intervals"][50]["tasks"] == 3_600


def test_following_times_of_what_runs_waits_or_is_overdue(store: Backend) -> None:
    registry = HandlerRegistry()
    registry.task("probe", max_running=1)(lambda: None)
    with running(store, registry) as client:
        instance_id = services_of(client).heartbeat.instance_id
        hourly = {"interval_seconds": HOUR, "timezone": "UTC"}
        store.insert_task(
            "runs",
            status="running",
            instance_id=instance_id,
            run_at=later(-1800),
            recurrence=json.dumps(hourly),
        )
        store.insert_task(status="running", instance_id=instance_id, run_at=later(0), name="probe")
        store.insert_task(
            "blocked",
            run_at=later(-1800),
            recurrence=json.dumps(hourly | {"max_runs": 4}),
            run_count=1,
            blocked_by="handler:probe",
        )
        store.insert_task("nonsense", run_at=later(1800), recurrence='{"cron": "?"}')
        answer = forecast(client, hours=6)
    totals: Counter[str] = Counter()
    for names in full(answer).values():
        totals.update(names)
    assert totals == {"runs": 6, "blocked": 2, "nonsense": 1}
    assert answer["overdue"] == 1


def expanded(
    grid: Grid, *tasks: Recurring, steps: int | None = None
) -> tuple[Expansion, dict[int, dict[str, int]]]:
    """Carry an expansion out, or so many steps of it; return it, and what it has counted."""
    expansion = Expansion(grid, tasks)
    for _ in islice(expansion.steps(), steps):
        pass
    counted = {place: dict(names) for place, names in sorted(expansion.counts.items()) if names}
    return expansion, counted


def recurring(name: str = "probe", **rule: Any) -> Recurring:
    """A recurring task that is due at noon for the first time."""
    task_id = rule.pop("task_id", name)
    members = {
        member: rule.pop(member) for member in ("due", "run_at", "run_count") if member in rule
    }
    usual: dict[str, Any] = {"due": NOON, "run_at": NOON, "run_count": 0}
    return Recurring(task_id, name, document=rule, **(usual | members))


def test_work_that_is_too_much_ends_at_an_instant() -> None:
    grid = Grid.of(NOON, 24, None)
    tasks = [recurring("a", cron="* * * * *"), recurring("b", cron="*/2 * * * *")]
    whole, all_counted = expanded(grid, *tasks)
    assert whole.complete_until == grid.until
    assert sum(names["a"] for names in all_counted.values()) == 1_440
    part, counted = expanded(grid, *tasks, steps=104)
    assert NOON < part.complete_until < NOON + timedelta(hours=2)
    complete = grid.place(part.complete_until)
    assert complete >= 4
    for place in range(complete):
        assert counted[place] == all_counted[place]


def test_tasks_of_one_rule_are_gone_through_together() -> None:
    grid = Grid.of(NOON, 24, None)
    tasks = [recurring(f"name {number % 3}", cron="*/5 * * * *") for number in range(3_000)]
    steps = sum(1 for _ in Expansion(grid, tasks).steps())
    assert steps <= 3_000 + 1 + 288
    several = [recurring(str(number), cron="0 * * * *") for number in range(50)]
    assert sum(1 for _ in Expansion(grid, several).steps()) == 50 + 1 + 23 * 3
    _, counted = expanded(grid, *tasks)
    assert counted[50] == {f"name {number}": 3_000 for number in range(3)}


def test_rule_that_nobody_follows_any_longer_is_left() -> None:
    grid = Grid.of(NOON, 24, None)
    tasks = [recurring(cron="* * * * *", max_runs=3), recurring(cron="* * * * *", max_runs=1)]
    expansion = Expansion(grid, tasks)
    assert sum(1 for _ in expansion.steps()) <= 6
    assert expansion.counts == {0: {"probe": 4}}
    assert expansion.complete_until == grid.until


def test_jitter_spreads_the_starts() -> None:
    grid = Grid.of(NOON, 24, 24)
    tasks = [
        recurring("daily", task_id=str(number), cron="0 14 * * *", jitter_seconds=7_200)
        for number in range(100)
    ] + [recurring("often", interval_seconds=7_200.0, jitter_seconds=3_600.0)]
    _, counted = expanded(grid, *tasks)
    assert counted[2]["daily"] + counted[3]["daily"] == 100
    assert 20 < counted[2]["daily"] < 80
    assert sum(names.get("often", 0) for names in counted.values()) == 12
    out_of_it, _ = expanded(Grid.of(NOON, 2, 1), recurring(cron="59 13 * * *", jitter_seconds=HOUR))
    assert out_of_it.counts[0]["probe"] in (1, 2)


rules = st.one_of(
    st.fixed_dictionaries(
        {"interval_seconds": st.sampled_from([1.0, 7.5, 59.0, 900.0, 3_600.0, 86_400.0, 1e6])}
    ),
    st.fixed_dictionaries(
        {
            "cron": st.sampled_from(["* * * * *", "*/7 * * * *", "0 9 * * *", "30 2 29 2 *"]),
            "timezone": st.sampled_from(["UTC", "Europe/Berlin"]),
        }
    ),
)
around = st.integers(-7_200, 14_400).map(lambda seconds: NOON + timedelta(seconds=seconds / 2))


@settings(max_examples=200, deadline=None)
@given(
    rule=rules,
    run_at=around,
    runs=st.booleans(),
    start_at=st.none() | around,
    end_at=st.none() | around,
    max_runs=st.none() | st.integers(1, 50),
    run_count=st.integers(0, 3),
    hours=st.integers(1, 3),
    intervals=st.none() | st.integers(1, 100),
)
def test_times_are_those_of_the_rule(
    rule: dict[str, Any],
    run_at: datetime,
    runs: bool,
    start_at: datetime | None,
    end_at: datetime | None,
    max_runs: int | None,
    run_count: int,
    hours: int,
    intervals: int | None,
) -> None:
    recurrence = Recurrence(**rule, start_at=start_at, end_at=end_at, max_runs=max_runs)
    grid = Grid.of(NOON, hours, intervals)
    task = recurring(
        due=None if runs else run_at, run_at=run_at, run_count=run_count, **recurrence.as_document()
    )
    expansion, _ = expanded(grid, task)
    wanted: Counter[int] = Counter()
    left = (max_runs or 10**9) - run_count - 1
    if not runs and grid.holds(run_at):
        wanted[grid.place(run_at)] += 1
    for moment in _following(recurrence, run_at, grid.until):
        if moment < NOON:
            continue
        if left <= 0 or (end_at is not None and moment > end_at):
            break
        left -= 1
        wanted[grid.place(moment)] += 1
    found = {place: names["probe"] for place, names in expansion.counts.items() if names["probe"]}
    assert found == wanted
    assert all(0 <= place < grid.number for place in found)


def _following(recurrence: Recurrence, run_at: datetime, until: datetime) -> Iterator[datetime]:
    """The times after one, one by one."""
    rhythm = recurrence.rhythm(run_at)
    moment = rhythm.first_after(run_at)
    while moment is not None and moment < until:
        yield moment
        moment = rhythm.first_after(moment)


def test_names_of_both_kinds_are_summed() -> None:
    grid = Grid.of(NOON, 1, 1)
    expansion, _ = expanded(grid, recurring("a", interval_seconds=600.0))
    once = Expansion(grid, []).counts
    once[0] = Counter(a=1, b=2)
    [interval], peaks = summed(grid, Counter({0: 7}), once, expansion.counts)
    assert (interval.tasks, interval.names) == (13, [("a", 7), ("b", 2)])
    assert peaks == [interval]


# -------------------------------------------------------------------------- the bounds


def look(store: Backend, hours: int = 24, **bounds: int) -> Due:
    """Read what falls due, within bounds."""
    with store.database() as database:
        return asyncio.run(database.read_at_once(read_due, hours, None, Bounds(**bounds)))


def test_only_so_many_tasks_are_looked_at(store: Backend) -> None:
    for number in range(10):
        store.insert_task(run_at=later(HOUR * (number + 1)))
    due = look(store, tasks=4)
    assert HOUR * 4.9 < (due.complete_until - due.grid.begin).total_seconds() < HOUR * 5.1
    assert sum(due.totals[place] for place in range(due.grid.place(due.complete_until))) == 4
    for enough in (10, 11):
        due = look(store, tasks=enough)
        assert due.complete_until == due.grid.until
        assert due.totals.total() == 10


def test_only_so_many_recurring_and_overdue_tasks_are_looked_at(store: Backend) -> None:
    rule = json.dumps({"interval_seconds": 1e6, "timezone": "UTC"})
    for number in range(4):
        store.insert_task(run_at=later(HOUR * (number + 1)), recurrence=rule)
        store.insert_task(run_at=later(-number - 1))
    due = look(store, recurring=2)
    assert len(due.recurring) == 2
    assert HOUR * 1.9 < (due.complete_until - due.grid.begin).total_seconds() < HOUR * 2.1
    assert look(store, recurring=4).complete_until > due.complete_until
    late = look(store, overdue=3)
    assert (late.overdue, late.complete_until) == (3, late.grid.begin)
    enough = look(store, overdue=4)
    assert (enough.overdue, enough.complete_until) == (4, enough.grid.until)
    store.sql("UPDATE scheduled_tasks SET run_at = :run_at", run_at=later(-1))
    early = look(store, recurring=2)
    assert early.complete_until == early.grid.begin


def test_recurring_tasks_count_among_those_that_are_looked_at(store: Backend) -> None:
    rule = json.dumps({"interval_seconds": 1e6, "timezone": "UTC"})
    for number in range(3):
        store.insert_task(run_at=later(HOUR * (number + 1)), recurrence=rule)
    due = look(store, tasks=1)
    assert due.totals.total() == 0
    assert HOUR * 1.9 < (due.complete_until - due.grid.begin).total_seconds() < HOUR * 2.1


def test_only_so_many_names_are_brought(store: Backend) -> None:
    run_at = later(HOUR)
    for name in ("a", "b", "b", "c"):
        store.insert_task(name, run_at=run_at)
    due = look(store, names=2)
    [names] = [each for each in due.counts.values() if each]
    assert names == {"b": 2, "a": 1}
    assert due.totals.total() == 4


def test_tasks_are_looked_for_along_indexes(store: Backend) -> None:
    with store.database() as database:
        with statements(database.engine) as made:
            asyncio.run(database.read_at_once(read_due, 24, None))
        looks = [each for each in made if each != "BEGIN" and "set_config" not in each]
        assert len(looks) == 4
        with planned(database) as plans, database.reading(at_once=True) as connection:
            read_due(connection, 24, None)
    for plan in plans:
        assert not re.search(
            r"(SCAN|Seq Scan on) scheduled_tasks\b(?! USING INDEX ix_scheduled_tasks_[br])", plan
        ), plan


def test_work_is_done_piece_by_piece_beside_the_event_loop() -> None:
    threads: set[str] = set()
    turns = 0

    def steps() -> Iterator[None]:
        for _ in range(1_000):
            threads.add(threading.current_thread().name)
            yield

    async def scenario(most: int) -> int:
        nonlocal turns
        left = steps()
        looking = asyncio.ensure_future(count())
        await forecast_api._carry_out(left, most)
        looking.cancel()
        return sum(1 for _ in left)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    assert asyncio.run(scenario(10_000)) == 0
    assert turns > 5
    main = threading.current_thread().name
    assert main not in threads
    assert asyncio.run(scenario(500)) == 500
    assert asyncio.run(scenario(1_000)) == 0


def test_answer_says_up_to_when_it_is_complete(store: Backend) -> None:
    due = look(store)
    expansion, _ = expanded(due.grid, recurring(cron="* * * * *", run_at=due.grid.begin), steps=4)
    answer = forecast_api._answer(due, expansion)
    assert (answer.truncated, answer.complete_until) == (True, expansion.complete_until)
    whole, _ = expanded(due.grid)
    answer = forecast_api._answer(due, whole)
    assert (answer.truncated, answer.complete_until) == (False, due.grid.until)
    less = replace(due, complete_until=due.grid.begin)
    assert forecast_api._answer(less, whole).complete_until == due.grid.begin


@contextmanager
def held_up(client: TestClient) -> Iterator[tuple[threading.Event, list[str]]]:
    """Let forecasts wait for a gate at the database, and note when one gets there and goes on."""
    gate = threading.Event()
    noted: list[str] = []

    def is_ours(*arguments: Any) -> bool:
        return "scheduled_tasks" in arguments[2] and "row_number" in arguments[2]

    def begin(*arguments: Any) -> None:
        if is_ours(*arguments):
            noted.append("begin")
            gate.wait(20)

    def end(*arguments: Any) -> None:
        if is_ours(*arguments):
            noted.append("end")

    engine = services_of(client).database.engine
    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    try:
        yield gate, noted
    finally:
        gate.set()
        event.remove(engine, "before_cursor_execute", begin)
        event.remove(engine, "after_cursor_execute", end)


def begun(noted: list[str], number: int = 1) -> None:
    """Wait until so many forecasts have got to the database."""
    wait_until(lambda: noted.count("begin") == number)


def asking(client: TestClient, pool: ThreadPoolExecutor, hours: int) -> Future[Any]:
    """Ask for a forecast in a thread."""
    return pool.submit(client.get, "/forecast", params={"hours": hours})


def test_one_forecast_is_made_at_a_time_and_some_wait(store: Backend) -> None:
    with (
        running(store) as client,
        ThreadPoolExecutor(12) as pool,
        held_up(client) as (gate, noted),
    ):
        answers = [asking(client, pool, hours) for hours in range(1, 13)]
        refused = wait_until(lambda: next((one for one in answers if one.done()), None))
        assert refused is not None
        assert_problem(refused.result(), 503, "OVERLOADED_503")
        assert int(refused.result().headers["Retry-After"]) > 0
        gate.set()
        statuses = sorted(answer.result(30).status_code for answer in answers)
        assert statuses == [200] * 11 + [503]
        assert client.get("/forecast").status_code == 200
    assert noted == ["begin", "end"] * 12


def test_those_who_wait_for_the_same_forecast_share_one(store: Backend) -> None:
    with (
        running(store) as client,
        ThreadPoolExecutor(20) as pool,
        held_up(client) as (gate, noted),
    ):
        first = asking(client, pool, 24)
        begun(noted)
        post(client)
        others = [asking(client, pool, 24) for _ in range(15)]
        different = asking(client, pool, 12)
        questions = services_of(client).forecasts
        waiting = questions._waiting
        wait_until(lambda: sum(asked.askers for asked, _ in waiting.values()) == 16)
        gate.set()
        assert first.result(30).status_code == 200
        after, half = (each.result(30).json() for each in (others[0], different))
        assert all(each.result(30).json() == after for each in others)
        assert client.get("/forecast").json() != after
        assert (waiting, questions._number) == ({}, 0)
    # What was posted since the first one began is in those that were asked for after it.
    assert (after["total"], half["total"]) == (1, 1)
    assert noted == ["begin", "end"] * 4


def test_nobody_waits_long_for_a_forecast_to_be_begun(store: Backend) -> None:
    with (
        running(store) as client,
        ThreadPoolExecutor(2) as pool,
        held_up(client) as (gate, noted),
    ):
        services_of(client).forecasts.patience = 0.1
        first = asking(client, pool, 24)
        begun(noted)
        refused = client.get("/forecast", params={"hours": 12})
        assert_problem(refused, 503, "OVERLOADED_503")
        assert int(refused.headers["Retry-After"]) > 0
        gate.set()
        assert first.result(30).status_code == 200
    assert noted == ["begin", "end"]


def test_forecast_is_not_begun_for_callers_that_have_gone(store: Backend) -> None:
    with (
        running(store) as client,
        ThreadPoolExecutor(2) as pool,
        held_up(client) as (gate, noted),
    ):
        first = asking(client, pool, 24)
        begun(noted)
        assert client.portal is not None
        client.portal.call(gone, client, "hours=12")
        assert services_of(client).forecasts._waiting == {}
        gate.set()
        assert first.result(30).status_code == 200
        assert client.get("/forecast", params={"hours": 1}).status_code == 200
    assert noted == ["begin", "end"] * 2


def test_forecast_that_is_under_way_is_dropped_when_all_callers_have_gone(store: Backend) -> None:
    with running(store) as client, held_up(client) as (gate, noted):
        assert client.portal is not None
        client.portal.call(gone, client, "")
        assert noted == ["begin"]
        gate.set()
        assert client.get("/forecast").status_code == 200
        assert services_of(client).forecasts._number == 0


def test_failure_is_told_to_all_who_wait() -> None:
    async def scenario() -> None:
        questions, gate = Questions(1, 20), asyncio.Event()

        async def waits() -> str:
            await gate.wait()
            return "well"

        async def fails() -> str:
            raise ValueError("no")

        async def is_gone() -> bool:
            return False

        first = asyncio.ensure_future(questions.ask("first", waits, is_gone))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(questions.ask("other", fails, is_gone)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [str(each) for each in found] == ["well", "no", "no", "no"]
        assert await questions.ask("other", waits, is_gone) == "well"

    asyncio.run(scenario())


async def gone(client: TestClient, query: str) -> None:
    """Ask for a forecast, and leave at once; return when the service is done with it."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/forecast",
        "raw_path": b"/forecast",
        "query_string": query.encode(),
        "headers": [],
        "state": dict(client.app_state),
    }
    told: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return told.pop() if told else {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    await client.app(scope, receive, send)
