"""GET /tasks: filters, sort, and pages that stay right while rows change and look at little."""

import random
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import lists
from job_scheduler.constants import Sort, TaskStatus
from job_scheduler.core.filters import TaskFilter
from job_scheduler.core.listing import Bounds, Place, list_tasks
from job_scheduler.database import Database, build_engine
from tests.conftest import POSTGRESQL
from tests.support.app import (
    Backend,
    assert_problem,
    parse_time,
    post,
    running,
    services_of,
    statements,
    task_body,
)
from tests.test_get_tasks import ids, next_link, pages

# In the form in which SQLite stores times: it rounds others to milliseconds.
NOON = "2031-07-01 12:00:00.000000"
BEFORE = "2031-07-01 11:59:59.999999"
AFTER = "2031-07-01 12:00:00.000001"
ALL = [status.value for status in TaskStatus]
SORTS = {"run_at": "due", "created_at": "created", "finished_at": "finished"}


def names(client: TestClient, *query: tuple[str, str]) -> list[str]:
    """The names of the tasks that a query finds, in their order."""
    response = client.get("/tasks", params=list(query))
    assert response.status_code == 200, response.text
    assert "Link" not in response.headers
    return [task["name"] for task in response.json()]


# -------------------------------------------------------------------------- tags


def test_tags_are_shown_as_they_were_sent(store: Backend) -> None:
    tags = ["b", "a", "x" * 64, " ü ", "100%", 'it\'s "so"', "a,b"]
    with running(store) as client:
        task = post(client, tags=tags)
        assert task["tags"] == tags
        assert client.get(f"/tasks/{task['task_id']}").json() == task
        assert post(client, tags=[])["tags"] == []
        assert post(client, tags=None)["tags"] is None
        twenty = [f"tag {number}" for number in range(20)]
        answer = client.post("/tasks/batch", json={"tasks": [task_body(tags=twenty), task_body()]})
        assert [one["tags"] for one in answer.json()] == [twenty, None]


def test_repeated_request_with_other_tags_is_another_one(store: Backend) -> None:
    with running(store) as client:
        body = task_body(tags=["a", "b"], task_id="01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61")
        for _ in range(2):
            assert client.post("/tasks", json=body).status_code == 201
        for tags in (["b", "a"], ["a"], [], None):
            response = client.post("/tasks", json=body | {"tags": tags})
            assert_problem(response, 409, "TASK_CREATE_409")


@pytest.mark.parametrize(
    "tags",
    [
        *("a", {"a": 1}, 5, ["a", "a"], [""], ["x" * 65], [1], [None], [["a"]]),
        *([" \t"], [f"{number}" for number in range(21)]),
    ],
    ids=str,
)
def test_unusable_tags_are_refused(store: Backend, tags: Any) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(tags=tags))
        assert response.status_code == 422
        assert "tags" in response.json()["detail"]
        response = client.post("/tasks/batch", json={"tasks": [task_body(tags=tags)]})
        assert response.status_code == 422
    assert store.count() == 0


# ----------------------------------------------------------------------- filters


def test_filter_by_several_statuses(store: Backend) -> None:
    with running(store) as client:
        instance_id = services_of(client).heartbeat.instance_id
        for status in ALL:
            finished_at = None if status in ("scheduled", "paused", "running") else NOON
            store.insert_task(
                status,
                status=status,
                run_at=NOON,
                instance_id=instance_id,
                finished_at=finished_at,
            )
        for sort in Sort:
            for first in ALL:
                for second in ALL:
                    query = [("status", first), ("status", second), ("sort", sort.value)]
                    wanted = {first, second}
                    if sort in (Sort.FinishedAt, Sort.LatestFinishedAt):
                        wanted -= {"scheduled", "paused", "running"}
                    assert set(names(client, *query)) == wanted
        assert sorted(names(client, *(("status", status) for status in ALL))) == sorted(ALL)


def test_scheduled_tasks_are_found_whatever_they_wait_for(store: Backend) -> None:
    with running(store) as client:
        store.insert_task("2 missed", run_at=NOON, missed_at=NOON)
        store.insert_task("1 waits", run_at=BEFORE)
        store.insert_task("3 blocked", run_at=AFTER, blocked_by="key:k")
        store.insert_task("5 waits", run_at="2031-07-01 14:00:00.000000+00:00")
        store.insert_task("4 retried", run_at="2031-07-01 13:00:00", retry_at=NOON)
        store.insert_task("6 done", run_at=NOON, status="done")
        found = names(client, ("status", "scheduled"))
        assert [name[0] for name in found] == ["1", "2", "3", "4", "5"]
        assert names(client, ("status", "scheduled"), ("sort", "-run_at")) == found[::-1]
        walked = list(pages(client, "/tasks?status=scheduled&limit=2"))
        assert [task["name"] for page in walked for task in page] == found


def test_filter_by_name_is_exact_and_takes_several(store: Backend) -> None:
    for name in ("one", "One", "one ", "two", "a,b", "o%"):
        store.insert_task(name, run_at=NOON)
    with running(store) as client:
        assert names(client, ("name", "one")) == ["one"]
        assert set(names(client, ("name", "one"), ("name", "two"))) == {"one", "two"}
        assert names(client, ("name", "a,b")) == ["a,b"]
        assert names(client, ("name", "o%")) == ["o%"]
        assert names(client, ("name", "tw")) == []


def test_filter_by_tag_wants_all_of_them(store: Backend) -> None:
    with running(store) as client:
        for name, tags in {
            "both": ["a", "b", "c"],
            "a": ["a"],
            "ab": ["ab"],
            "quoted": ['"a"', "it's", "100%"],
            "none": [],
            "null": None,
        }.items():
            post(client, name=name, tags=tags)
        assert set(names(client, ("tag", "a"))) == {"a", "both"}
        assert names(client, ("tag", "a"), ("tag", "b")) == ["both"]
        assert names(client, ("tag", "a"), ("tag", "a"), ("tag", "b")) == ["both"]
        assert names(client, ("tag", "a"), ("tag", "nothing")) == []
        assert names(client, ("tag", '"a"'), ("tag", "it's"), ("tag", "100%")) == ["quoted"]
        assert names(client, ("tag", "a"), ("name", "a")) == ["a"]
        assert names(client, ("tag", "A")) == []


def test_filter_by_key(store: Backend) -> None:
    with running(store) as client:
        for name, key in {"1": "k", "2": "K", "3": None, "4": "k' --"}.items():
            post(client, name=name, concurrency_key=key)
        for sort in ("run_at", "-created_at"):
            assert names(client, ("key", "k"), ("sort", sort)) == ["1"]
            assert names(client, ("key", "k' --"), ("sort", sort)) == ["4"]
        assert set(names(client, ("key", "k"), ("key", "K"), ("key", "k"))) == {"1", "2"}
        assert names(client, ("key", "k"), ("name", "2")) == []


@pytest.mark.parametrize("column", SORTS)
def test_ranges_begin_with_their_first_moment_and_end_before_their_last(
    store: Backend, column: str
) -> None:
    word = SORTS[column]
    for name, moment in {"1": BEFORE, "2": NOON, "3": AFTER}.items():
        moments = {"run_at": "2031-01-01 00:00:00.000000", "status": "cancelled"}
        store.insert_task(name, **(moments | {column: moment}))
    store.insert_task("far", run_at="2039-01-01 00:00:00.000000")
    if column == "created_at":
        store.sql("UPDATE scheduled_tasks SET created_at = '2040-01-01' WHERE name = 'far'")
    noon = "2031-07-01T12:00:00Z"
    with running(store) as client:
        for sort in (column, "run_at", "created_at"):
            by = ("sort", sort)
            found = set(names(client, (f"{word}_after", noon), by)) - {"far"}
            assert found == {"2", "3"}
            assert set(names(client, (f"{word}_before", noon), by)) == {"1"}
            later_than = (f"{word}_after", "2031-07-01T14:00:00+02:00")
            until = (f"{word}_before", "2031-07-01T12:00:00.000001")
            assert names(client, later_than, until, by) == ["2"]
            assert names(client, later_than, (f"{word}_before", noon), by) == []


def test_text_is_found_in_names_whatever_stands_in_it(store: Backend) -> None:
    for name in (
        "Send Report",
        "100% sure",
        "a_b",
        "aXb",
        "it's",
        'say "so"',
        "up\\down",
        "a/b",
    ):
        store.insert_task(name, run_at=NOON)
    with running(store) as client:
        for q, found in {
            "REPORT": ["Send Report"],
            "d r": ["Send Report"],
            "%": ["100% sure"],
            "0% S": ["100% sure"],
            "_": ["a_b"],
            "'": ["it's"],
            '"SO"': ['say "so"'],
            "\\": ["up\\down"],
            "/": ["a/b"],
            "nothing": [],
        }.items():
            for sort in Sort:
                expected = [] if "finished" in sort.value else found
                assert names(client, ("q", q), ("sort", sort.value)) == expected, q


def test_filters_add_up(store: Backend) -> None:
    with running(store) as client:
        for name in ("alpha", "alpine", "beta"):
            for key in ("k", "l"):
                post(client, name=name, concurrency_key=key, tags=[key, "all"], run_at=NOON)
        query = [("q", "AL"), ("key", "k"), ("tag", "all"), ("status", "scheduled")]
        query += [("due_after", "2031-07-01T12:00:00Z"), ("created_before", "2031-01-01T00:00:00Z")]
        for sort in ("run_at", "-run_at", "created_at", "-created_at"):
            found = names(client, *query, ("sort", sort))
            assert sorted(found) == ["alpha", "alpine"]
            assert names(client, *query, ("name", "alpha"), ("sort", sort)) == ["alpha"]
        assert names(client, *query, ("sort", "finished_at")) == []


def test_unusable_filters_are_refused_with_a_remedy(
    store: Backend, subtests: pytest.Subtests
) -> None:
    many = "&".join(f"name={number}" for number in range(21))
    refused = {
        "q=": ("q", "Must not be empty"),
        "q=%20": ("q", "not be white space alone"),
        "q=a&q=b": ("q", "given 2 times. Keep one"),
        "status=done,failed": ("status", "repeat the parameter"),
        "status=done&status=": ("status", "'failed', 'unknown' or 'cancelled'"),
        "name=a&name=": ("name", "Must not be empty"),
        "tag=%00": ("tag", "Must not contain NUL"),
        f"key={'x' * 256}": ("key", "at most 255 characters"),
        many: ("name", "at most 20 times"),
        "sort=name": ("sort", "'run_at', '-run_at', 'created_at'"),
        "sort=run_at&sort=-run_at": ("sort", "given 2 times"),
        "due_after=tomorrow": ("due_after", "Not an ISO 8601 date"),
        "due_before=1700000000": ("due_before", "Not an ISO 8601 date"),
        "created_after=2031-07-01T12:00:00+02:00": ("created_after", "write %2B"),
        "created_before=": ("created_before", "Not an ISO 8601 date"),
        "finished_after=2031-02-30T00:00:00Z": ("finished_after", "no such date"),
        "tags=a": ("tags", "There is no such field here"),
    }
    with running(store) as client:
        for query, (field, remedy) in refused.items():
            with subtests.test(query[:40]):
                problem = assert_problem(client.get(f"/tasks?{query}"), 422, "VALIDATION_422")
                [error] = problem["errors"]
                assert (error["location"], error["field"]) == ("query", field)
                assert remedy in error["detail"]


# -------------------------------------------------------------------------- sort


@pytest.mark.parametrize("column", SORTS)
def test_sort_goes_by_its_column_and_then_the_id(store: Backend, column: str) -> None:
    moments = [NOON, BEFORE, AFTER, NOON, NOON]
    for moment in moments:
        store.insert_task(**({"run_at": NOON, "status": "done"} | {column: moment}))
    store.insert_task("unfinished", run_at="2032-01-01 00:00:00.000000")
    store.sql("UPDATE scheduled_tasks SET created_at = '2032-01-01' WHERE name = 'unfinished'")
    with running(store) as client:
        found = client.get("/tasks", params={"sort": column}).json()
        backwards = client.get("/tasks", params={"sort": f"-{column}"}).json()
        walked = [task for page in pages(client, f"/tasks?sort={column}&limit=2") for task in page]
        back = [task for page in pages(client, f"/tasks?sort=-{column}&limit=2") for task in page]
    assert len(found) == 5 + (column != "finished_at")
    assert found == sorted(found, key=lambda task: (parse_time(task[column]), task["task_id"]))
    assert backwards == found[::-1]
    assert (walked, back) == (found, backwards)


def test_task_under_a_key_stands_where_it_was_created(store: Backend) -> None:
    # Its id is no UUIDv7, and tells nothing of the time.
    with running(store) as client:
        for number in range(8):
            key = {"Idempotency-Key": f"key-{number}"} if number % 2 else {}
            body = task_body(name=f"{number}")
            assert client.post("/tasks", json=body, headers=key).status_code == 201
        found = names(client, ("sort", "created_at"))
    assert [int(name) for name in found] == list(range(8)), "the order of their creation"


def test_cursor_belongs_to_its_filters_and_sort(store: Backend) -> None:
    store.insert_tasks(5, run_at=NOON)
    with running(store) as client:
        following = next_link(client.get("/tasks?limit=2&name=probe&sort=-run_at"))
        assert following is not None
        assert client.get(following.replace("limit=2", "limit=3")).status_code == 200
        for other in (
            following.replace("sort=-run_at", "sort=run_at"),
            following.replace("&sort=-run_at", "").replace("?sort=-run_at&", "?"),
            following.replace("name=probe", "name=other"),
            f"{following}&status=done",
        ):
            assert other != following
            problem = assert_problem(client.get(other), 422, "VALIDATION_422")
            assert problem["errors"][0]["field"] == "cursor"
            assert "other filters, or another sort" in problem["detail"]


# ------------------------------------------------------------------------- pages


@pytest.fixture
def database(store: Backend) -> Iterator[Database]:
    """A connection of the test's own."""
    with store.database() as database:
        yield database


MOMENTS = [datetime(2031, 7, 1, 12, tzinfo=UTC) + timedelta(hours=hour) for hour in range(6)]
FILTERS: Sequence[TaskFilter] = (
    TaskFilter(),
    TaskFilter(status=[TaskStatus.Scheduled]),
    TaskFilter(status=[TaskStatus.Failed, TaskStatus.Cancelled, TaskStatus.Scheduled]),
    TaskFilter(status=[TaskStatus.Running, TaskStatus.Unknown], name=["a"]),
    TaskFilter(status=[TaskStatus.Done]),
    TaskFilter(status=[TaskStatus.Failed], q="A"),
    TaskFilter(status=[TaskStatus.Running]),
    TaskFilter(name=["a", "b"]),
    TaskFilter(key=["k", "l"]),
    TaskFilter(key=["k"], tag=["t"]),
    TaskFilter(tag=["t"]),
    TaskFilter(tag=["t", "u"], status=[TaskStatus.Scheduled, TaskStatus.Done]),
    TaskFilter(q="a"),
    TaskFilter(due_after=MOMENTS[2], due_before=MOMENTS[4]),
    TaskFilter(created_after=MOMENTS[1], status=[TaskStatus.Scheduled]),
    TaskFilter(finished_before=MOMENTS[4], created_after=MOMENTS[1]),
)


def insert(store: Backend, chance: random.Random, number: int) -> None:
    """Insert tasks of all kinds, by plain SQL."""
    with store.database() as database, database.writing() as connection:
        for _ in range(number):
            status = chance.choice(ALL)
            at = {
                name: chance.choice(MOMENTS)
                for name in ("run_at", "created_at", "finished_at", "retry_at", "missed_at")
            }
            ended = status not in ("scheduled", "paused", "running")
            waits = status == "scheduled"
            tags = chance.choice(['["t"]', '["t", "u"]', "[]", None])
            row = {
                "name": chance.choice("abA"),
                "status": status,
                **at,
                "finished_at": at["finished_at"] if ended else None,
                "retry_at": at["retry_at"] if waits and chance.random() < 0.3 else None,
                "missed_at": at["missed_at"] if waits and chance.random() < 0.2 else None,
                "blocked_by": "key:k" if waits and chance.random() < 0.2 else None,
                "concurrency_key": chance.choice(["k", "l", None]),
                "tags": tags,
                "claim_token": "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61",
                "started_at": at["run_at"],
            }
            written = {
                name: value.strftime("%Y-%m-%d %H:%M:%S.%f")
                + ("" if store.dialect == "sqlite" else "+00:00")
                if isinstance(value, datetime)
                else value
                for name, value in row.items()
            }
            columns, values = ", ".join(written), ", ".join(f"%({name})s" for name in written)
            if store.dialect == "sqlite":
                values = re.sub(r"%\((\w+)\)s", r":\1", values)
            connection.exec_driver_sql(
                f"INSERT INTO scheduled_tasks ({columns}) VALUES ({values})",  # noqa: S608 (ours)
                written,
            )


def meets(row: dict[str, Any], wanted: TaskFilter, column: str) -> bool:
    """Whether a task meets a filter: the same in Python."""
    if row[column] is None:
        return False
    for name, word in SORTS.items():
        after = getattr(wanted, f"{word}_after")
        before = getattr(wanted, f"{word}_before")
        if after is not None and not (row[name] is not None and row[name] >= after):
            return False
        if before is not None and not (row[name] is not None and row[name] < before):
            return False
    return (
        (not wanted.status or row["status"] in wanted.status)
        and (not wanted.name or row["name"] in wanted.name)
        and (not wanted.key or row["concurrency_key"] in wanted.key)
        and set(wanted.tag) <= set(row["tags"] or [])
        and (wanted.q is None or wanted.q.lower() in row["name"].lower())
    )


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    wanted=st.sampled_from(FILTERS),
    sort=st.sampled_from(list(Sort)),
    limit=st.integers(1, 7),
    bounds=st.builds(
        Bounds,
        walked=st.integers(1, 20),
        fetched=st.integers(1, 20),
        sorted=st.sampled_from([0, 1, 1000]),
    ),
    seed=st.integers(0, 1000),
    moves=st.booleans(),
)
def test_pages_hold_all_that_stays_and_nothing_twice(
    store: Backend,
    database: Database,
    wanted: TaskFilter,
    sort: Sort,
    limit: int,
    bounds: Bounds,
    seed: int,
    moves: bool,
) -> None:
    store.sql("DELETE FROM scheduled_tasks")
    chance = random.Random(seed)  # noqa: S311 (no secret)
    insert(store, chance, 30)
    column = sort.removeprefix("-")
    with database.reading() as connection:
        everything = list_tasks(connection, TaskFilter(), Sort.RunAt, 1000).rows
    expected = sorted(
        (row for row in everything if meets(row, wanted, column)),
        key=lambda row: (row[column], row["task_id"]),
        reverse=sort.startswith("-"),
    )
    seen: list[dict[str, Any]] = []
    gone: set[str] = set()
    after: Place | None = None
    with statements(database.engine) as executed:
        for number in range(1000):
            executed.clear()
            with database.reading() as connection:
                page = list_tasks(connection, wanted, sort, limit, after, bounds)
            assert len([one for one in executed if "scheduled_tasks" in one]) <= 2
            assert len(page.rows) <= limit
            seen += page.rows
            if page.following is None:
                break
            assert page.following != after
            after = page.following
            if moves and number < 5:
                insert(store, chance, 2)
                victim = chance.choice(everything)["task_id"]
                gone.add(victim)
                store.sql("DELETE FROM scheduled_tasks WHERE task_id = :id", id=victim)
    found = ids(seen)
    assert len(found) == len(set(found)), "a task came twice"
    if moves:
        assert {row["task_id"] for row in expected} - gone <= set(found), "a task was left out"
        assert all(meets(row, wanted, column) for row in seen)
    else:
        assert found == ids(expected)
    keys = [(row[column], row["task_id"]) for row in seen]
    assert keys == sorted(keys, reverse=sort.startswith("-"))


def test_page_may_be_empty_and_lead_on(store: Backend, database: Database) -> None:
    store.insert_tasks(25, run_at=BEFORE)
    wanted = store.insert_task("rare", run_at=NOON)
    bounds = Bounds(walked=10, fetched=10)
    rare = TaskFilter(name=["rare"])
    found: list[list[str]] = []
    after: Place | None = None
    with database.reading() as connection:
        for _ in range(3):
            page = list_tasks(connection, rare, Sort.RunAt, 5, after, bounds)
            found.append(ids(page.rows))
            after = page.following
    assert found == [[], [], [wanted]]
    assert after is None


# -------------------------------------------------------------------------- plans


@pytest.mark.parametrize("kind", lists.kinds(datetime(2031, 7, 1, tzinfo=UTC)), ids=str)
def test_no_list_scans_the_table(store: Backend, database: Database, kind: lists.Kind) -> None:
    with database.reading() as connection:
        if store.dialect == "postgresql":
            # Of an almost empty table all is read at once: whether there is another way is asked.
            connection.exec_driver_sql("SET enable_seqscan = off")
        with statements(database.engine) as executed:
            made: list[Any] = []
            with lists.collected(connection, made):
                wanted = TaskFilter(**kind.wanted)
                list_tasks(connection, wanted, kind.sort, 10, kind.place(MOMENTS[0]))
        assert 1 <= len([one for one in executed if one != "BEGIN"]) <= 2
        for statement, parameters in made:
            explain = "EXPLAIN" if store.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            text = "\n".join(str(row) for row in plan)
            assert "Seq Scan on scheduled_tasks" not in text, text
            assert not re.search(r"SCAN scheduled_tasks(?! USING)", text), text
            if kind.begins is not None:
                # It seeks its place, rather than read the index from its beginning.
                assert "SCAN scheduled_tasks" not in text, text
        if store.dialect == "postgresql":
            connection.exec_driver_sql("RESET enable_seqscan")


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
@pytest.mark.slow
def test_benchmark_of_lists_makes_its_table(store: Backend) -> None:
    found = lists.measure(build_engine(store.settings().database).url.render_as_string(False), 3000)
    lines = found.splitlines()
    assert len(lines) == 2 + len(lists.kinds(datetime(2031, 7, 1, tzinfo=UTC)))
    assert "| status=running | " in found
