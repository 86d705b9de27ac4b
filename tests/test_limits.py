"""Limits: how many tasks with a key, or of a handler, run or start at a time; and priorities."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from job_scheduler.core.blocked import startable
from job_scheduler.core.claims import Claim, ClaimRequest
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.lanes import Lane
from job_scheduler.core.limited import claim_within_limits
from job_scheduler.core.limits import Bounds, HandlerLimit, Limited, Usage, admit, room_of
from job_scheduler.core.rates import Rate
from job_scheduler.core.shares import Share
from job_scheduler.core.store import DueTask
from job_scheduler.core.unblocking import Unblocking
from job_scheduler.identifiers import new_token
from tests.support.app import (
    Backend,
    assert_problem,
    bench,
    finished,
    later,
    post,
    running,
    services_of,
    task_body,
)
from tests.support.services import wait_until

NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    """A time."""
    return timedelta(seconds=number)


# ------------------------------------------------------------------------------ rates


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/second", Rate(10, 1.0)),
        ("100/minute", Rate(100, 60.0)),
        ("1/hour", Rate(1, 3600.0)),
        ("5000/day", Rate(5000, 86_400.0)),
    ],
)
def test_rate_is_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["0/second", "10", "10/s", "-1/hour", "1.5/hour", "10/second ", ""]
)
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        Rate.parse(text)


def test_rate_lets_a_seconds_worth_start_at_once_and_spreads_the_rest() -> None:
    rate = Rate(10, 1.0)
    assert rate.room(None, NOON) == 10
    following = rate.after(None, NOON, 10)
    assert rate.room(following, NOON) == 0
    assert rate.room(following, NOON + seconds(0.1)) == 1
    assert rate.room(following, NOON + seconds(0.5)) == 5
    assert rate.room(following, NOON + seconds(60)) == 10  # what was not used is not saved up


def test_slow_rate_lets_one_start_at_a_time() -> None:
    rate = Rate(2, 60.0)
    assert rate.room(None, NOON) == 1
    following = rate.after(None, NOON, 1)
    assert rate.room(following, NOON + seconds(29.9)) == 0
    assert rate.room(following, NOON + seconds(30)) == 1
    assert rate.room(following, NOON + seconds(3000)) == 1


@pytest.mark.parametrize("rate", [Rate(7, 1.0), Rate(100, 60.0)])
def test_rate_is_kept_in_the_long_run(rate: Rate) -> None:
    following, started = None, 0
    for step in range(6_000):
        now = NOON + seconds(step / 10)
        room = rate.room(following, now)
        if room:
            following = rate.after(following, now, room)
            started += room
    burst = max(1, rate.starts / rate.seconds)
    assert started == pytest.approx(600 * rate.starts / rate.seconds + burst, abs=2)


# ------------------------------------------------------------------------- who may start


def limited(task_id: str, place: int = 0, **members: Any) -> Limited:
    """A task that is due."""
    given: dict[str, Any] = {"handler": "probe", "key": None, "max_running": None} | members
    return Limited(task_id, (0, NOON + seconds(place), task_id), Bounds(**given))


def usage(
    running: dict[str, int] | None = None, following: dict[str, datetime] | None = None
) -> Usage:
    """How far limits are taken up."""
    return Usage(NOON, Counter(running or {}), following or {})


def test_key_lets_one_run_unless_a_task_says_otherwise() -> None:
    due = [limited("b", 2, key="k"), limited("a", 1, key="k"), limited("c", key="other")]
    admission = admit(due, {}, usage(), {})
    assert admission.admitted == {"a", "c"}
    assert admission.blocked == {"b": "key:k"}
    more = [limited("a", key="k", max_running=3), limited("b", key="k", max_running=2)]
    assert admit(more, {}, usage({"key:k": 1}), {}).blocked == {"b": "key:k"}


def test_handler_has_its_limit_beside_the_keys() -> None:
    limits = {"probe": HandlerLimit(2, None)}
    due = [limited("a", key="k"), limited("b", key="k"), limited("c"), limited("d")]
    admission = admit(due, limits, usage(), {})
    assert admission.admitted == {"a", "c"}
    assert admission.blocked == {"b": "key:k", "d": "handler:probe"}
    assert admission.following == {}
    other = limited("e", handler="other")
    assert admit([other], limits, usage({"handler:probe": 9}), {}).blocked == {}


def test_rate_blocks_what_is_too_much_and_counts_what_starts() -> None:
    rate = Rate(2, 1.0)
    limits = {"probe": HandlerLimit(None, rate)}
    due = [limited(name, place) for place, name in enumerate("abc")]
    admission = admit(due, limits, usage(), {})
    assert admission.admitted == {"a", "b"}
    assert admission.blocked == {"c": "rate:probe"}
    assert admission.following == {"rate:probe": rate.after(None, NOON, 2)}
    later_on = admit(due, limits, usage(following=admission.following), {})
    assert (later_on.admitted, later_on.following) == (set(), {})


def test_nobody_overtakes_what_waits_already() -> None:
    first = (0, NOON + seconds(5), "first")
    due = [limited("early", 1, key="k", max_running=9), limited("late", 9, key="k", max_running=9)]
    admission = admit(due, {}, usage(), {"key:k": first})
    assert admission.admitted == {"early"}
    assert admission.blocked == {"late": "key:k"}


def test_nobody_overtakes_who_is_blocked_at_the_same_time() -> None:
    due = [limited(str(most), most, key="k", max_running=most) for most in (1, 5, 6)]
    due.append(limited("two", 2, key="k", max_running=2))
    admission = admit(due, {}, usage({"key:k": 1}), {})
    assert admission.admitted == set()  # the first of them waits until nothing else runs
    assert set(admission.blocked) == {"1", "two", "5", "6"}


def test_what_runs_no_handler_is_not_under_the_limits_of_one() -> None:
    limits = {"probe": HandlerLimit(1, Rate(1, 60.0))}
    other = limited("webhook", handler=None, key="k")
    assert other.bounds.names(limits) == ["key:k"]
    assert limited("handler", key="k").bounds.names(limits) == [
        "key:k",
        "handler:probe",
        "rate:probe",
    ]
    busy = usage({"handler:probe": 1, "key:k": 0})
    assert admit([other], limits, busy, {}).admitted == {"webhook"}


def test_room_of_a_limit() -> None:
    limits = {"probe": HandlerLimit(3, Rate(2, 1.0)), "free": HandlerLimit(None, Rate(1, 1.0))}
    taken = usage({"handler:probe": 2, "key:probe": 9}, following={"rate:probe": NOON})
    assert room_of("handler:probe", limits, taken) == 1
    assert room_of("rate:probe", limits, taken) == 1
    assert room_of("key:probe", limits, taken) is None  # each task says so itself
    assert room_of("handler:free", limits, taken) is None
    assert room_of("rate:gone", limits, taken) is None
    assert room_of("rate:probe", {"probe": HandlerLimit(3, None)}, taken) is None


# ------------------------------------------------------------------------------ lanes


def due(name: str, place: float = 0, priority: int = 0) -> DueTask:
    """A due task."""
    return DueTask(NOON + seconds(place), f"{name}-{place}", name, priority=priority)


def drained(lane: Lane) -> Iterator[DueTask]:
    """Take all that has a place."""
    while lane.first() is not None:
        yield lane.take()


def test_lane_starts_the_highest_priority_then_the_longest_due() -> None:
    lane = Lane(3)
    for task in (due("a", 3), due("b", 1), due("c", 2, priority=1), due("d", 9, priority=3)):
        lane.put(task)
    assert [task.name for task in drained(lane)] == ["d", "c", "b"]
    assert len(lane) == 1
    lane.give_back("c")
    assert [task.name for task in drained(lane)] == ["a"]
    assert len(lane) == 0


@pytest.mark.parametrize(("capacity", "share"), [(1, 1), (3, 3), (4, 3), (16, 15), (100, 94)])
def test_lane_keeps_places_that_no_single_name_takes(capacity: int, share: int) -> None:
    lane = Lane(capacity)
    for place in range(200):
        lane.put(due("greedy", place))
    assert len(list(drained(lane))) == share
    for place in range(3):
        lane.put(due("modest", 1_000 + place))
    assert len(list(drained(lane))) == min(capacity - share, 3)
    lane.give_back("greedy")
    taken = list(drained(lane))
    assert [task.name for task in taken] == ["greedy"]
    assert taken[0].due == NOON + seconds(share)


def lane_of_share(share: Share) -> Lane:
    """A lane of an instance that has this share."""
    return Lane(200, lambda: share)


def test_instances_begin_with_shares_of_their_own_and_meet_at_the_end() -> None:
    ids = [f"{number:03}" for number in range(100)]
    started = []
    for share in (Share(), Share(0, 2), Share(1, 2)):
        lane = lane_of_share(share)
        for task_id in reversed(ids):
            lane.put(DueTask(NOON, task_id, "probe"))
        started.append([task.task_id for task in drained(lane)])
    own = [task_id for task_id in ids if Share(0, 2).turn(task_id)[0] == 0]
    others = [task_id for task_id in ids if task_id not in own]
    assert 30 < len(own) < 70
    # What is left of the others' share is taken from its end: there they meet.
    assert started == [ids, own + others[::-1], others + own[::-1]]


def test_share_changes_neither_the_order_of_times_nor_that_of_priorities() -> None:
    lane = lane_of_share(Share(2, 3))
    tasks = [due("probe", place % 10, priority=place % 3) for place in range(30)]
    for task in tasks:
        lane.put(task)
    started = [(-task.priority, task.due) for task in drained(lane)]
    assert started == sorted((-task.priority, task.due) for task in tasks)


def test_lane_forgets_names_that_have_gone() -> None:
    lane = Lane(2)
    for number in range(50):
        lane.put(due(str(number)))
        [task] = drained(lane)
        lane.give_back(task.name)
    assert (lane._queues, lane._firsts, dict(lane._running_of)) == ({}, [], {})


# ------------------------------------------------------------------------- from outside


class Gauge:
    """Counts how many runs are under way, and how many there were at most."""

    def __init__(self) -> None:
        self.most = 0
        self.order: list[Any] = []
        self._now = 0
        self._lock = threading.Lock()

    async def work(self, label: Any = None) -> None:
        """Do something for a moment."""
        with self._lock:
            self.order.append(label)
            self._now += 1
            self.most = max(self.most, self._now)
        await asyncio.sleep(0.1)
        with self._lock:
            self._now -= 1


def all_finished(client: Any, tasks: list[dict[str, Any]]) -> None:
    """Wait until all have ended."""
    for task in tasks:
        assert finished(client, task["task_id"])["status"] == "done"


@pytest.mark.parametrize(("most", "members"), [(1, {}), (3, {"max_running": 3})])
def test_tasks_with_one_key_run_in_turn_over_all_instances(
    backend: Backend, most: int, members: dict[str, Any]
) -> None:
    gauge = Gauge()
    registry = HandlerRegistry()
    registry.task("probe")(gauge.work)
    with running(backend, registry) as one, running(backend, registry, threads=1) as other:
        tasks = [
            post(client, run_at=later(0.3), concurrency_key="customer-1", **members)
            for _ in range(10)
            for client in (one, other)
        ]
        all_finished(one, tasks)
    assert gauge.most == most
    assert len(gauge.order) == 20


def test_handler_runs_as_often_at_a_time_as_it_may(backend: Backend) -> None:
    gauge = Gauge()
    registry = HandlerRegistry()
    registry.task("probe", max_running=2)(gauge.work)
    with running(backend, registry) as one, running(backend, registry, threads=1) as other:
        tasks = [post(client, run_at=later(0.3)) for _ in range(8) for client in (one, other)]
        all_finished(one, tasks)
    assert gauge.most == 2


def test_handler_starts_as_often_as_its_rate_says(backend: Backend) -> None:
    gauge = Gauge()
    registry = HandlerRegistry()
    registry.task("probe", rate_limit="5/second")(gauge.work)
    with running(backend, registry) as client:
        tasks = [post(client, run_at=later(0)) for _ in range(13)]
        all_finished(client, tasks)
        starts = sorted(
            datetime.fromisoformat(client.get(f"/tasks/{task['task_id']}").json()["started_at"])
            for task in tasks
        )
    # Five at once, then one each 0.2 s: never more than ten in a second.
    assert all(starts[place + 10] - starts[place] >= seconds(0.9) for place in range(3))
    assert starts[-1] - starts[0] >= seconds(1.5)


def test_task_that_waits_for_a_limit_says_so_and_holds_nobody_up(store: Backend) -> None:
    blocker = threading.Event()
    registry = HandlerRegistry()

    @registry.task("slow")
    def slow() -> None:
        blocker.wait(30)

    with running(store, registry) as client:
        first = post(client, name="slow", run_at=later(0), concurrency_key="k")
        wait_until(lambda: store.count("status = 'running'") == 1)
        for _ in range(30):
            store.insert_task("slow", run_at=later(-60), concurrency_key="k")
        waiting = post(client, name="slow", run_at=later(0), concurrency_key="k")
        shown = wait_until(
            lambda: (
                (task := client.get(f"/tasks/{waiting['task_id']}").json())["blocked_by"] and task
            )
        )
        assert shown is not None
        assert (shown["status"], shown["blocked_by"]) == ("scheduled", "key:k")
        wait_until(lambda: store.count("blocked_by IS NOT NULL") == 31)
        assert services_of(client).dispatcher.queued == 0
        assert finished(client, post(client, run_at=later(0))["task_id"])["status"] == "done"
        assert client.post(f"/tasks/{waiting['task_id']}/cancel").json()["status"] == "cancelled"
        blocker.set()
        assert finished(client, first["task_id"])["status"] == "done"
        wait_until(lambda: store.count("status = 'done' AND concurrency_key = 'k'") == 31)


def test_blocked_task_survives_a_downtime(store: Backend) -> None:
    """It was not missed because the service was down; so no policy for that meets it."""
    task_id = store.insert_task(run_at=later(-60), concurrency_key="k", blocked_by="key:k")
    with running(store, recover_past_tasks="fail") as client:
        assert finished(client, task_id)["status"] == "done"


def test_limit_that_is_gone_lets_everybody_go(store: Backend) -> None:
    for name in ("handler:probe", "rate:probe"):
        store.insert_task(run_at=later(-60), blocked_by=name)
    with running(store) as client:
        for task in client.get("/tasks").json():
            assert finished(client, task["task_id"])["status"] == "done"


@pytest.mark.parametrize("lane", ["plain", "async"])
def test_higher_priority_starts_first_when_capacity_is_short(store: Backend, lane: str) -> None:
    go_on = threading.Event()
    order: list[int] = []
    registry = HandlerRegistry()

    def note(number: int) -> None:
        order.append(number)

    async def note_async(number: int) -> None:
        order.append(number)

    registry.task("hold")(lambda: go_on.wait(30))
    registry.task("probe")(note if lane == "plain" else note_async)
    with running(store, registry, max_running=1) as client:
        post(client, name="hold", run_at=later(0))
        wait_until(lambda: store.count("status = 'running'") == 1)
        tasks = [
            post(client, run_at=later(-10 + place), priority=priority, payload={"number": place})
            for place, priority in enumerate([0, 1, 3, 0, 2])
        ]
        go_on.set()
        all_finished(client, tasks)
    assert order == [2, 4, 1, 0, 3]


def test_hanging_handler_leaves_a_place_to_the_others(store: Backend) -> None:
    go_on = threading.Event()
    registry = HandlerRegistry()
    registry.task("hangs")(lambda: go_on.wait(30))
    registry.task("works")(lambda: "well")
    with running(store, registry, threads=4) as client:
        for _ in range(10):
            post(client, name="hangs", run_at=later(0))
        wait_until(lambda: store.count("status = 'running'") == 3)
        task = post(client, name="works", run_at=later(0))
        assert finished(client, task["task_id"])["result"] == "well"
        go_on.set()


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"priority": 4}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"concurrency_key": ""}, "concurrency_key"),
        ({"concurrency_key": " "}, "concurrency_key"),
        ({"concurrency_key": "k" * 256}, "concurrency_key"),
        ({"concurrency_key": "k", "max_running": 0}, "max_running"),
        ({"max_running": 2}, "max_running"),
    ],
)
def test_bad_limit_is_refused(store: Backend, members: dict[str, Any], field: str) -> None:
    with running(store) as client:
        response = client.post("/tasks", json=task_body(**members))
        problem = assert_problem(response, 422, "VALIDATION_422")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("option", [{"max_running": 0}, {"rate_limit": "often"}])
def test_bad_limit_on_the_decorator_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        HandlerRegistry().task("probe", **option)


# ------------------------------------------------------------------------- the statements


def test_keyed_task_is_claimed_only_with_a_look_at_its_limit(
    store: Backend, registry: HandlerRegistry
) -> None:
    async def scenario() -> None:
        task_id = store.insert_task(run_at=later(-1), concurrency_key="k")
        async with bench(store, registry) as one:
            await one.runner.run_task(task_id, is_limited=False)
            assert store.row(task_id)["status"] == "scheduled"
            [put_back] = one.put_back
            assert (put_back.task_id, put_back.is_limited) == (task_id, True)
            await one.runner.run_task(task_id)
        assert store.row(task_id)["status"] == "done"

    asyncio.run(scenario())


def test_claim_of_unknown_outcome_is_repeated_without_harm(
    store: Backend, registry: HandlerRegistry
) -> None:
    async def scenario() -> None:
        ids = [store.insert_task(run_at=later(-5 + n), concurrency_key="k") for n in range(3)]
        requests = [ClaimRequest(task_id, new_token()) for task_id in ids]
        async with bench(store, registry) as one:

            async def claim(*, repeated: bool = False) -> list[Any]:
                answers: list[Any] = await one.database.write(
                    claim_within_limits, one.instance_id, requests, {}, repeated=repeated
                )
                return answers

            first = await claim()
            again = await claim(repeated=True)
        assert [isinstance(answer, Claim) for answer in first] == [True, False, False]
        assert again == first
        assert [store.row(task_id)["blocked_by"] for task_id in ids] == [None, "key:k", "key:k"]

    asyncio.run(scenario())


def insert_blocked(store: Backend, number: int) -> list[str]:
    """Insert due tasks, each of which is blocked by a key of its own."""
    names = [f"{place:03}" for place in range(number)]
    for name in names:
        store.insert_task(run_at=later(-60), concurrency_key=name, blocked_by=f"key:{name}")
    return names


def test_round_goes_on_where_the_last_one_has_ended(store: Backend) -> None:
    insert_blocked(store, 250)

    async def scenario() -> None:
        offered: list[DueTask] = []
        with store.database() as database:
            unblocking = Unblocking(database, {}, offered.extend, round_seconds=0)
            await unblocking.look()
            assert len(offered) == 200
            await unblocking.look()
            assert len({task.task_id for task in offered}) == len(offered) == 250
            await unblocking.look()
            assert len(offered) == 450  # until somebody claims them

    asyncio.run(scenario())
    assert store.count("blocked_by IS NULL") == 0


def test_limits_that_have_room_are_looked_at_between_the_rounds(store: Backend) -> None:
    insert_blocked(store, 3)

    async def scenario() -> None:
        offered: list[str] = []
        with store.database() as database:
            unblocking = Unblocking(
                database,
                {},
                lambda due: offered.append(" ".join(task.name for task in due)),
                round_seconds=3600,
            )
            await unblocking.look()
            await unblocking.look()
            assert offered == ["probe probe probe"]
            unblocking.note_room(["key:001", "handler:probe"])
            await unblocking.look()
            assert offered == ["probe probe probe", "probe"]
            await unblocking.look()
            assert len(offered) == 2

    asyncio.run(scenario())


def test_as_many_are_found_as_there_is_room_for(store: Backend) -> None:
    for place in range(5):
        store.insert_task(
            run_at=later(-60 + place), concurrency_key="k", max_running=3, blocked_by="key:k"
        )
        store.insert_task("probe", run_at=later(-60 + place), blocked_by="handler:probe")
    store.insert_task(
        "probe", status="running", concurrency_key="k", max_running=3, command='["true"]'
    )
    with store.database() as database, database.reading() as connection:
        by_key = startable(connection, ["key:k"], {})
        by_handler = startable(connection, ["handler:probe"], {"probe": HandlerLimit(2, None)})
        full = startable(connection, ["handler:probe"], {"probe": HandlerLimit(1, Rate(1, 1.0))})
    assert len(by_key) == 2
    assert by_key == sorted(by_key)
    assert all(task.is_limited for task in by_key + by_handler)
    assert len(by_handler) == 2
    assert len(full) == 1


def test_blocked_tasks_that_are_claimed_together_take_all_places(
    store: Backend, registry: HandlerRegistry
) -> None:
    members: dict[str, Any] = {"concurrency_key": "k", "max_running": 2, "blocked_by": "key:k"}
    ids = [store.insert_task(run_at=later(-60 + place), **members) for place in range(4)]

    async def scenario() -> None:
        async with bench(store, registry) as one:

            async def claim(*which: int) -> list[bool]:
                requests = [ClaimRequest(ids[place], new_token()) for place in which]
                answers = await one.database.write(
                    claim_within_limits, one.instance_id, requests, {}
                )
                return [isinstance(answer, Claim) for answer in answers]

            assert await claim(2, 3) == [False, False]  # two others come first
            assert await claim(0, 1, 2) == [True, True, False]

    asyncio.run(scenario())


def test_locked_row_holds_up_neither_other_keys_nor_others_of_its_own(store: Backend) -> None:
    if store.dialect == "sqlite":
        pytest.skip("SQLite locks no rows")
    registry = HandlerRegistry()
    go_on = threading.Event()
    registry.task("hold")(lambda: go_on.wait(30))
    with running(store, registry) as client:
        post(client, name="hold", run_at=later(0), concurrency_key="full")
        wait_until(lambda: store.count("status = 'running'") == 1)
        with store.database() as theirs, theirs.writing() as connection:
            locked = store.insert_task("probe", run_at=later(3600), concurrency_key="full")
            connection.execute(
                text("SELECT 1 FROM scheduled_tasks WHERE task_id = :id FOR UPDATE"), {"id": locked}
            )
            # It is due now, and cannot be set aside.
            request = ClaimRequest(locked, new_token())
            answers = store_claim(store, [request])
            assert answers == [None]
            other = post(client, run_at=later(0), concurrency_key="free")
            assert finished(client, other["task_id"])["status"] == "done"
        go_on.set()


def store_claim(store: Backend, requests: list[ClaimRequest]) -> list[Any]:
    """Claim within limits, in a transaction of the test's own."""
    with store.database() as database, database.writing() as connection:
        return list(claim_within_limits(connection, new_token(), requests, {}))


def test_stop_leaves_what_is_blocked_as_it_is(store: Backend) -> None:
    """So that the next start does not take it for missed, whatever its policy."""
    registry = HandlerRegistry()

    @registry.task("probe")
    async def probe() -> None:
        await asyncio.sleep(0.3)

    with running(store, registry, shutdown_grace=5) as client:
        for _ in range(20):
            store.insert_task(run_at=later(0), concurrency_key="k")
        wait_until(lambda: store.count("status = 'scheduled' AND blocked_by IS NULL") == 0)
    assert store.count("blocked_by IS NOT NULL") > 0
    assert store.count("status = 'scheduled' AND blocked_by IS NULL") == 0
    with running(store, registry, recover_past_tasks="fail") as client:
        assert client.get("/tasks?status=failed").json() == []
