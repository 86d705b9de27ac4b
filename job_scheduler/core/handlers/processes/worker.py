"""One worker process, as the service sees it."""

import asyncio
import json
import os
import socket
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from typing import Any

from job_scheduler.core.handlers.context import RunContext
from job_scheduler.core.handlers.processes.frames import (
    Call,
    Progressed,
    Raised,
    Returned,
    Stop,
    next_answer,
    request,
)
from job_scheduler.core.handlers.processes.group import ProcessGroup, how_it_ended
from job_scheduler.core.handlers.raised import RetryLater

# The user's modules are imported from wherever this process imports them.
_PROGRAM = """
import json, sys
sys.path[:], *arguments = json.loads(sys.argv.pop())
from job_scheduler.core.handlers.processes.worker_main import main
main(*arguments)
"""
_STANDARD_ERROR = 2
_LAST_WORDS_SECONDS = 1.0
"""Between the end of a worker's connection and that of its process, whichever comes first."""


class Worker:
    """A worker process; `calls` is how many it has been given."""

    def __init__(self, group: ProcessGroup, reader: StreamReader, writer: StreamWriter) -> None:
        self._group = group
        self._reader = reader
        self._writer = writer
        self.calls = 0

    @classmethod
    async def start(
        cls, memory: int | None, log_level: str, modules: Sequence[str], max_result_bytes: int
    ) -> "Worker":
        """Start a worker: `memory` bounds its address space, `modules` are the user's.

        Raises:
            OSError: there is no room for another process.
        """
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        arguments = [
            *(sys.path, descriptor),
            *(memory, log_level, list(modules), max_result_bytes),
        ]
        with theirs:
            try:
                group = ProcessGroup(
                    # -u: what a handler prints is seen at once, and not lost when it is killed.
                    [sys.executable, "-u", "-c", _PROGRAM, json.dumps(arguments, default=str)],
                    os.environ | _allocator(memory),
                    stdout=_STANDARD_ERROR,
                    stderr=None,
                    pass_fds=[descriptor],
                )
            except BaseException:
                ours.close()
                raise
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            await group.end()
            raise
        return cls(group, reader, writer)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return not self._group.ended.done()

    async def call(self, work: bytes, context: RunContext) -> Returned | Raised:
        """Have it run a handler, see ``frames.pack``; it does one after the other.

        Raises:
            RetryLater: it has ended, or lost the connection, before the handler was through.
        """
        self.calls += 1
        run = (context.task_id, context.name, context.attempt, context.token)
        self._send(Call((*run, context.scheduled_for, context.deadline), work))
        context.on_stop(lambda: self._send(Stop(context.token)))
        listening = asyncio.ensure_future(self._listen(context))
        try:
            ends: list[asyncio.Future[Any]] = [listening, self._group.ended]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([listening], timeout=_LAST_WORDS_SECONDS)
            said = listening.result() if listening.done() else None
        finally:
            listening.cancel()
        if said is not None:
            return said
        await asyncio.wait([self._group.ended], timeout=_LAST_WORDS_SECONDS)
        how = "lost its connection" if self.is_alive else how_it_ended(self._group.ended.result())
        raise RetryLater(None, f"its worker process {how} before the handler had finished")

    async def end(self, grace: float = 0.0, *, strays: bool = True) -> None:
        """Close the connection, upon which it ends; see ``ProcessGroup.end``."""
        self._writer.close()
        await self._group.end(grace, strays=strays)

    async def _listen(self, context: RunContext) -> Returned | Raised | None:
        """Return what the run comes to; None where nothing more is heard of it."""
        while True:
            try:
                said = await next_answer(self._reader)
            except (EOFError, ConnectionError, ValueError):
                return None
            if said.token != context.token:
                continue  # A word on the run before, which has come late.
            if not isinstance(said, Progressed):
                return said
            context.progress(said.fraction, said.message)

    def _send(self, message: Call | Stop) -> None:
        if not self._writer.is_closing():
            self._writer.write(request(message))


def _allocator(memory: int | None) -> dict[str, str]:
    # glibc reserves 64 MiB of address space for each thread, unless all share one arena.
    return {} if memory is None else {"MALLOC_ARENA_MAX": "1"}
