"""The instances: real processes of the service, each in a session of its own.

Each place in the cluster is kept occupied: a process that ends is followed by another, as a
process manager would see to. One that ends without having been told to, once it was ready, is
an incident.
"""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from job_scheduler.chaos.history import Fault
from job_scheduler.chaos.plan import FaultKind
from job_scheduler.clock import SystemClock

_POLL_SECONDS = 0.05
_PAUSE_SECONDS = 0.5
STOP_SECONDS = 30.0
"""How long a stop in order may take: the grace period and every timeout, one after the other."""

_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH")
_LAST_LINES = 15
_PACKAGES = Path(__file__).resolve().parents[2]


class Instance:
    """One place in the cluster, in which one process after the other runs."""

    def __init__(
        self,
        number: int,
        directory: Path,
        environment: Mapping[str, str],
        stop_patience: float = STOP_SECONDS,
    ) -> None:
        self._number = number
        self._stop_patience = stop_patience
        self._directory = directory
        self._environment = environment
        self._clock = SystemClock()
        self._process: Process | None = None
        self._told_to_end: set[int] = set()
        self._may_run = asyncio.Event()
        self._may_run.set()
        self.url: str | None = None
        """Where its process listens, once that is ready, and as long as it lives."""
        self.ready = asyncio.Event()
        self.launched = 0
        self.incidents: list[str] = []
        self._failure: list[str] = []

    async def keep_running(self) -> None:
        """Start a process, and another one after each that ends; for ever."""
        while True:
            await self._may_run.wait()
            self.launched += 1
            process = self._process = await _launch(self._log, self._environment)
            ended = asyncio.ensure_future(process.wait())
            while not ended.done() and self.url is None:
                await asyncio.wait([ended], timeout=_POLL_SECONDS)
                self.url = _announced(self._log)
            if self.url is not None:
                self.ready.set()
            status = await ended
            was_ready, self.url = self.ready.is_set(), None
            self.ready.clear()
            if process.pid not in self._told_to_end:
                if was_ready:
                    last = "\n  ".join(self.last_lines(_LAST_LINES))
                    self.incidents.append(
                        f"instance {self._number} ended by itself with status {status}:\n  {last}"
                    )
                self._failure = self.last_lines(_LAST_LINES)
                await asyncio.sleep(_PAUSE_SECONDS)

    def last_lines(self, number: int) -> list[str]:
        """Return what was logged last: by its present process, or the former one that failed."""
        lines = self._failure + self._log.read_text().strip().splitlines()
        return lines[-number:]

    async def kill(self, down_for: float) -> Fault:
        """End the process as a power cut does; another one starts `down_for` seconds later."""
        process, begin = self._begin_end()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await self._come_back(down_for)
        return Fault(FaultKind.Kill, begin, begin, process.pid)

    async def pause(self, seconds: float) -> Fault:
        """Hold the process up for a while; it knows nothing of it."""
        process, begin = self._present(), self._now()
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        return Fault(FaultKind.Pause, begin, self._now(), process.pid)

    async def restart(self, down_for: float) -> Fault:
        """End the process in order; another one starts `down_for` seconds later."""
        fault = await self.stop()
        await self._come_back(down_for)
        return replace(fault, kind=FaultKind.Restart)

    async def stop(self) -> Fault:
        """End the process in order, and start no other one."""
        process, begin = self._begin_end()
        await self._end_in_order(process)
        return Fault(FaultKind.Stop, begin, self._now(), process.pid)

    async def close(self) -> None:
        """See to it that no process is left; a paused one goes as well."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _end_in_order(self, process: Process) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_patience)
        except TimeoutError:
            self.incidents.append(
                f"instance {self._number} (process {process.pid}) had not stopped "
                f"{self._stop_patience:g} s after SIGTERM"
            )
            process.kill()
            await process.wait()

    async def _come_back(self, down_for: float) -> None:
        await asyncio.sleep(down_for)
        self._may_run.set()

    def _begin_end(self) -> tuple[Process, float]:
        process = self._present()
        self._told_to_end.add(process.pid)
        self._may_run.clear()
        return process, self._now()

    @property
    def pid(self) -> int:
        """The id of its present or last process."""
        return self._present().pid

    @property
    def _log(self) -> Path:
        return self._directory / f"instance-{self._number}-{self.launched}.log"

    def _present(self) -> Process:
        assert self._process is not None, "nothing was started"  # noqa: S101 (callers see to it)
        return self._process

    def _now(self) -> float:
        return self._clock.now().timestamp()


class Cluster:
    """All instances of a run."""

    def __init__(self, instances: list[Instance]) -> None:
        self.instances = instances

    @property
    def urls(self) -> list[str]:
        """Where those that are ready listen; a paused one is among them, as it would be."""
        return [instance.url for instance in self.instances if instance.url is not None]

    @property
    def incidents(self) -> list[str]:
        """What processes did that they must not do."""
        return [incident for instance in self.instances for incident in instance.incidents]

    async def ready(self) -> None:
        """Wait until every place has a process that is ready."""
        for instance in self.instances:
            await instance.ready.wait()

    def last_words(self) -> str:
        """Return what the instances logged last, on one line."""
        return " | ".join(line for instance in self.instances for line in instance.last_lines(1))

    async def stop(self) -> list[Fault]:
        """End all in order, at once."""
        return await asyncio.gather(*(instance.stop() for instance in self.instances))


@asynccontextmanager
async def cluster(
    number: int,
    directory: Path,
    environment: Mapping[str, str],
    stop_patience: float = STOP_SECONDS,
) -> AsyncIterator[Cluster]:
    """Start `number` instances, all of which are surely gone at the end."""
    instances = [Instance(place, directory, environment, stop_patience) for place in range(number)]
    keepers = [asyncio.create_task(instance.keep_running()) for instance in instances]
    try:
        yield Cluster(instances)
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(instance.close() for instance in instances))


async def _launch(log: Path, environment: Mapping[str, str]) -> Process:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith("COV")
    }
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "job_scheduler", "serve", "--port", "0"),
            cwd=log.parent,  # no .env of the user's is there
            env=inherited | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment),
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,
        )


def _announced(log: Path) -> str | None:
    found = re.search(r"is ready: (\S+)", log.read_text())
    return found.group(1) if found else None
