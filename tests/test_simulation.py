"""The simulation of a burst: what must hold of any, and how well it agrees with the measured."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.costs import MEASURED, Costs, Measured
from benchmarks.dispatch import (
    CLAIMS_MAX,
    LOCKS_MAX,
    MAX_RUNNING,
    PLACES,
    PYTHON,
    RECORDS_MAX,
    REDIS,
    SLICE,
)
from benchmarks.dispatch import RECORDING_MAX as SIMULATED_RECORDING_MAX
from benchmarks.machine import DISK, Machine, Process
from benchmarks.simulation import PAGE, picture, simulate, tables
from job_scheduler.batching import Batcher
from job_scheduler.config import Settings
from job_scheduler.core import tasks, timer
from job_scheduler.core.dispatcher import RECORDING_MAX
from job_scheduler.core.lanes import most_of_one

TOLERANCE = 0.10
"""Two runs of one and the same burst differed by more."""


@pytest.fixture(scope="module")
def shown() -> str:
    """What the command prints."""
    return tables()


def done_at(cores: float, *works: Sequence[tuple[str, float]]) -> float:
    """When a machine has done all of these, begun at once."""
    machine = Machine(cores)

    def process(steps: Sequence[tuple[str, float]]) -> Process:
        yield from steps

    for work in works:
        machine.go_on(process(work))
    machine.run()
    return machine.now


def test_a_lane_has_one_core_and_lanes_share_what_there_is() -> None:
    assert done_at(4, [("a", 100)], [("a", 100)]) == pytest.approx(200)
    assert done_at(4, [("a", 100)], [("b", 100)]) == pytest.approx(100)
    assert done_at(1, [("a", 100)], [("b", 100)]) == pytest.approx(200)
    assert done_at(1.5, [("a", 100)], [("b", 100)], [("c", 100)]) == pytest.approx(200)


def test_commits_take_no_core_and_those_that_wait_share_the_next_write() -> None:
    assert done_at(1, [(DISK, 50)], [("a", 50)]) == pytest.approx(50)
    late = [("a", 10), (DISK, 50)], [("b", 10), (DISK, 50)]
    assert done_at(2, [(DISK, 50)], *late) == pytest.approx(100)


@pytest.mark.parametrize("own_share", [False, True])
@pytest.mark.parametrize(("instances", "number"), [(1, 0), (1, 1), (3, 1_234), (8, 999), (9, 5)])
def test_every_task_runs_once(instances: int, number: int, *, own_share: bool) -> None:
    outcome = simulate(instances, 2, number, own_share=own_share)
    assert sorted(outcome.ran) == list(range(number))


def test_the_same_burst_goes_the_same_way() -> None:
    assert simulate(3, 2, 3_000) == simulate(3, 2, 3_000)


@pytest.mark.parametrize("point", MEASURED)
def test_it_agrees_with_what_was_measured(point: Measured) -> None:
    outcome = simulate(point.instances, 2, point.tasks, own_share=True)
    assert outcome.per_second == pytest.approx(point.per_second, rel=TOLERANCE)
    assert outcome.cpu(PYTHON) == pytest.approx(point.cpu, rel=TOLERANCE)


def test_as_measured_a_second_instance_helps_a_little_and_a_third_no_more() -> None:
    one, two, three = (simulate(each, 2, own_share=True).per_second for each in (1, 2, 3))
    assert one < two < 1.25 * one
    assert one < three < two


@pytest.mark.parametrize("instances", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("own_share", [False, True])
def test_more_cores_never_slow_it(instances: int, *, own_share: bool) -> None:
    rates = [
        simulate(instances, cores, 3_000, own_share=own_share).per_second
        for cores in (1, 1.5, 2, 3, 4, 6, 8, 16)
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_one_instance_has_one_core_of_python_however_many_there_are() -> None:
    outcome = simulate(1, 64)
    assert outcome.cpu(PYTHON) < outcome.seconds
    without_waiting = Costs(
        redis_lock=0, postgresql_claim=0, postgresql_record=0, postgresql_plan=0, commit=0
    )
    quickest = simulate(1, 64, costs=without_waiting)
    assert quickest.seconds == pytest.approx(quickest.cpu(PYTHON))
    assert quickest.per_second > outcome.per_second


@pytest.mark.parametrize("instances", [1, 3, 8])
def test_no_part_does_more_than_it_can(instances: int) -> None:
    for cores in (1, 2, 8):
        shares = simulate(instances, cores, 3_000).shares()
        assert all(0 < share <= 1 + 1e-9 for share in shares.values()), shares


def test_every_instance_asks_redis_for_every_task_unless_they_share() -> None:
    asked = Costs().redis_lock * 10_000 / 1e6
    assert 3.8 * asked < simulate(4, 8).cpu(REDIS) <= 4 * asked
    # Whoever has run its own share tries those of the others.
    assert asked < simulate(4, 8, own_share=True).cpu(REDIS) < 1.3 * asked


def test_redis_bounds_many_instances_that_all_try_all() -> None:
    costs = Costs(redis_lock=14)
    bound = 1e6 / (8 * costs.redis_lock)
    assert 0.9 * bound < simulate(8, 64, costs=costs).per_second < bound
    assert simulate(8, 64, costs=costs, own_share=True).per_second > 2 * bound


def test_the_disk_is_asked_twice_for_each_batch() -> None:
    outcome = simulate(1, 8, 1_000)
    commits = outcome.used[DISK] / (Costs().commit / 1e6)
    fewest = 1_000 / PLACES + 1_000 / RECORDS_MAX
    assert fewest <= commits <= 1.2 * fewest
    slower = simulate(1, 8, 1_000, costs=replace(Costs(), commit=4_000))
    assert slower.per_second < outcome.per_second / 1.2


def test_it_goes_by_the_bounds_of_the_service() -> None:
    assert Settings.model_fields["max_running"].default == MAX_RUNNING
    assert most_of_one(MAX_RUNNING) == PLACES
    assert timer._SLICE == SLICE
    assert RECORDING_MAX == SIMULATED_RECORDING_MAX
    assert RECORDS_MAX == tasks._RECORDS_MAX
    default = inspect.signature(Batcher).parameters["max_size"].default
    assert default == LOCKS_MAX == CLAIMS_MAX


def test_the_page_shows_what_the_command_prints(shown: str) -> None:
    assert shown in PAGE.read_text()
    assert PAGE.with_suffix(".svg").read_text() == picture()


@pytest.mark.parametrize(
    ("instances", "cores", "part"), [(1, 16, PYTHON), (8, 4, "cores"), (8, 16, REDIS)]
)
def test_the_table_names_the_narrowest_part(
    instances: int, cores: int, part: str, shown: str
) -> None:
    rate = f"{simulate(instances, cores).per_second:,.0f}"
    assert re.search(rf"^\| {instances} \|.* {rate} \({part} \d+%\) \|", shown, re.MULTILINE)


def test_the_picture_has_a_bar_for_each_row_of_predictions(shown: str) -> None:
    root = ElementTree.fromstring(picture())  # noqa: S314 (our own text)
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    rows = re.findall(r"^\| \d \| .*\(.*\) \|$", shown, re.MULTILINE)
    assert len(bars) == len(rows) > 0
