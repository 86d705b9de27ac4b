"""The micro-batcher: how batches form, and what becomes of errors."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from job_scheduler.batching import Batcher
from job_scheduler.exceptions import DatabaseUnavailable, Overloaded, Unavailable


class Flushes:
    """Doubles numbers; each flush waits for the gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Callable[[Sequence[int]], Exception | None] = lambda _: None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if (error := self.error(items)) is not None:
            raise error
        return [2 * item for item in items]


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario, within bounds."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


def test_idle_batcher_flushes_what_one_turn_of_the_loop_brings_as_one_batch() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        batcher = Batcher(flushes)
        assert await asyncio.gather(*(batcher.submit(n) for n in range(5))) == [0, 2, 4, 6, 8]
        assert await batcher.submit(7) == 14
        assert flushes.batches == [[0, 1, 2, 3, 4], [7]]

    run(scenario)


def test_what_arrives_during_a_flush_forms_the_next_batch() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        flushes.gate.clear()
        batcher = Batcher(flushes)
        first = batcher.submit(1)
        await asyncio.sleep(0)
        later = [batcher.submit(n) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        assert flushes.batches == [[1]]
        flushes.gate.set()
        assert await asyncio.gather(first, *later) == [2, 4, 6, 8]
        assert flushes.batches == [[1], [2, 3, 4]]

    run(scenario)


def test_batches_are_bounded_and_in_order() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        batcher = Batcher(flushes, max_size=4)
        results = await asyncio.gather(*(batcher.submit(n) for n in range(10)))
        assert results == [2 * n for n in range(10)]
        assert flushes.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    run(scenario)


def test_bad_item_fails_alone() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        flushes.error = lambda items: ValueError("three is bad") if 3 in items else None
        batcher = Batcher(flushes)
        results = await asyncio.gather(
            *(batcher.submit(n) for n in range(5)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["0", "2", "4", "three is bad", "8"]
        assert flushes.batches == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]
        assert await batcher.submit(5) == 10

    run(scenario)


def test_unavailable_is_told_to_all_at_once() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        flushes.error = lambda _: DatabaseUnavailable()
        batcher = Batcher(flushes)
        results = await asyncio.gather(
            *(batcher.submit(n) for n in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [DatabaseUnavailable] * 5
        assert flushes.batches == [[0, 1, 2, 3, 4]]

    run(scenario)


def test_too_many_waiting_items_are_refused_at_once() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        flushes.gate.clear()
        batcher = Batcher(flushes, max_waiting=2)
        taken = [batcher.submit(1)]
        await asyncio.sleep(0)
        taken += [batcher.submit(2), batcher.submit(3)]
        with pytest.raises(Overloaded) as refused:
            batcher.submit(4)
        assert isinstance(refused.value, Unavailable)
        flushes.gate.set()
        assert await asyncio.gather(*taken) == [2, 4, 6]
        assert await batcher.submit(5) == 10

    run(scenario)


@pytest.mark.parametrize("fails", [False, True])
def test_caller_that_gave_up_disturbs_nobody(fails: bool) -> None:
    async def scenario() -> None:
        flushes = Flushes()
        flushes.gate.clear()
        if fails:
            flushes.error = lambda _: DatabaseUnavailable()
        batcher = Batcher(flushes)
        impatient, patient = batcher.submit(1), batcher.submit(2)
        await asyncio.sleep(0)
        impatient.cancel()
        flushes.gate.set()
        [result] = await asyncio.gather(patient, return_exceptions=True)
        assert (isinstance(result, DatabaseUnavailable) and fails) or result == 4
        assert impatient.cancelled()
        flushes.error = lambda _: None
        assert await batcher.submit(3) == 6

    run(scenario)


def test_drain_waits_for_all_that_was_submitted() -> None:
    async def scenario() -> None:
        flushes = Flushes()
        batcher = Batcher(flushes, max_size=1)
        await batcher.drain()
        submitted = [batcher.submit(n) for n in range(3)]
        await batcher.drain()
        assert [future.result() for future in submitted] == [0, 2, 4]

    run(scenario)
