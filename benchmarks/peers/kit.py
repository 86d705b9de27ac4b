"""What the Python programs of the peers share. Only the standard library: each has its own venv.

A program is started by the benchmark and reads one command a line from its standard input, as
JSON, and answers each with one line. The commands are the methods of `Peer`:

    {"do": "create", "seconds": 5, "connections": 32, "due": 1790000000.0, "step": 0}
    {"number": 8123, "seconds": 5.0, "p50_ms": 3.1, "p99_ms": 9.8}

What it may need stands in the environment: BENCH_DB (a SQLAlchemy URL), BENCH_REDIS, BENCH_LEDGER
(the file to which each handler appends a line) and BENCH_DIRECTORY (for files of its own).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
DB_URL = os.environ.get("BENCH_DB", "")
LIBPQ_URL = DB_URL.replace("+psycopg2", "")
REDIS_URL = os.environ.get("BENCH_REDIS", "")
LEDGER = os.environ.get("BENCH_LEDGER", os.devnull)
DIRECTORY = Path(os.environ.get("BENCH_DIRECTORY", "."))
SIZE = 1_000
"""How many tasks a batch has."""
START_SECONDS = 60.0
SURE_SECONDS = 0.3
PRELOADED_AT_ONCE = 20_000

Answer: TypeAlias = dict[str, Any]
_ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def ran(number: int) -> None:
    """Note that a task has started: all that a handler does, and the same for every peer."""
    os.write(_ledger, b"%d %.6f\n" % (number, time.time()))


class Peer:
    """The commands. A peer overrides what it can do; blocking calls are fine where it says so."""

    _working: asyncio.Task[Any] | None = None
    threads = False
    """Whether `create_one` blocks, so that concurrent callers are threads."""

    async def setup(self) -> Answer | None:
        """Make the schema in an empty database."""

    async def work(self) -> Answer | None:
        """Start working. May return `pids`, the processes that do it (else: this one)."""

    async def create_one(self, number: int, due: float) -> None:
        """Enqueue one task, durably if the peer can, for the instant `due` (Unix seconds)."""
        raise NotImplementedError

    async def store(self, first: int, due: Sequence[float]) -> Answer | None:
        """Enqueue many tasks, numbered from `first`, in the quickest way that the peer has."""
        raise NotImplementedError

    async def preload(self, number: int, due: float) -> None:
        """Have so many tasks pending, all due much later."""
        for first in range(0, number, PRELOADED_AT_ONCE):
            await self.store(first, [due] * min(PRELOADED_AT_ONCE, number - first))

    async def left(self) -> int:
        """Return how many tasks that are due are not recorded as finished."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop what was started."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working], timeout=5)

    async def keep_working(self, loop: Coroutine[Any, Any, Any]) -> None:
        """Run a worker's own loop beside the commands; raise what it fails with at once."""
        self._working = asyncio.create_task(loop)
        done, _ = await asyncio.wait([self._working], timeout=SURE_SECONDS)
        for ended in done:
            ended.result()

    async def create(self, seconds: float, connections: int, due: float, step: float) -> Answer:
        """Enqueue one by one from some callers at once, for some seconds; `step` apart in time."""
        numbers = iter(range(1_000_000_000))
        taken: list[float] = []
        begin = time.perf_counter()
        pool = ThreadPoolExecutor(connections) if self.threads else None

        async def caller() -> None:
            while time.perf_counter() - begin < seconds:
                number = next(numbers)
                start = time.perf_counter()
                await self.create_one(number, due + number * step)
                taken.append(time.perf_counter() - start)

        def run_caller() -> None:
            asyncio.run(caller())

        if pool is None:
            await asyncio.gather(*(caller() for _ in range(connections)))
        else:
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(loop.run_in_executor(pool, run_caller) for _ in range(connections))
            )
            pool.shutdown()
        return figures(taken, time.perf_counter() - begin)

    async def feed(self, first: int, due: Sequence[float], ahead: float) -> None:
        """Enqueue one by one, each `ahead` seconds before it is due, while earlier ones run."""
        pool = ThreadPoolExecutor(1) if self.threads else None
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number, moment in enumerate(due, first):
                await asyncio.sleep(max(0.0, moment - ahead - time.time()))
                create = self.create_one(number, moment)
                if pool is None:
                    group.create_task(create)
                else:
                    await loop.run_in_executor(pool, asyncio.run, create)

    async def batch(self, seconds: float, due: float) -> Answer:
        """Enqueue batches of SIZE, one after the other, for some seconds."""
        taken: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            await self.store(len(taken) * SIZE, [due] * SIZE)
            taken.append(time.perf_counter() - start)
        return figures(taken, time.perf_counter() - begin, SIZE)


def figures(taken: list[float], seconds: float, size: int = 1) -> Answer:
    """How many were done, and how long one took."""
    taken = sorted(taken)
    return {
        "number": len(taken) * size,
        "seconds": seconds,
        "p50_ms": taken[len(taken) // 2] * 1000,
        "p99_ms": taken[int(len(taken) * 0.99)] * 1000,
    }


def slices(first: int, due: Sequence[float], size: int = SIZE) -> Iterator[list[tuple[int, float]]]:
    """(number, due) in batches."""
    pairs = list(enumerate(due, first))
    for begin in range(0, len(pairs), size):
        yield pairs[begin : begin + size]


class Child:
    """A process that a peer starts beside itself, with its output in a log."""

    def __init__(self, command: Sequence[str | Path], name: str = "child", **environ: str) -> None:
        self.log = DIRECTORY / f"{name}-{os.getpid()}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (the peer's own program)
                [str(part) for part in command],
                cwd=DIRECTORY,
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    async def until(self, look: Callable[[str], Awaitable[Any] | Any]) -> Any:
        """Wait for the first true value of `look`, which is handed the log's text."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            found = look(self.log.read_text(errors="replace"))
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self.log.read_text(errors="replace").strip()[-600:]
                raise RuntimeError(f"{self.log.name}: did not start: {words}")
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """End it in order, or at least surely."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def serve(make: Callable[[], Peer]) -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    with suppress(ImportError):
        import_module("uvloop").install()
    asyncio.run(_serve(make, lambda answer: print(json.dumps(answer), file=answers)))


async def _serve(make: Callable[[], Peer], reply: Callable[[Answer], None]) -> None:
    peer = make()
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    try:
        while line := await lines.get():
            command = json.loads(line)
            try:
                answer = await getattr(peer, command.pop("do"))(**command)
            except Exception as error:  # noqa: BLE001 (whatever it is, the benchmark shows it)
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                reply({"error": f"{type(error).__name__}: {error}"[:600]})
                continue
            reply(answer if isinstance(answer, dict) else {"value": answer})
    finally:
        await peer.close()
