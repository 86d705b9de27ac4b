"""Clocks: the database's decides, however far off or stepped any of them is."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from job_scheduler.clock import DatabaseClock, SystemClock
from job_scheduler.core import timekeeping
from tests.support.app import Backend, finished, migrate, post, running, services_of, statements
from tests.support.services import Service, skip_or_fail, temporary_database, wait_until

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000_000
HOUR = 3_600 * SECOND


# ---------------------------------------------------------------- what can be known of it


class World:
    """A monotonic clock, and a database whose clock runs a little faster or slower."""

    def __init__(self, drift: int = 0) -> None:
        self.drift = drift
        self.elapsed = 0
        self.stepped = 0

    def monotonic(self) -> int:
        """The observer's clock, in nanoseconds."""
        return self.elapsed

    def truth(self) -> Fraction:
        """What the database's clock shows, in nanoseconds since 1970."""
        start = (NOON - EPOCH) // MICROSECOND * 1_000
        return start + self.stepped + self.elapsed * (1 + Fraction(self.drift, 1_000_000))

    def asked(self, there: int, back: int) -> Callable[[], datetime]:
        """A question that takes so long to get there, and its answer to come back."""

        def read() -> datetime:
            self.elapsed += there
            told = EPOCH + floor(self.truth() / 1_000) * MICROSECOND
            self.elapsed += back
            return told

        return read


def bounds(clock: DatabaseClock) -> tuple[int, int]:
    """Between what the database's clock is said to be, in nanoseconds since 1970."""
    earliest = clock.now()
    return tuple(
        (instant - EPOCH) // MICROSECOND * 1_000 for instant in (earliest, earliest + clock.error)
    )  # type: ignore[return-value]  # there are two


TRIPS = st.integers(0, 2 * SECOND) | st.integers(0, 2_000_000)
ROUNDS = st.lists(st.tuples(TRIPS, TRIPS, st.integers(0, HOUR)), min_size=1, max_size=20)
DRIFTS = st.integers(-200, 200)


@given(DRIFTS, ROUNDS)
def test_clock_is_never_ahead_of_the_database_and_its_error_is_true(
    drift: int, rounds: list[tuple[int, int, int]]
) -> None:
    world = World(drift)
    clock = DatabaseClock(world.asked(*rounds[0][:2]), world.monotonic)
    for there, back, pause in rounds:
        clock.measure(world.asked(there, back))
        for _ in range(2):
            earliest, latest = bounds(clock)
            assert earliest <= world.truth() <= latest
            world.elapsed += pause


@given(DRIFTS, ROUNDS, st.integers(-HOUR, HOUR) | st.integers(-10_000_000, 10_000_000))
def test_step_of_the_database_is_followed_with_the_next_measurement(
    drift: int, rounds: list[tuple[int, int, int]], step: int
) -> None:
    world = World(drift)
    clock = DatabaseClock(world.asked(0, 0), world.monotonic)
    for there, back, pause in rounds:
        clock.measure(world.asked(there, back))
        world.elapsed += pause
    world.stepped = step
    there, back, pause = rounds[0]
    clock.measure(world.asked(there, back))
    earliest, latest = bounds(clock)
    # A step too small to be seen leaves no more of an error than this very round trip.
    allowance = (there + back) * Fraction(10_002, 10_000) + 3_000
    assert earliest - allowance <= world.truth() <= latest + allowance


def test_best_round_trip_counts_until_the_drift_has_used_it_up() -> None:
    world = World()
    clock = DatabaseClock(world.asked(100_000, 100_000), world.monotonic)
    good = clock.error
    assert timedelta(microseconds=200) <= good < timedelta(microseconds=205)
    clock.measure(world.asked(10_000_000, 10_000_000))
    world.elapsed += SECOND
    clock.measure(world.asked(10_000_000, 10_000_000))
    # A thousandth of a millisecond for every five that have passed, in both directions.
    assert good < clock.error < good + timedelta(microseconds=420)
    world.elapsed += 1_000 * SECOND
    assert clock.error > timedelta(milliseconds=400)
    clock.measure(world.asked(10_000_000, 10_000_000))
    assert clock.error < timedelta(microseconds=20_010)


def test_measurement_that_was_overtaken_by_a_later_one_does_no_harm() -> None:
    world = World()
    clock = DatabaseClock(world.asked(0, 0), world.monotonic)
    inner = world.asked(1_000_000, 1_000_000)

    def slow() -> datetime:
        told = world.asked(0, SECOND)()
        clock.measure(inner)
        return told

    clock.measure(slow)
    earliest, latest = bounds(clock)
    assert earliest <= world.truth() <= latest


def test_measurement_of_another_thread_in_between_is_not_moved_back_in_time() -> None:
    world = World()
    others: list[int] = []

    def monotonic() -> int:
        """Let another thread take its turn as soon as this answer has come."""
        now = world.elapsed
        if others and others.pop() == now:
            world.elapsed += HOUR
            clock.measure(world.asked(0, 0))
        return now

    clock = DatabaseClock(world.asked(0, 0), monotonic)
    answer = world.asked(0, SECOND)

    def read() -> datetime:
        told = answer()
        others.append(world.elapsed)
        return told

    clock.measure(read)
    assert clock.error <= 4 * MICROSECOND
    earliest, latest = bounds(clock)
    assert earliest <= world.truth() <= latest


def test_drift_is_rounded_away_from_certainty() -> None:
    world = World(drift=-200)
    clock = DatabaseClock(world.asked(0, 0), world.monotonic)
    # By now the slowest clock is two tenths of a nanosecond short of the next microsecond.
    world.elapsed += 1_000
    assert clock.now() == NOON
    world.elapsed += 1
    assert clock.now() == NOON + MICROSECOND
    assert bounds(clock)[0] <= world.truth()


@pytest.mark.parametrize(("step", "logged"), [(HOUR, "+3600.0"), (-HOUR, "-3600.0"), (SECOND, "")])
def test_great_step_is_logged(caplog: pytest.LogCaptureFixture, step: int, logged: str) -> None:
    world = World()
    clock = DatabaseClock(world.asked(0, 0), world.monotonic)
    world.stepped = step // (1 if logged else 20)
    with caplog.at_level(logging.WARNING, "job_scheduler.clock"):
        clock.measure(world.asked(0, 0))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(logged)
    assert all(f"the database's clock was stepped by {logged}" in line for line in lines)


def test_zone_of_the_system_clock_is_what_was_asked_for() -> None:
    zone = SteppedZone(-3600)
    assert SystemClock(zone).now().tzinfo is zone
    assert timedelta(minutes=59) < SystemClock().now() - SystemClock(zone).now()


def test_clock_of_a_database(store: Backend) -> None:
    with store.database() as database, database.reading() as connection:
        with statements(database.engine) as asked:
            clock = timekeeping.build_clock(connection)
        assert len(asked) == (0 if store.dialect == "sqlite" else 5)
        if store.dialect == "sqlite":
            assert isinstance(clock, SystemClock)
            assert clock.error == timedelta()
        else:
            assert isinstance(clock, DatabaseClock)
            assert timedelta() < clock.error < timedelta(seconds=1)
        timekeeping.measure(connection, clock)
        assert abs(clock.now() - SystemClock().now()) < timedelta(seconds=1)


# -------------------------------------------------- a service by a clock that is elsewhere


class SteppedZone(tzinfo):
    """UTC for all that compares times; the wall clock that is read in it can be stepped.

    APScheduler reads the wall clock in its own zone, so with this one it is the wall clock
    itself that is off.
    """

    def __init__(self, seconds: float = 0) -> None:
        self.ahead = timedelta(seconds=seconds)

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        """Return nothing."""
        return timedelta()

    def dst(self, _moment: datetime | None) -> timedelta:
        """Return nothing."""
        return timedelta()

    def tzname(self, _moment: datetime | None) -> str:
        """Return a name."""
        return "stepped"

    def fromutc(self, moment: datetime) -> datetime:
        """Return the wall clock's time, as far as it has been stepped."""
        return moment + self.ahead


class CountingScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler brings no types
    """Counts how often it is asked to wait."""

    asked = 0

    def add_job(self, *arguments: Any, **options: Any) -> Any:
        """Count, and take the job."""
        self.asked += 1
        return super().add_job(*arguments, **options)


def at_wall(zone: SteppedZone) -> Callable[[], AsyncIOScheduler]:
    """Make APSchedulers whose wall clock is off."""
    return lambda: AsyncIOScheduler(timezone=zone)


# Found before the ones of pg_catalog: what any statement takes for the database's clock.
SHIFTED_CLOCK = [
    "CREATE TABLE shift (by_seconds float NOT NULL)",
    "INSERT INTO shift VALUES (0)",
    *(
        f"CREATE FUNCTION public.{name}() RETURNS timestamptz LANGUAGE sql {kind} AS "  # noqa: S608
        f"'SELECT pg_catalog.{name}() + make_interval(secs => by_seconds) FROM public.shift'"
        for name, kind in (
            ("clock_timestamp", "VOLATILE"),
            ("statement_timestamp", "STABLE"),
            ("now", "STABLE"),
        )
    ),
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', "
    "current_database()); END $$",
]


class ShiftedDatabase(Backend):
    """A PostgreSQL database whose clock the test can put forward and back."""

    def shift(self, seconds: float) -> None:
        """Let its clock differ from the machine's by so much."""
        self.sql("UPDATE shift SET by_seconds = :seconds", seconds=seconds)

    def now(self) -> datetime:
        """What its clock shows."""
        [row] = self.sql("SELECT clock_timestamp() AS now")
        now: datetime = row["now"]
        return now

    def in_seconds(self, seconds: float) -> str:
        """A time by its clock."""
        return (self.now() + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def shifted(postgresql: Service) -> Iterator[ShiftedDatabase]:
    """A migrated database with a clock of its own."""
    if postgresql.url is None:
        skip_or_fail(f"no PostgreSQL: {postgresql.reason}")
    with temporary_database(postgresql.url) as url:
        database = ShiftedDatabase(url)
        for statement in SHIFTED_CLOCK:
            database.sql(statement)
        migrate(url)
        yield database


def lateness(task: dict[str, Any]) -> float:
    """By how many seconds a task started after its time, by the database's clock."""
    started, run_at = (datetime.fromisoformat(task[name]) for name in ("started_at", "run_at"))
    return (started - run_at).total_seconds()


def assert_on_time(client: TestClient, task_id: str) -> None:
    """Check that a task has run once, not early, and not late."""
    task = finished(client, task_id)
    assert (task["status"], task["attempt"]) == ("done", 1)
    assert 0 <= lateness(task) < 1.5


@pytest.mark.postgresql
@pytest.mark.parametrize("shift", [300, -300])
def test_instances_whose_clocks_differ_by_minutes_keep_the_databases_time(
    shifted: ShiftedDatabase, shift: int
) -> None:
    shifted.shift(shift)
    fast, slow = SteppedZone(420), SteppedZone(-240)
    with (
        running(shifted, scheduler=at_wall(fast)) as one,
        running(shifted, scheduler=at_wall(slow)) as other,
    ):
        tasks = [
            post(client, run_at=shifted.in_seconds(seconds))["task_id"]
            for client in (one, other)
            for seconds in (0, 0.3, 1, 2.2)
        ]
        tasks += [shifted.insert_task(run_at=shifted.in_seconds(seconds)) for seconds in (0, 1)]
        for task_id in tasks:
            assert_on_time(one, task_id)
        clocks = [client.get("/health").json()["clock"] for client in (one, other)]
    for clock in clocks:
        assert 0 < clock["error_ms"] < 100
        ahead = clock["offset_ms"]
        # What `now` lags behind, and the time between reading the one clock and the other.
        assert shift * 1000 - clock["error_ms"] - 5 <= ahead <= shift * 1000 + 1


@pytest.mark.postgresql
def test_database_clock_that_is_put_forward_brings_its_tasks_at_once(
    shifted: ShiftedDatabase,
) -> None:
    with running(shifted) as one, running(shifted) as other:
        held = post(one, run_at=shifted.in_seconds(4))["task_id"]
        distant = post(other, run_at=shifted.in_seconds(3_000))["task_id"]
        wait_until(lambda: all(held in services_of(client).timer for client in (one, other)))
        shifted.shift(3600)
        stepped = SystemClock().now()
        for task_id in (held, distant):
            task = finished(one, task_id)
            assert (task["status"], task["attempt"]) == ("done", 1)
            assert lateness(task) >= 0
        assert SystemClock().now() - stepped < timedelta(seconds=2.5)
        for client in (one, other):
            assert_on_time(client, post(client, run_at=shifted.in_seconds(0.5))["task_id"])
            wait_until(lambda: services_of(client).clock.now() > stepped + timedelta(minutes=59))  # noqa: B023
            assert client.get("/health").status_code == 200


@pytest.mark.postgresql
def test_database_clock_that_is_put_back_starts_nothing_early(shifted: ShiftedDatabase) -> None:
    with running(shifted) as one, running(shifted) as other:
        held = post(one, run_at=shifted.in_seconds(1.5))["task_id"]
        wait_until(lambda: all(held in services_of(client).timer for client in (one, other)))
        shifted.shift(-3600)
        stepped = shifted.now()
        for client in (one, other):
            # Nothing that lies an hour ahead stays in memory.
            wait_until(lambda: held not in services_of(client).timer)  # noqa: B023
            assert_on_time(client, post(client, run_at=shifted.in_seconds(0.5))["task_id"])
        assert_on_time(one, shifted.insert_task(run_at=shifted.in_seconds(0)))
        wait_until(lambda: shifted.now() - stepped > timedelta(seconds=2))
        assert shifted.row(held)["status"] == "scheduled"
        shifted.shift(0)
        task = finished(one, held)
        assert (task["status"], task["attempt"]) == ("done", 1)
        assert lateness(task) >= 0


@pytest.mark.parametrize("step", [3600, -3600])
def test_step_of_the_wall_clock_changes_nothing(store: Backend, step: int) -> None:
    zone = SteppedZone()
    clock = SystemClock()  # the database's, as good as

    def at(seconds: float) -> str:
        return (clock.now() + timedelta(seconds=seconds)).isoformat()

    scheduler = CountingScheduler(timezone=zone)
    with running(store, scheduler=lambda: scheduler) as client:
        timer = services_of(client).timer
        before = [post(client, run_at=at(seconds))["task_id"] for seconds in (1.5, 1.6, 2.5)]
        assert all(task_id in timer for task_id in before)
        zone.ahead = timedelta(seconds=step)
        after = [post(client, run_at=at(seconds))["task_id"] for seconds in (0, 0.5, 2, 3)]
        after += [store.insert_task(run_at=at(seconds)) for seconds in (0, 1)]
        for task_id in before + after:
            assert_on_time(client, task_id)
        assert client.get("/health").status_code == 200
    # One that fires early is asked once more, or twice; it is not asked all the time.
    assert scheduler.asked <= 4 * len(before + after)
