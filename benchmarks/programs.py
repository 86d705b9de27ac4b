"""A peer's program as the benchmark sees it: asked and answered in JSON lines, surely ended."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Answer = dict[str, Any]
CLOSE_SECONDS = 15
_TICKS = os.sysconf("SC_CLK_TCK")


class PeerFailed(Exception):
    """The peer could not do what it was asked; the text says why."""


class Program:
    """One running program, in a session of its own: Ctrl-C reaches the benchmark alone."""

    def __init__(
        self, command: tuple[str, ...], environ: Mapping[str, str], directory: Path
    ) -> None:
        self._log = directory / f"program-{len(list(directory.iterdir()))}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (a program of `peers/`)
                command,
                cwd=directory,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.pids: list[int] = [self._process.pid]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(patient=error is None)

    def ask(self, do: str, timeout: float = 120.0, **arguments: Any) -> Answer:
        """Have it do something, and return its answer.

        Raises:
            PeerFailed: it could not, or took longer than `timeout` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise PeerFailed(f"{do}: no answer within {timeout:.0f} s") from None
        except OSError:
            line = ""
        if not line:
            words = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerFailed(f"{do}: the program has ended: {' '.join(words)[:300]}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{do}: {answer['error']}")
        return answer

    def work(self) -> Answer:
        """Have it start working, and remember the processes that do it."""
        answer = self.ask("work")
        self.pids = answer.get("pids", self.pids)
        return answer

    def cpu_seconds(self) -> float:
        """The processor time that the working processes have used so far, children included."""
        return sum(_cpu(pid) for pid in _family(self.pids))

    def megabytes(self) -> float:
        """The memory of the working processes; what they share is counted once."""
        return sum(_memory(pid) for pid in _family(self.pids))

    def close(self, *, patient: bool = True) -> None:
        """End it, and whatever it has started."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS if patient else 2)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(CLOSE_SECONDS)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")


def _family(pids: list[int]) -> set[int]:
    """The processes, and all that descend from them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _stat(pid: int) -> list[str]:
    # The second field is the name in brackets, and may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _cpu(pid: int) -> float:
    with suppress(OSError):
        # utime, stime, and those of children that have ended.
        return sum(int(field) for field in _stat(pid)[11:15]) / _TICKS
    return 0.0


def _memory(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
