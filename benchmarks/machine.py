"""A machine, simulated: work that competes for its cores, and commits for its disk."""

from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

DISK = "commits"
_NONE_LEFT = 1e-6

Process = Generator[tuple[str, float], None, None]
"""What is done one after the other: in which lane, and for how many microseconds of CPU; on `DISK`
it is a commit, which takes time and no CPU."""


@dataclass
class Job:
    """Work in a lane."""

    left: float
    process: Process


class Machine:
    """Cores that are shared by lanes, each of which does one job at a time; and a disk."""

    def __init__(self, cores: float) -> None:
        self.now = 0.0
        self.used: dict[str, float] = defaultdict(float)
        """Microseconds of work done, by lane."""
        self._cores = cores
        self._lanes: dict[str, deque[Job]] = defaultdict(deque)
        self._to_commit: deque[Job] = deque()

    def go_on(self, process: Process) -> None:
        """Let a process take its next step."""
        if (step := next(process, None)) is not None:
            where, work = step
            lane = self._to_commit if where == DISK else self._lanes[where]
            lane.append(Job(work, process))

    def run(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Go on until nothing is left to be done, or it is over."""
        writing: list[Job] = []
        while not is_over():
            if not writing:  # one write for all that have come during the last
                writing = [*self._to_commit]
                self._to_commit.clear()
            busy = {lane: jobs[0] for lane, jobs in self._lanes.items() if jobs}
            if not busy and not writing:
                return
            speed = min(1.0, self._cores / max(1, len(busy)))
            waits = [job.left / speed for job in busy.values()] + [job.left for job in writing]
            step = min(waits)
            self.now += step
            for lane, job in busy.items():
                job.left -= step * speed
                self.used[lane] += step * speed
            for job in writing:
                job.left -= step
            self.used[DISK] += step if writing else 0.0
            ended = [self._lanes[lane].popleft() for lane, job in busy.items() if _is_done(job)]
            ended += [job for job in writing if _is_done(job)]
            writing = [job for job in writing if not _is_done(job)]
            for job in ended:
                self.go_on(job.process)


def _is_done(job: Job) -> bool:
    return job.left < _NONE_LEFT
