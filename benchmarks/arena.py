"""Where one peer is measured once: a database, a Redis and a ledger of its own, gone afterwards."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine

from benchmarks.catalogue import Peer
from benchmarks.environments import ROOT, Environment
from benchmarks.programs import Program
from benchmarks.servers import Servers, administration, statement_counter

T = TypeVar("T")
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG")


@dataclass(frozen=True)
class Arena:
    """What the works need of it. Programs are closed in the reverse order of their start."""

    peer: Peer
    ledger: Path
    _command: tuple[str, ...]
    _environ: dict[str, str]
    _directory: Path
    _stack: ExitStack
    _server: Engine | None
    _database: str

    def program(self) -> Program:
        """Start the peer's program once more."""
        return Program(self._command, self._environ, self._directory)

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Keep something open until the end."""
        return self._stack.enter_context(context)

    def settle(self) -> None:
        """Give the planner statistics of what was stored, as a database that is in use has them.

        Without them some peers' statements are ten times slower for the first minute.
        """
        self._maintain("ANALYZE")

    def settle_bulk(self) -> None:
        """After a bulk load: statistics, hint bits, and the pages written out."""
        self._maintain("VACUUM ANALYZE", "CHECKPOINT")

    def _maintain(self, *statements: str) -> None:
        if self._server is not None:
            url = self._server.url.set(database=self._database)
            with administration(url).connect() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)

    def count_statements(self) -> Callable[[int], dict[str, float]]:
        """Begin to count statements and WAL, where the server can; what is returned ends it."""
        if self._server is None:
            return lambda _tasks: {}
        return statement_counter(self._server, self._database)


@contextmanager
def arena(peer: Peer, environment: Environment, servers: Servers) -> Iterator[Arena]:
    """Make it, with the peer's schema, and remove it."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        ledger = directory / "ledger"
        ledger.touch()
        environ = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {
            "PYTHONPATH": str(ROOT),
            "BENCH_LEDGER": str(ledger),
            "BENCH_DIRECTORY": str(directory),
            **dict(peer.environ),
        }
        server, database = None, ""
        if peer.database:
            url = stack.enter_context(servers.database(directory))
            environ["BENCH_DB"] = url.render_as_string(hide_password=False)
            if url.get_backend_name() == "postgresql":
                server, database = administration(url.set(database="postgres")), str(url.database)
        if peer.redis and servers.redis_url is not None:
            environ["BENCH_REDIS"] = stack.enter_context(servers.redis())
        programs = stack.enter_context(ExitStack())
        made = Arena(
            peer, ledger, environment.command, environ, directory, programs, server, database
        )
        with made.program() as program:
            program.ask("setup")
        yield made
