"""Who a process is, and whether another one on this host is gone.

A process id is used again sooner or later (a container's main process is always 1), so a
process is known by its host, its id and the moment it started.
"""

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process among all that ever ran: ``started`` is opaque, equal only for the same one."""

    host: str
    pid: int
    started: str


def own_identity() -> ProcessIdentity:
    """Return the identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(_host(_PROC), pid, process_started(pid) or "unknown")


def is_gone(other: ProcessIdentity, observer: ProcessIdentity) -> bool:
    """Tell whether `other` has certainly ended, as far as `observer`'s process can see.

    False for a process of another host (or another container), of which nothing is known.
    """
    return other.host == observer.host and process_started(other.pid) != other.started


def is_running(other: ProcessIdentity, observer: ProcessIdentity) -> bool:
    """Tell whether `other` certainly exists, as far as `observer`'s process can see."""
    return other.host == observer.host and process_started(other.pid) == other.started


def process_started(pid: int, proc: Path = _PROC) -> str | None:
    """Return when process `pid` started, or None when there is none (or only its corpse).

    On Linux these are clock ticks since boot (proc(5), field 22 of ``stat``), which no step of
    the wall clock can change; elsewhere it is what POSIX ``ps`` prints.
    """
    if proc.exists():
        try:
            stat = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        # The second field is the program's name in parentheses, and may itself contain any.
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    listed = subprocess.run(  # noqa: S603 (a fixed command and a number)
        ["ps", "-o", "lstart=", "-p", str(pid)],  # noqa: S607 (wherever the system has it)
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout.strip() or None


def _host(proc: Path) -> str:
    """Name the space in which a process id has a meaning: machine, boot and pid namespace."""
    parts = [socket.gethostname()]
    # Outside Linux the name has to do.
    with suppress(OSError):
        parts.append((proc / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(str((proc / "self/ns/pid").readlink()))
    return "/".join(parts)
