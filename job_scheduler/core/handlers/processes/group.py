"""A program in a session of its own, which is ended together with whatever it has started.

- The program leads a process group, and signals go to the whole group. Its corpse is collected
  last, so that no other group can have got the number meanwhile.
- Its children inherit a mark in their environment. So those that have left for a session of their
  own are found, too (in Linux's /proc), unless they have cleared their environment as well.
- When this process is gone, however it went, Linux kills the group. The program holds one end of a
  pipe, and only this process the other; when that closes, the kernel sends what F_SETSIG says to
  whom F_SETOWN says, see fcntl(2). No code of ours need run in the child, nor be alive there.
  PR_SET_PDEATHSIG would need some, would reach the leader alone, and would strike when the mere
  thread that started it ends. Beyond its reach: a program that closes files it does not know, and
  children in a session of their own. A forked copy of this process would put it off.
- When memory is short, Linux kills the program rather than this process.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from job_scheduler.core.handlers.processes.cancelling import to_the_end
from job_scheduler.core.handlers.processes.marked import kill_marked

_logger = logging.getLogger(__name__)

MARK = "JOB_SCHEDULER_GROUP"
"""The variable of the environment that tells which program's child a process is."""

_ROUNDS = 10
_ROUND_SECONDS = 0.02
"""How often, and how soon again, marked processes are looked for: one may fork meanwhile."""
_FIRST_VICTIM = "1000"


class ProcessGroup:
    """A running program with its children; made on the event loop.

    `ended` brings the exit status of the program itself (negative: the signal that ended it; None:
    someone else has collected it). Wait for it by ``asyncio.wait``: to cancel an ``await`` of the
    future would cancel the future.

    Raises:
        OSError: the program cannot be started.
        ValueError: an argument cannot be passed to a program.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes] | None,
        pass_fds: Sequence[int] = (),
        patience: float = 5.0,
    ) -> None:
        self._patience = patience
        mark = secrets.token_hex(16)
        self._mark = f"{MARK}={mark}".encode()
        lifeline, ours = os.pipe()
        self._lifeline = os.fdopen(ours, "wb", buffering=0)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (what to start is the caller's concern)
                arguments,
                env={**environment, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(lifeline, *pass_fds),
                start_new_session=True,
            )
            self._tie(lifeline)
            loop = asyncio.get_running_loop()
            self.ended: asyncio.Future[int | None] = loop.create_future()
            name = f"process-{self.pid}"
            threading.Thread(target=self._watch, args=[loop], name=name, daemon=True).start()
        except BaseException:
            self._lifeline.close()
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """The program's process id, which is also its group's."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        if not self._lifeline.closed:
            # Nobody may be left, or nobody whom we may kill.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def end(self, grace: float = 0.0, *, strays: bool = True) -> None:
        """Give the program `grace` seconds to end, then kill what is left, and collect it.

        With `strays`, that includes children that have left the group. Being cancelled does not
        cut this short. May be called again, and by several at once.
        """
        await to_the_end(self._end(grace, strays))

    async def _end(self, grace: float, strays: bool) -> None:
        try:
            await asyncio.wait([self.ended], timeout=grace)
        finally:
            self.send(signal.SIGKILL)
        for _ in range(_ROUNDS if strays else 0):
            if not await asyncio.to_thread(kill_marked, self._mark):
                break
            await asyncio.sleep(_ROUND_SECONDS)
        self.ended.add_done_callback(self._collect)
        ended, _ = await asyncio.wait([self.ended], timeout=self._patience)
        if not ended:
            _logger.warning("process %d has not ended %g s after SIGKILL", self.pid, self._patience)

    def _collect(self, _: object) -> None:
        self._process.wait()
        self._lifeline.close()

    def _tie(self, lifeline: int) -> None:
        """Have the kernel see to the group, where it knows how."""
        with suppress(AttributeError, OSError):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -self.pid)
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
        with suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(_FIRST_VICTIM)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        status = _exit_status(self._process)
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(self.ended.set_result, status)


def how_it_ended(status: int | None) -> str:
    """Return in words what became of a program."""
    if status is None:
        return "ended, but how was told to another part of this process"
    if status >= 0:
        return f"ended with exit status {status}"
    names = {number.value: number.name for number in signal.Signals}
    return f"ended by signal {names.get(-status, -status)}"


def _exit_status(process: "subprocess.Popen[bytes]") -> int | None:
    """Wait for a process to end; its corpse stays, so that its number is nobody else's yet."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.wait()
    try:
        # It is None where one does not wait.
        found = cast(os.waitid_result, os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT))
    except ChildProcessError:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
