"""The timer, the dispatcher and the sweep: what is started when, and what is held in memory."""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import STATE_RUNNING, STATE_STOPPED
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from job_scheduler.clock import SystemClock
from job_scheduler.core.dispatcher import RECORDING_MAX, Dispatcher
from job_scheduler.core.handlers.registry import HandlerRegistry
from job_scheduler.core.lanes import Lane
from job_scheduler.core.places import Place
from job_scheduler.core.scheduler import LoopScheduler
from job_scheduler.core.store import DueTask, due_tasks
from job_scheduler.core.sweep import Sweep
from job_scheduler.core.timer import HELD_MAX, LOOKAHEAD, Timer
from job_scheduler.exceptions import SchedulerUnavailable
from job_scheduler.identifiers import new_token
from job_scheduler.logger import configure_logging
from tests.conftest import POSTGRESQL
from tests.support.app import Backend, finished, later, post, running, services_of
from tests.support.logs import logged
from tests.support.services import wait_until

NOON = datetime(2027, 7, 1, 12, tzinfo=UTC)


class FixedClock:
    """A clock that stands until it is moved."""

    error = timedelta()

    def __init__(self, instant: datetime = NOON) -> None:
        self.instant = instant

    def now(self) -> datetime:
        """Return the instant."""
        return self.instant


class HandDriven:
    """A scheduler whose jobs the test fires; it can be told to refuse."""

    def __init__(self) -> None:
        self.state = STATE_STOPPED
        self.jobs: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]] = {}
        self.refusal: Exception | None = None
        self.most: float = math.inf

    def start(self) -> None:
        """Run."""
        self.state = STATE_RUNNING

    def shutdown(self, wait: bool) -> None:
        """Stop; nobody is to wait for coroutines."""
        assert not wait
        self.state = STATE_STOPPED

    def add_job(
        self, func: Callable[..., Any], trigger: Any, *, args: list[Any], **more: Any
    ) -> None:
        """Take a job."""
        if self.refusal is not None:
            raise self.refusal
        if len(self.jobs) >= self.most:
            raise RuntimeError("full")
        assert more["id"] not in self.jobs
        self.jobs[more["id"]] = (func, args, more | {"at": trigger.run_date})

    def remove_job(self, job_id: str) -> None:
        """Give a job up."""
        if self.refusal is not None:
            raise self.refusal
        if job_id not in self.jobs:
            raise JobLookupError(job_id)
        del self.jobs[job_id]

    def instants(self) -> list[datetime]:
        """When jobs are to fire."""
        return sorted(more["at"] for _, _, more in self.jobs.values())

    def fire_all(self) -> None:
        """Fire each job once, as APScheduler does: remove it, then run it."""
        jobs, self.jobs = self.jobs, {}
        for function, arguments, _ in jobs.values():
            asyncio.run(function(*arguments))


def due(seconds: float, name: str = "probe", task_id: str | None = None) -> DueTask:
    """A task that is due some seconds from noon."""
    return DueTask(NOON + timedelta(seconds=seconds), task_id or new_token(), name)


class Bench:
    """A timer on a scheduler that the test drives; the wall clock is ten minutes behind."""

    behind = timedelta(minutes=10)

    def __init__(self) -> None:
        self.scheduler = HandDriven()
        self.clock = FixedClock()
        self.wall = FixedClock(NOON - self.behind)
        self.fired: list[DueTask] = []
        self.timer = Timer(self.scheduler, self.wall, self.clock, self.fired.extend)
        self.timer.start()

    def instants(self) -> list[datetime]:
        """When jobs are to fire, if neither clock is stepped."""
        return [instant + self.behind for instant in self.scheduler.instants()]

    def fire_all(self) -> None:
        """Let the time of every job come, and fire each once."""
        self.clock.instant = max([self.clock.instant, *self.instants()])
        self.scheduler.fire_all()

    def held(self) -> tuple[int, int]:
        """How many tasks and how many jobs are held."""
        return len(self.timer), len(self.scheduler.jobs)


@pytest.fixture
def bench() -> Bench:
    """A timer that runs."""
    return Bench()


# ---------------------------------------------------------------------- register


def test_registered_task_fires_once_at_its_instant(bench: Bench) -> None:
    task = due(2)
    bench.timer.register(task)
    bench.timer.register(task)
    assert task.task_id in bench.timer
    assert (bench.held(), bench.fired) == ((1, 1), [])
    bench.fire_all()
    assert (bench.held(), bench.fired) == ((0, 0), [task])


def test_tasks_of_one_instant_share_a_job_that_is_never_too_late(bench: Bench) -> None:
    tasks = [due(1.000123) for _ in range(500)]
    for task in tasks:
        bench.timer.register(task)
    assert bench.held() == (500, 1)
    assert bench.instants() == [tasks[0].due]
    [(_, _, options)] = bench.scheduler.jobs.values()
    assert options["misfire_grace_time"] is None
    bench.fire_all()
    assert bench.fired == tasks


def test_tasks_of_one_millisecond_need_two_jobs_at_most_and_none_is_early(bench: Bench) -> None:
    instants = [1.0011 + place / 1_000_000 for place in range(500)]
    for instant in (*instants, *(instant - 0.001 for instant in instants)):
        bench.timer.register(due(instant))
    # A task that is claimed a microsecond early is not due yet.
    assert bench.instants() == [NOON + timedelta(seconds=second) for second in (1.0011, 1.002)]
    bench.fire_all()
    assert len(bench.fired) == 1_000


def test_tasks_of_neighbouring_milliseconds_share_jobs_in_whatever_order_they_come(
    bench: Bench,
) -> None:
    chooser = Random(7)  # noqa: S311 (the same each time)
    moments = [1 + place / 1_000_000 for place in chooser.choices(range(20_000), k=2_000)]
    tasks = [due(moment) for moment in moments]
    for task in tasks:
        bench.timer.register(task)
    assert bench.held()[0] == 2_000
    assert len(bench.scheduler.jobs) <= 22
    for instant in bench.instants():
        bench.clock.instant = instant
        before = len(bench.fired)
        bench.timer.fire_overdue()
        assert all(
            timedelta(0) <= instant - task.due < timedelta(milliseconds=5)
            for task in bench.fired[before:]
        )
    assert sorted(bench.fired) == sorted(tasks)


def test_job_ids_are_never_used_again(bench: Bench) -> None:
    bench.timer.register(due(1))
    first = set(bench.scheduler.jobs)
    bench.fire_all()
    bench.timer.register(due(1))
    assert first.isdisjoint(bench.scheduler.jobs)


def test_due_task_fires_at_once_and_a_distant_one_is_left_to_the_sweep(bench: Bench) -> None:
    now, past = due(0), due(-3600)
    bench.timer.register(now)
    bench.timer.register(past)
    bench.timer.register(due(LOOKAHEAD.total_seconds() + 0.001))
    assert (bench.held(), bench.fired) == ((0, 0), [now, past])
    bench.timer.register(due(LOOKAHEAD.total_seconds()))
    assert bench.held() == (1, 1)


def test_refused_job_is_reported_and_not_held(bench: Bench) -> None:
    bench.scheduler.refusal = RuntimeError("full")
    with pytest.raises(SchedulerUnavailable, match="full"):
        bench.timer.register(due(1))
    assert bench.held() == (0, 0)
    bench.scheduler.refusal = None
    bench.timer.register(due(1))
    assert bench.held() == (1, 1)


def test_task_put_back_fires_a_little_later(bench: Bench) -> None:
    bench.timer.put_back(due(-10))
    bench.timer.put_back(due(3))
    assert bench.fired == []
    assert bench.instants() == [NOON + timedelta(seconds=0.2), NOON + timedelta(seconds=3)]


@pytest.mark.parametrize(
    ("error", "behind", "delay"),
    [(0, 0, 2), (0, 1, 2), (0, 2, 200), (40, 39, 2), (40, 40, 200), (0, -1, 2)],
)
def test_task_put_back_within_the_clocks_error_fires_very_soon(
    bench: Bench, error: int, behind: int, delay: int
) -> None:
    bench.clock.error = timedelta(milliseconds=error)
    bench.timer.put_back(due(-behind / 1000))
    assert bench.instants() == [NOON + timedelta(milliseconds=delay)]


def test_task_that_cannot_be_put_back_is_left_to_the_sweep(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    task = due(0)
    bench.scheduler.refusal = RuntimeError("full")
    bench.timer.put_back(task)
    assert bench.held() == (0, 0)
    assert f"task {task.task_id} could not be put back" in capfd.readouterr().err


def test_stopped_timer_holds_nothing_and_can_be_stopped_again(bench: Bench) -> None:
    bench.timer.register(due(1))
    assert bench.timer.running
    bench.timer.stop()
    bench.timer.stop()
    assert not bench.timer.running
    assert len(bench.timer) == 0
    # What APScheduler had begun already finds nothing to do.
    bench.fire_all()
    assert bench.fired == []


# ------------------------------------------------------------------ clocks that differ


def test_job_that_fires_early_waits_for_what_is_left(bench: Bench) -> None:
    task = due(3.000123)
    bench.timer.register(task)
    [first] = bench.scheduler.jobs
    bench.clock.instant += timedelta(seconds=1)
    bench.wall.instant += timedelta(hours=1)
    bench.scheduler.fire_all()
    assert (bench.held(), bench.fired) == ((1, 1), [])
    assert first not in bench.scheduler.jobs
    left = timedelta(seconds=2, microseconds=123)
    assert bench.scheduler.instants() == [bench.wall.instant + left]
    bench.clock.instant += left
    bench.scheduler.fire_all()
    assert (bench.held(), bench.fired) == ((0, 0), [task])


def test_task_that_comes_back_after_it_was_withdrawn_has_a_job_again(bench: Bench) -> None:
    task = due(1.000123)
    for _ in range(2):
        bench.timer.register(task)
        assert bench.held() == (1, 1)
        with bench.timer.withdrawn(task.task_id):
            assert bench.held() == (0, 0)


def test_task_can_be_withdrawn_after_its_job_has_fired_early(bench: Bench) -> None:
    task = due(3)
    bench.timer.register(task)
    bench.scheduler.fire_all()
    with bench.timer.withdrawn(task.task_id):
        assert bench.held() == (0, 0)


def test_job_that_is_refused_again_is_left_to_the_sweep(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    task = due(3)
    bench.timer.register(task)
    bench.scheduler.refusal = RuntimeError("full")
    bench.scheduler.fire_all()
    assert (bench.held(), bench.fired) == ((1, 0), [])
    assert "1 tasks are left to a sweep" in capfd.readouterr().err
    bench.timer.fire_overdue()
    assert bench.fired == []
    bench.clock.instant += timedelta(seconds=3)
    bench.timer.fire_overdue()
    assert (bench.held(), bench.fired) == ((0, 0), [task])


def test_what_an_early_job_finds_far_ahead_is_not_held(bench: Bench) -> None:
    at_the_edge, beyond = due(4), due(4.001)
    for task in (at_the_edge, beyond):
        bench.timer.register(task)
    bench.clock.instant += timedelta(seconds=4) - LOOKAHEAD
    bench.scheduler.fire_all()
    assert (bench.held(), bench.fired) == ((1, 1), [])
    assert at_the_edge.task_id in bench.timer


def test_overdue_tasks_are_fired_and_their_jobs_removed(bench: Bench) -> None:
    one, two, three = due(1), due(2), due(2.001)
    for task in (one, two, three):
        bench.timer.register(task)
    bench.clock.instant += timedelta(seconds=2)
    bench.timer.fire_overdue()
    assert bench.fired == [one, two]
    assert bench.held() == (1, 1)
    bench.fire_all()
    assert bench.fired == [one, two, three]


def test_overdue_task_is_fired_even_if_its_job_cannot_be_removed(bench: Bench) -> None:
    one, two = due(1), due(2)
    bench.timer.register(one)
    bench.clock.instant += timedelta(seconds=1)
    bench.scheduler.refusal = RuntimeError("jammed")
    bench.timer.fire_overdue()
    bench.scheduler.refusal = None
    bench.timer.register(two)
    bench.clock.instant += timedelta(seconds=1)
    begun, bench.scheduler.jobs = bench.scheduler.jobs, {}
    bench.timer.fire_overdue()
    bench.scheduler.jobs = begun
    bench.scheduler.fire_all()
    assert (bench.held(), bench.fired) == ((0, 0), [one, two])


def test_task_that_is_not_committed_is_never_fired_as_overdue(bench: Bench) -> None:
    task, other = due(1), due(1)
    bench.timer.register(other)
    with bench.timer.reserved(task):
        bench.clock.instant += timedelta(seconds=1)
        bench.timer.fire_overdue()
        assert bench.fired == [other]
        assert task.task_id in bench.timer
    assert (bench.held(), bench.fired) == ((0, 0), [other, task])


# ----------------------------------------------------------------------- reserved


def test_reserved_task_fires_only_after_the_commit(bench: Bench) -> None:
    task = due(1)
    with bench.timer.reserved(task):
        assert bench.held() == (1, 1)
    assert (bench.held(), bench.fired) == ((1, 1), [])
    bench.fire_all()
    assert (bench.held(), bench.fired) == ((0, 0), [task])


def test_task_whose_instant_passes_during_the_commit_fires_right_after_it(bench: Bench) -> None:
    task, other = due(1), due(1)
    bench.timer.register(other)
    with bench.timer.reserved(task):
        bench.fire_all()
        assert bench.fired == [other]
        assert task.task_id in bench.timer
    assert (bench.held(), bench.fired) == ((0, 0), [other, task])


def test_task_due_now_fires_after_the_commit(bench: Bench) -> None:
    task = due(0)
    with bench.timer.reserved(task):
        assert bench.fired == []
        assert task.task_id in bench.timer
    assert (bench.held(), bench.fired) == ((0, 0), [task])


@pytest.mark.parametrize("seconds", [0, 1])
def test_failed_commit_takes_the_reservation_back(bench: Bench, seconds: int) -> None:
    with pytest.raises(ValueError, match="rolled back"), bench.timer.reserved(due(seconds)):
        raise ValueError("rolled back")
    assert bench.held() == (0, 0)
    bench.fire_all()
    assert bench.fired == []


def test_failed_commit_leaves_the_others_of_its_instant(bench: Bench) -> None:
    other = due(1)
    bench.timer.register(other)
    with pytest.raises(ValueError, match="rolled back"), bench.timer.reserved(due(1)):
        raise ValueError("rolled back")
    assert bench.held() == (1, 1)
    bench.fire_all()
    assert bench.fired == [other]


def test_failed_commit_after_its_instant_fires_nothing(bench: Bench) -> None:
    def fail_late() -> None:
        with bench.timer.reserved(due(1)):
            bench.fire_all()
            raise ValueError("rolled back")

    with pytest.raises(ValueError, match="rolled back"):
        fail_late()
    assert (bench.held(), bench.fired) == ((0, 0), [])


def test_distant_or_known_task_is_not_reserved(bench: Bench) -> None:
    with bench.timer.reserved(due(LOOKAHEAD.total_seconds() + 0.001)):
        assert bench.held() == (0, 0)
    known = due(1)
    bench.timer.register(known)
    with pytest.raises(ValueError, match="conflict"), bench.timer.reserved(known):
        raise ValueError("conflict")
    assert (bench.held(), bench.fired) == ((1, 1), [])


def test_no_more_is_reserved_than_may_be_held(bench: Bench) -> None:
    for _ in range(HELD_MAX):
        bench.timer.register(due(1))
    with bench.timer.reserved(due(2)):
        assert bench.held() == (HELD_MAX, 1)
    assert bench.fired == []


def test_reservation_is_refused_when_the_scheduler_cannot_take_it(bench: Bench) -> None:
    entered = False
    bench.scheduler.refusal = RuntimeError("full")
    with pytest.raises(SchedulerUnavailable), bench.timer.reserved(due(1)):
        entered = True
    bench.scheduler.refusal = None
    bench.timer.stop()
    with pytest.raises(SchedulerUnavailable, match="not running"), bench.timer.reserved(due(1)):
        entered = True
    assert not entered
    assert bench.held() == (0, 0)


def test_many_are_reserved_together(bench: Bench) -> None:
    now, soon, later, distant = due(0), due(1), due(2), due(60)
    with bench.timer.reserved(later, soon, now, distant):
        assert bench.held() == (3, 2)
        bench.clock.instant += timedelta(seconds=1)
        bench.scheduler.fire_all()
        assert bench.fired == []
    assert bench.fired == [soon, now]
    assert bench.held() == (1, 1)


def test_of_many_none_is_reserved_when_one_cannot_be(bench: Bench) -> None:
    entered = False
    bench.scheduler.most = 2
    with pytest.raises(SchedulerUnavailable), bench.timer.reserved(due(0), due(1), due(2), due(3)):
        entered = True
    assert not entered
    assert bench.held() == (0, 0)
    assert bench.fired == []


# ---------------------------------------------------------------------- withdrawn


def test_withdrawn_task_never_fires(bench: Bench) -> None:
    task, other = due(1), due(1)
    bench.timer.register(task)
    bench.timer.register(other)
    with bench.timer.withdrawn(task.task_id):
        assert bench.held() == (1, 1)
    with bench.timer.withdrawn(other.task_id):
        assert bench.held() == (0, 0)
    bench.fire_all()
    assert bench.fired == []


def test_failed_deletion_holds_the_task_again(bench: Bench) -> None:
    task = due(1)
    bench.timer.register(task)
    with pytest.raises(ValueError, match="rolled back"), bench.timer.withdrawn(task.task_id):
        raise ValueError("rolled back")
    assert bench.held() == (1, 1)
    bench.fire_all()
    assert bench.fired == [task]


def test_withdrawing_what_is_not_held_is_no_failure(bench: Bench) -> None:
    with bench.timer.withdrawn(new_token()):
        pass
    with pytest.raises(ValueError, match="rolled back"), bench.timer.withdrawn(new_token()):
        raise ValueError("rolled back")
    assert (bench.held(), bench.fired) == ((0, 0), [])


def test_withdrawing_what_fires_just_now_is_no_failure(bench: Bench) -> None:
    task = due(1)
    bench.timer.register(task)
    begun, bench.scheduler.jobs = bench.scheduler.jobs, {}
    with bench.timer.withdrawn(task.task_id):
        pass
    bench.scheduler.jobs = begun
    bench.fire_all()
    assert (bench.held(), bench.fired) == ((0, 0), [])


def test_task_is_kept_when_the_scheduler_does_not_give_it_back(bench: Bench) -> None:
    task = due(1)
    bench.timer.register(task)
    bench.scheduler.refusal = RuntimeError("jammed")
    entered = False
    with (
        pytest.raises(SchedulerUnavailable, match="jammed"),
        bench.timer.withdrawn(task.task_id),
    ):
        entered = True
    assert not entered
    bench.scheduler.refusal = None
    bench.fire_all()
    assert bench.fired == [task]


# ------------------------------------------------------------------ APScheduler itself


def test_apscheduler_fires_at_the_instant_and_also_when_it_is_late() -> None:
    clock = SystemClock()
    fired: dict[str, datetime] = {}

    async def scenario() -> None:
        timer = Timer(
            LoopScheduler(),
            clock,
            clock,
            lambda tasks: fired.update({task.task_id: clock.now() for task in tasks}),
        )
        timer.start()
        begin = clock.now()
        tasks = [
            DueTask(begin + timedelta(seconds=0.2 + number % 50 / 100), new_token(), "probe")
            for number in range(1_000)
        ]
        for task in tasks:
            timer.register(task)
        # The loop is held up beyond all of these instants, and longer than APScheduler's own
        # grace of a second.
        threading.Event().wait(2)
        punctual = DueTask(clock.now() + timedelta(seconds=0.3), new_token(), "probe")
        timer.register(punctual)
        for _ in range(1_000):
            if len(fired) == len(tasks) + 1:
                break
            await asyncio.sleep(0.01)
        timer.stop()
        assert fired.keys() == {task.task_id for task in [*tasks, punctual]}
        assert fired[punctual.task_id] >= punctual.due

    asyncio.run(scenario())


# --------------------------------------------------------------------- the dispatcher


class Runs:
    """Runs that end when the test lets them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Future[None]] = {}
        self.free: dict[str, Callable[[], None]] = {}
        self.room = 0

    async def __call__(self, task: DueTask, place: Place) -> None:
        task_id = task.task_id
        self.begun.append(task_id)
        self.free[task_id] = place.free
        self.gates[task_id] = asyncio.get_running_loop().create_future()
        await self.gates[task_id]

    def note_room(self) -> None:
        """Count."""
        self.room += 1

    async def end(self, task_id: str, error: Exception | None = None) -> None:
        """Let a run end, and give the loop time to notice."""
        if error is None:
            self.gates[task_id].set_result(None)
        else:
            self.gates[task_id].set_exception(error)
        await turns()


async def turns() -> None:
    """A few turns of the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


def dispatching(
    scenario: Callable[[Dispatcher, Runs], Coroutine[Any, Any, None]],
    max_running: int = 2,
    lanes: dict[str, int] | None = None,
) -> None:
    """Run a scenario with a dispatcher; `lanes` gives the capacities by the tasks' names."""

    async def run() -> None:
        runs = Runs()
        chosen = {name: Lane(size) for name, size in (lanes or {"probe": max_running}).items()}
        dispatcher = Dispatcher(runs, lambda task: chosen[task.name], max_running, runs.note_room)
        await scenario(dispatcher, runs)

    asyncio.run(run())


def named(*ids: str, name: str = "probe") -> Iterable[DueTask]:
    """Due tasks in the order of their times."""
    return [due(place, name, task_id) for place, task_id in enumerate(ids)]


def test_most_urgent_tasks_start_first_within_the_capacity() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(reversed(list(named("a", "b", "c", "d"))))
        await turns()
        assert runs.begun == ["a", "b"]
        assert (dispatcher.running, dispatcher.queued, runs.room) == (2, 2, 0)
        await runs.end("b")
        assert runs.begun == ["a", "b", "c"]
        await runs.end("a")
        await runs.end("c")
        await runs.end("d")
        assert runs.begun == ["a", "b", "c", "d"]
        assert (dispatcher.running, dispatcher.queued, runs.room) == (0, 0, 4)

    dispatching(scenario)


def test_run_whose_result_is_still_to_be_recorded_takes_no_capacity() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(named("a", "b", "c", "d"))
        await turns()
        runs.free["a"]()
        await turns()
        assert runs.begun == ["a", "b", "c"]
        assert (dispatcher.running, dispatcher.queued) == (3, 1)
        assert "a" in dispatcher
        await runs.end("a")  # its place was given up before: there is none to be had by it
        assert runs.begun == ["a", "b", "c"]
        for task_id in "bcd":
            await runs.end(task_id)
        assert (dispatcher.running, "a" in dispatcher) == (0, False)

    dispatching(scenario)


def test_only_so_many_results_may_wait_to_be_recorded() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        ids = [f"{number:04}" for number in range(RECORDING_MAX + 2)]
        dispatcher.offer(named(*ids))
        for task_id in ids[:-1]:
            await turns()
            runs.free[task_id]()
        await turns()
        assert (dispatcher.running, dispatcher.queued) == (RECORDING_MAX + 1, 1)
        for task_id in ids:
            await runs.end(task_id)
        assert runs.begun == ids

    dispatching(scenario)


def test_task_that_waits_or_runs_is_not_taken_again() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(named("a", "b", "c"))
        dispatcher.offer(named("a", "b", "c"))
        await turns()
        assert [task_id in dispatcher for task_id in "abcd"] == [True, True, True, False]
        for task_id in "abc":
            await runs.end(task_id)
        assert runs.begun == ["a", "b", "c"]
        assert "a" not in dispatcher
        dispatcher.offer(named("a"))
        await turns()
        assert runs.begun == ["a", "b", "c", "a"]
        await runs.end("a")

    dispatching(scenario)


def test_full_lane_holds_up_no_other() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(named("p1", "p2", "p3", name="plain"))
        dispatcher.offer(named("a1", "a2", "a3", name="async"))
        await turns()
        assert runs.begun == ["p1", "a1", "a2"]
        await runs.end("p1")
        assert runs.begun == ["p1", "a1", "a2", "p2"]
        for task_id in ("p2", "a1", "a2", "p3", "a3"):
            await runs.end(task_id)
        assert len(runs.begun) == 6

    dispatching(scenario, max_running=3, lanes={"plain": 1, "async": 3})


def test_run_that_breaks_off_is_logged_and_left_alone_for_a_moment(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO")

    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(named("a", "b", "c"))
        await turns()
        await runs.end("a", RuntimeError("broken"))
        assert runs.begun == ["a", "b", "c"]
        assert "a" in dispatcher
        runs.gates["b"].cancel()
        await turns()
        assert "b" not in dispatcher
        for _ in range(1_000):
            if "a" not in dispatcher:
                break
            await asyncio.sleep(0.01)
        dispatcher.offer(named("a"))
        await turns()
        assert runs.begun == ["a", "b", "c", "a"]
        await runs.end("a")
        await runs.end("c")

    dispatching(scenario)
    log = capfd.readouterr().err
    assert "the run of task a broke off" in log
    assert "RuntimeError: broken" in log


def test_drain_starts_nothing_more_and_tells_whether_all_ended() -> None:
    async def scenario(dispatcher: Dispatcher, runs: Runs) -> None:
        assert await dispatcher.drain(0)
        dispatcher.stop()
        dispatcher.offer(named("never"))
        await turns()
        assert runs.begun == []

    dispatching(scenario)

    async def patience(dispatcher: Dispatcher, runs: Runs) -> None:
        dispatcher.offer(named("a", "b", "c"))
        await turns()
        dispatcher.stop()
        assert not await dispatcher.drain(0.01)
        draining = asyncio.ensure_future(dispatcher.drain(30))
        await runs.end("a")
        assert not draining.done()
        await runs.end("b")
        assert await draining
        assert runs.begun == ["a", "b"]

    dispatching(patience)


# -------------------------------------------------------------------------- the sweep


class CountingStore(MemoryJobStore):  # type: ignore[misc]
    """Counts how often somebody looked for what is due."""

    looks = 0

    def get_due_jobs(self, now: datetime) -> list[Job]:
        """Look."""
        self.looks += 1
        return list(super().get_due_jobs(now))


def test_apscheduler_looks_once_for_all_jobs_of_one_turn() -> None:
    clock = SystemClock()
    store = CountingStore()
    fired: set[str] = set()

    async def scenario() -> None:
        scheduler = LoopScheduler(jobstores={"default": store})
        timer = Timer(
            scheduler, clock, clock, lambda tasks: fired.update(task.task_id for task in tasks)
        )
        timer.start()
        await asyncio.sleep(0)
        for _ in range(2):
            before = store.looks
            for number in range(100):
                due = clock.now() + timedelta(seconds=1 + number / 100)
                timer.register(DueTask(due, new_token(), "probe"))
            await asyncio.sleep(0.1)
            assert store.looks == before + 1
        await asyncio.to_thread(wait_until, lambda: len(fired) == 200)
        timer.stop()

    asyncio.run(scenario())


def test_apscheduler_does_not_look_again_and_again_before_the_time() -> None:
    uvloop = pytest.importorskip("uvloop", reason="its clock ticks in milliseconds")
    clock = SystemClock()
    store = CountingStore()
    fired: list[str] = []

    async def scenario() -> None:
        timer = Timer(
            LoopScheduler(jobstores={"default": store}),
            clock,
            clock,
            lambda tasks: fired.extend(task.task_id for task in tasks),
        )
        timer.start()
        begin = clock.now()
        for number in range(50):
            due = begin + timedelta(milliseconds=100 + 20 * number)
            timer.register(DueTask(due, new_token(), "probe"))
        await asyncio.to_thread(wait_until, lambda: len(fired) == 50)
        timer.stop()

    uvloop.run(scenario())
    # About 70 by rights; with all looks of the last millisecond there are about 350.
    assert store.looks < 150


@dataclass
class Swept:
    """A sweep that the test calls, and what it hands tasks to."""

    sweep: Sweep
    timer: Timer
    scheduler: LoopScheduler
    dispatcher: Dispatcher
    runs: Runs
    engine: Engine


def sweeping(
    store: Backend,
    scenario: Callable[[Swept], Coroutine[Any, Any, None]],
    interval: float = 0.5,
) -> None:
    """Run a scenario with a sweep that the test calls."""

    async def run() -> None:
        runs, clock = Runs(), SystemClock()
        lane = Lane(1_000_000)
        dispatcher = Dispatcher(runs, lambda _: lane, 1_000_000, lambda: sweep.note_room())
        scheduler = LoopScheduler()
        timer = Timer(scheduler, clock, clock, dispatcher.offer)
        with store.database() as database:
            sweep = Sweep(database, timer, dispatcher, clock, interval)
            timer.start()
            await scenario(Swept(sweep, timer, scheduler, dispatcher, runs, database.engine))
            timer.stop()

    asyncio.run(run())


def test_what_a_sweep_brings_shares_jobs_where_tasks_follow_closely(store: Backend) -> None:
    now = SystemClock().now()
    last = now.replace(microsecond=now.microsecond // 1_000 * 1_000) + timedelta(seconds=1.9)
    for number in range(20):
        store.insert_task(run_at=last - timedelta(milliseconds=number))
    for number in range(20):
        store.insert_task(run_at=last - timedelta(milliseconds=100 + 5 * number))

    async def scenario(swept: Swept) -> None:
        assert await swept.sweep.sweep() == 40
        # Of those a millisecond apart, five a job.
        assert len(swept.scheduler.get_jobs()) == 20 // 5 + 20
        await asyncio.to_thread(wait_until, lambda: len(swept.runs.begun) == 40)

    sweeping(store, scenario)


def test_sweep_brings_what_is_due_soon_and_not_held_yet(store: Backend) -> None:
    now = [store.insert_task(run_at=later(-seconds)) for seconds in (60, 1)]
    soon = store.insert_task(run_at=later(1.9))
    store.insert_task(run_at=later(60))
    store.insert_task(run_at=later(-60), retry_at=later(60))
    store.insert_task(run_at=later(-60), missed_at=later(-1))
    for status in ("running", "done", "failed"):
        store.insert_task(run_at=later(-60), status=status)

    async def scenario(swept: Swept) -> None:
        assert swept.sweep.last_at is None
        assert await swept.sweep.sweep() == 3
        await turns()
        assert swept.runs.begun == now
        assert soon in swept.timer
        assert swept.sweep.last_at is not None
        assert await swept.sweep.sweep() == 0
        for task_id in now:
            await swept.runs.end(task_id)
        # They are scheduled still, and due: found again.
        assert await swept.sweep.sweep() == 2

    sweeping(store, scenario)


@pytest.mark.parametrize("db_url", [POSTGRESQL], indirect=True)
def test_search_for_due_tasks_looks_at_no_others(store: Backend) -> None:
    """However many tasks are still to come: the index is read as far as the horizon."""
    searches: list[tuple[str, Any]] = []
    with store.database() as database, database.reading() as connection:
        event.listen(
            connection,
            "before_cursor_execute",
            lambda *arguments: searches.append((arguments[2], arguments[3])),
        )
        due_tasks(connection, LOOKAHEAD, 100)
        [(statement, parameters)] = searches
        # The table is so small that reading the whole of it would be no slower.
        connection.exec_driver_sql("SET enable_seqscan = off")
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    assert any("Index Cond: (COALESCE(retry_at, run_at) <=" in line for line in plan), plan


def test_sweep_does_not_bring_back_what_was_withdrawn_while_it_looked(store: Backend) -> None:
    deleted, kept = (store.insert_task(run_at=later(1.9)) for _ in range(2))

    async def scenario(swept: Swept) -> None:
        looking = asyncio.ensure_future(swept.sweep.sweep())
        await asyncio.sleep(0)  # it has asked, and cannot have been answered
        with swept.timer.withdrawn(deleted):
            pass
        assert await looking == 1
        assert (deleted in swept.timer, kept in swept.timer) == (False, True)

    sweeping(store, scenario)


def test_sweep_does_not_bring_what_is_withdrawn_while_it_registers(store: Backend) -> None:
    for number in range(60):  # each is a job of its own, so this takes more than one stretch
        store.insert_task(run_at=later(1.5 + number / 200))
    last = store.insert_task(run_at=later(1.9))

    async def scenario(swept: Swept) -> None:
        registering = asyncio.ensure_future(swept.sweep.sweep())
        while not len(swept.timer):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0)
        assert last not in swept.timer
        with swept.timer.withdrawn(last):
            pass
        assert await registering == 60
        assert last not in swept.timer

    sweeping(store, scenario)


def test_what_is_overdue_does_not_wait_for_what_is_more_urgent_and_due_later(
    store: Backend,
) -> None:
    overdue = store.insert_task(run_at=later(-1))
    ahead = [
        store.insert_task(run_at=later(1.5 + number / 200), priority=1) for number in range(60)
    ]

    async def scenario(swept: Swept) -> None:
        registering = asyncio.ensure_future(swept.sweep.sweep())
        while overdue not in swept.runs.begun:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0)
        assert ahead[-1] not in swept.timer
        assert await registering == 61

    sweeping(store, scenario)


def test_sweep_takes_a_bounded_number_and_comes_again_when_there_is_room(store: Backend) -> None:
    store.insert_tasks(12_000, run_at=later(-1))

    async def scenario(swept: Swept) -> None:
        assert await swept.sweep.sweep() == 5_000
        assert swept.dispatcher.running == 5_000
        looping = asyncio.ensure_future(swept.sweep.run())
        for _ in range(1_000):
            if swept.dispatcher.running == 12_000:
                break
            await asyncio.sleep(0.01)
        assert swept.dispatcher.running == 12_000
        looping.cancel()

    sweeping(store, scenario)


def test_sweep_fires_what_the_timer_has_overslept(store: Backend) -> None:
    task_id = store.insert_task(run_at=later(0.2))

    async def scenario(swept: Swept) -> None:
        assert await swept.sweep.sweep() == 1
        swept.scheduler.pause()
        for _ in range(1_000):
            await swept.sweep.sweep()
            if task_id in swept.dispatcher:
                break
            await asyncio.sleep(0.01)
        await turns()
        assert swept.runs.begun == [task_id]

    sweeping(store, scenario)


def test_sweep_with_no_room_left_fires_what_the_timer_has_overslept(store: Backend) -> None:
    async def scenario(swept: Swept) -> None:
        soon = SystemClock().now() + timedelta(seconds=0.1)
        task = DueTask(soon, new_token(), "probe")
        swept.timer.register(task)
        swept.scheduler.pause()
        instant = soon + timedelta(seconds=4)
        for _ in range(HELD_MAX - 1):
            swept.timer.register(DueTask(instant, new_token(), "probe"))
        for _ in range(1_000):
            assert await swept.sweep.sweep() == 0
            if task.task_id in swept.dispatcher:
                break
            await asyncio.sleep(0.01)
        await turns()
        assert swept.runs.begun == [task.task_id]

    sweeping(store, scenario)


def test_wish_for_a_sweep_during_a_sweep_is_granted_after_it(store: Backend) -> None:
    seen: list[str] = []

    async def scenario(swept: Swept) -> None:
        loop = asyncio.get_running_loop()

        def insert_late(*_: Any) -> None:
            # The rows have been read; nothing of what comes now is among them.
            if not seen:
                seen.append(store.insert_task(run_at=later(0)))
                loop.call_soon_threadsafe(swept.sweep.wake)

        event.listen(swept.engine, "after_cursor_execute", insert_late)
        looping = asyncio.ensure_future(swept.sweep.run())
        for _ in range(1_000):
            if swept.runs.begun:
                break
            await asyncio.sleep(0.01)
        assert swept.runs.begun == seen
        looping.cancel()

    sweeping(store, scenario, interval=3600)


def test_sweep_stops_at_the_number_that_may_be_held(store: Backend) -> None:
    store.insert_tasks(10, run_at=later(-1))

    async def scenario(swept: Swept) -> None:
        instant = SystemClock().now() + timedelta(seconds=4)
        held = [DueTask(instant, new_token(), "probe") for _ in range(HELD_MAX - 4)]
        for task in held:
            swept.timer.register(task)
        assert await swept.sweep.sweep() == 4
        assert await swept.sweep.sweep() == 0
        assert swept.dispatcher.running == 4
        with swept.timer.withdrawn(held[0].task_id):
            pass
        assert await swept.sweep.sweep() == 1

    sweeping(store, scenario)


def test_sweep_outlives_outages_and_mistakes(store: Backend, registry: HandlerRegistry) -> None:
    failure: list[Exception] = []
    failed = 0

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal failed
        if failure and "ORDER BY coalesce" in statement:
            failed += 1
            raise failure[0]

    with running(store, registry) as client, logged("job_scheduler.core.sweep") as heard:
        engine = services_of(client).database.engine
        event.listen(engine, "before_cursor_execute", fail)
        failure.append(OperationalError("SELECT", {}, OSError("no route to host")))
        wait_until(lambda: heard.count("the database is away: nothing new is started"))
        wait_until(lambda: failed == 2)
        failure[0] = RuntimeError("a mistake of ours")
        wait_until(lambda: heard.count("a sweep failed"))
        assert heard.count("RuntimeError: a mistake of ours")
        failure[0] = OperationalError("SELECT", {}, OSError("no route to host"))
        assert finished(client, post(client, run_at=later(0))["task_id"])["status"] == "done"
        inserted = store.insert_task(run_at=later(0))
        failure.clear()
        wait_until(lambda: heard.count("the database is back"))
        assert finished(client, inserted)["status"] == "done"
    assert heard.count("the database is away: nothing new") == 1


def test_health_tells_when_no_sweep_has_succeeded_for_long(
    store: Backend, registry: HandlerRegistry
) -> None:
    clock = FixedClock(SystemClock().now())
    with running(store, registry, clock=clock) as client:
        wait_until(lambda: services_of(client).sweep.last_at)
        event.listen(services_of(client).database.engine, "begin", _refuse)

        def has_noticed() -> bool:
            # More than once: a sweep may be under way, and end after the first time.
            clock.instant += timedelta(minutes=1)
            answer = client.get("/health")
            scheduler = answer.json()["scheduler"]["status"]
            return (answer.status_code, scheduler) == (503, "unavailable")

        wait_until(has_noticed)
        event.remove(services_of(client).database.engine, "begin", _refuse)
        wait_until(lambda: client.get("/health").status_code == 200)


def _refuse(*_: Any) -> None:
    raise OperationalError("BEGIN", {}, OSError("no route to host"))
