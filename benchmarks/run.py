"""Takes the steps one by one. What fails is noted with its reason, and the next one follows."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import environments, results
from benchmarks.arena import arena
from benchmarks.catalogue import SEVERAL, Peer
from benchmarks.environments import CannotInstall, Environment
from benchmarks.plan import TOO_SLOW, Step
from benchmarks.postgresql import own_postgresql
from benchmarks.programs import PeerFailed
from benchmarks.progress import Progress
from benchmarks.results import Results, Row
from benchmarks.servers import NoServer, Servers
from benchmarks.works import WORKS, Figures


class Runner:
    """One run of the benchmark."""

    def __init__(self, servers: Servers, save_to: Path, former: Results | None = None) -> None:
        self._servers = servers
        self._save_to = save_to
        self._ready: dict[str, Environment] = {}
        self.found = former or Results()
        # What failed is tried again.
        self.found.rows = [row for row in self.found.rows if not row.problem]
        self.found.missing.clear()
        self.found.machine = results.machine() | servers.versions()

    def prepare(self, peers: Iterable[Peer]) -> None:
        """Install the peers; those that cannot be had are noted."""
        for peer in peers:
            try:
                self._ready[peer.key] = environments.prepare(peer)
            except CannotInstall as error:
                self.found.missing[peer.key] = str(error)
            else:
                self._note_version(peer.key, self._ready[peer.key].version)

    def _note_version(self, key: str, version: str) -> None:
        former = self.found.versions.get(key, "")
        if version not in former.split(", then "):
            self.found.versions[key] = f"{former}, then {version}" if former else version

    def take_all(self, steps: Sequence[Step]) -> Results:
        """Measure what was not measured before; the figures are saved after each step."""
        before = {(row.run, row.work, row.case, row.peer) for row in self.found.rows}
        steps = [
            step
            for step in steps
            if step.peer.key in self._ready
            and (step.run, step.case.work, step.case.label, step.peer.key) not in before
        ]
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
        if slowness := self._slowness(step):
            return {}, slowness
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

    def _slowness(self, step: Step) -> str:
        """Return why the peer is spared this case, or nothing."""
        if not step.case.larger_than:
            return ""
        figure, limit, words = TOO_SLOW[step.case.work]
        smaller = [
            row
            for row in self.found.rows
            if (row.run, row.work, row.peer) == (step.run, step.case.work, step.peer.key)
            and row.case == step.case.larger_than
        ]
        slow = any(row.problem or float(row.figures.get(figure, 0)) > limit for row in smaller)
        return f"{words} {step.case.larger_than}" if slow else ""

    def _counting_servers(self, stack: ExitStack) -> Servers | NoServer:
        if self._servers.db_url is None:
            return self._servers
        try:
            url = stack.enter_context(own_postgresql())
        except NoServer as missing:
            return missing
        return Servers(url, self._servers.redis_url)
