"""Takes the steps one by one. What fails is noted with its reason, and the next one follows."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import environments, results
from benchmarks.arena import arena
from benchmarks.catalogue import SEVERAL, Peer
from benchmarks.environments import CannotInstall, Environment
from benchmarks.plan import SLOW_SECONDS, Step
from benchmarks.postgresql import own_postgresql
from benchmarks.programs import PeerFailed
from benchmarks.progress import Progress
from benchmarks.results import Results, Row
from benchmarks.servers import NoServer, Servers
from benchmarks.works import WORKS, Figures


class Runner:
    """One run of the benchmark."""

    def __init__(self, servers: Servers, save_to: Path) -> None:
        self._servers = servers
        self._save_to = save_to
        self._ready: dict[str, Environment] = {}
        self.found = Results(machine=results.machine() | servers.versions())

    def prepare(self, peers: Iterable[Peer]) -> None:
        """Install the peers; those that cannot be had are noted."""
        for peer in peers:
            try:
                self._ready[peer.key] = environments.prepare(peer)
            except CannotInstall as error:
                self.found.missing[peer.key] = str(error)
            else:
                self.found.versions[peer.key] = self._ready[peer.key].version

    def take_all(self, steps: Sequence[Step]) -> Results:
        """Measure; the figures are saved after each step."""
        steps = [step for step in steps if step.peer.key in self._ready]
        progress = Progress(steps)
        with ExitStack() as stack:
            counting: Servers | NoServer | None = None
            for place, step in enumerate(steps):
                progress.show(place)
                if step.case.work == SEVERAL and counting is None:
                    counting = self._counting_servers(stack)
                begin = time.monotonic()
                figures, problem = self._take(step, counting)
                seconds = time.monotonic() - begin
                progress.took(step, seconds)
                case = step.case
                row = Row(step.run, case.work, case.label, step.peer.key, seconds, figures, problem)
                self.found.rows.append(row)
                self.found.save(self._save_to)
        progress.end()
        return self.found

    def _take(self, step: Step, counting: Servers | NoServer | None) -> tuple[Figures, str]:
        if self._was_slow(step):
            return {}, f"more than {SLOW_SECONDS:.0f} s for {step.case.larger_than}"
        servers = self._servers
        if step.case.work == SEVERAL and counting is not None:
            if isinstance(counting, NoServer):
                return {}, str(counting)
            servers = counting
        try:
            with arena(step.peer, self._ready[step.peer.key], servers) as made:
                return WORKS[step.case.work](made, **step.case.arguments), ""
        except (PeerFailed, NoServer) as error:
            return {}, str(error)
        except Exception as error:  # noqa: BLE001 (it stops this step, and the report shows it)
            return {}, f"{type(error).__name__}: {error}"

    def _was_slow(self, step: Step) -> bool:
        smaller = [
            row
            for row in self.found.rows
            if (row.run, row.work, row.peer) == (step.run, step.case.work, step.peer.key)
            and row.case == step.case.larger_than
        ]
        return any(
            row.problem or float(row.figures.get("recorded_s", 0)) > SLOW_SECONDS for row in smaller
        )

    def _counting_servers(self, stack: ExitStack) -> Servers | NoServer:
        if self._servers.db_url is None:
            return self._servers
        try:
            url = stack.enter_context(own_postgresql())
        except NoServer as missing:
            return missing
        return Servers(url, self._servers.redis_url)
