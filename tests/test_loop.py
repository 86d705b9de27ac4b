"""The loop that steps are taken in."""

import asyncio

import pytest

from job_scheduler.core.loop import Loop
from job_scheduler.exceptions import DatabaseUnavailable


class Steps:
    """Fails as it is told, and tells when a number of steps has been taken."""

    def __init__(self, *failures: Exception | None) -> None:
        self.taken = 0
        self._failures = list(failures)
        self._condition = asyncio.Condition()

    async def step(self) -> None:
        """Take one."""
        async with self._condition:
            self.taken += 1
            self._condition.notify_all()
        if self._failures and (failure := self._failures.pop(0)):
            raise failure

    async def reach(self, number: int) -> None:
        """Wait for so many."""
        async with self._condition:
            await asyncio.wait_for(self._condition.wait_for(lambda: self.taken >= number), 10)


def test_step_that_fails_is_logged_and_followed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        steps = Steps(ZeroDivisionError("once"), DatabaseUnavailable())
        loop = asyncio.ensure_future(Loop(steps.step, 0.001, "a look").run())
        await steps.reach(4)
        loop.cancel()
        # An outage is no failure of the step; the sweep tells of it.
        assert [record.message for record in caplog.records] == [
            "a look failed; the next one follows"
        ]

    asyncio.run(scenario())


def test_step_is_taken_at_once_when_the_loop_is_woken() -> None:
    async def scenario() -> None:
        steps = Steps()
        loop = Loop(steps.step, 3600, "a look")
        running = asyncio.ensure_future(loop.run())
        for number in range(1, 4):
            await steps.reach(number)
            loop.wake()
        await steps.reach(4)
        running.cancel()

    asyncio.run(scenario())
