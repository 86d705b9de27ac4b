"""Commands: programs that a task names with their arguments, without a shell."""

import asyncio
import errno
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from job_scheduler.clock import in_iso_8601
from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.processes.group import ProcessGroup, how_it_ended
from job_scheduler.core.handlers.processes.tail import Tail
from job_scheduler.core.handlers.raised import Fail, RetryLater

_TAIL_BYTES = 64 * 1024
_TAIL_IN_WORDS = 2_000
_GRACE_SECONDS = 1.0
"""Between SIGTERM and SIGKILL, when a command is cut off."""
_LAST_WORDS_SECONDS = 1.0
"""How long a command's children may hold its output open after its end."""
_PASSED_ON = re.compile("PATH|HOME|USER|LANG|LC_[A-Z]+|TZ|TMPDIR")
_FOR_WANT_OF_ROOM = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class Commands:
    """Runs the programs that `allow` names: by a bare name, found in the PATH, or an absolute path.

    They get `environment`, and what tells them which run they are. It is the PATH in there that
    counts, as it stands when the service starts.
    """

    def __init__(self, allow: Sequence[str], environment: Mapping[str, str]) -> None:
        self._allow = allow
        self._environment = environment

    def refusal(self, command: Sequence[str]) -> str | None:
        """Say why a command is not run here; None if it is."""
        if not self._allow:
            return "Commands are switched off: COMMAND_ALLOW, in the configuration, names none."
        if command[0] not in self._allow:
            names = ", ".join(self._allow)
            return f"The program {command[0]!r} is not allowed here. Allowed: {names}."
        return None

    async def run(self, command: Sequence[str], context: RunContext) -> dict[str, Any]:
        """Run a command to its end; return its exit status, and the ends of what it has written.

        What it has left in its process group ends with it. When this call is cancelled, it is
        terminated, and killed a second later, with all that it has started.

        Raises:
            Fail: it is not allowed, or there is no such program.
            RetryLater: its exit status was not 0, or a signal ended it.
        """
        if (refusal := self.refusal(command)) is not None:
            raise Fail(refusal)
        with Tail(_TAIL_BYTES) as stdout, Tail(_TAIL_BYTES) as stderr:
            group = self._start(command, context, stdout, stderr)
            try:
                await asyncio.wait([group.ended])
                await asyncio.wait([stdout.complete, stderr.complete], timeout=_LAST_WORDS_SECONDS)
            except asyncio.CancelledError:
                group.send(signal.SIGTERM)
                await group.end(_GRACE_SECONDS)
                raise
            await group.end(strays=False)
            return _result(group.ended.result(), stdout, stderr)

    def _start(
        self, command: Sequence[str], context: RunContext, stdout: Tail, stderr: Tail
    ) -> ProcessGroup:
        environment = {
            **self._environment,
            "JOB_SCHEDULER_TASK_ID": context.task_id,
            "JOB_SCHEDULER_ATTEMPT": str(context.attempt),
            "JOB_SCHEDULER_SCHEDULED_FOR": in_iso_8601(context.scheduled_for),
        }
        try:
            group = ProcessGroup(command, environment, stdout.write_end, stderr.write_end)
        except OSError as error:
            words = f"the command could not be started: {error.strerror}"
            if error.errno in _FOR_WANT_OF_ROOM:
                raise RetryLater(None, words) from error
            raise Fail(words) from error
        except ValueError as error:  # A row written by hand may hold anything.
            raise Fail(f"the command could not be started: {error}") from error
        stdout.write_end.close()
        stderr.write_end.close()
        return group


def environment_of_commands(
    environment: Mapping[str, str], passed_on: Sequence[str]
) -> dict[str, str]:
    """Return what commands get of the service's own environment: little, and `passed_on`."""
    return {
        name: value
        for name, value in environment.items()
        if name in passed_on or _PASSED_ON.fullmatch(name)
    }


def _result(status: int | None, stdout: Tail, stderr: Tail) -> dict[str, Any]:
    last_words = stderr.text()
    if status != 0:
        complaint = last_words.strip()[-_TAIL_IN_WORDS:]
        how = f"the command {how_it_ended(status)}"
        failure = RetryLater(None, f"{how}: {complaint}" if complaint else how)
        failure.details = last_words
        raise failure
    result = {"exit_status": status, "stdout": stdout.text(), "stderr": last_words}
    return result | {"truncated": True} if stdout.truncated or stderr.truncated else result
