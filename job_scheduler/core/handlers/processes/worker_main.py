"""The program of a worker process: it calls plain handlers, one after the other, as it is told.

Its main thread runs them. A second one listens to the service meanwhile, a third one reports their
progress.
"""

import faulthandler
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, BinaryIO

from job_scheduler.core.handlers.context import Progress, RunContext
from job_scheduler.core.handlers.modules import import_task_modules
from job_scheduler.core.handlers.processes.frames import (
    Answer,
    Progressed,
    Raised,
    Returned,
    Stop,
    answer,
    next_request,
    unpack,
)
from job_scheduler.core.handlers.raised import Fail
from job_scheduler.core.handlers.words import undone
from job_scheduler.logger import configure_logging
from job_scheduler.strict_json import as_result, clean_text

_REPORT_SECONDS = 0.05
"""The least time between two reports of progress."""
_MESSAGE_MAX_LENGTH = 10_000


def main(
    descriptor: int,
    memory: int | None,
    level: str,
    modules: Sequence[str],
    max_result_bytes: int,
) -> None:
    """Serve the connection `descriptor` until it ends; `memory` bounds the address space."""
    os.set_inheritable(descriptor, False)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    configure_logging(level)
    import_task_modules(modules)
    with socket.socket(fileno=descriptor) as connection:
        Line(connection, max_result_bytes).serve()


class Line:
    """The worker's end of the connection, and what is done for each request."""

    def __init__(self, connection: socket.socket, max_result_bytes: int) -> None:
        self._connection = connection
        self._max_result_bytes = max_result_bytes
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._telling = threading.Lock()
        self._calls: SimpleQueue[tuple[RunContext, bytes] | None] = SimpleQueue()
        self._current: RunContext | None = None
        self._unsaid: Progressed | None = None
        self._has_progressed = threading.Event()

    def serve(self) -> None:
        """Answer calls until the connection ends."""
        for work in (self._listen, self._report):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        while (call := self._calls.get()) is not None:
            said = outcome_of(*call, self._max_result_bytes)
            if os.getpid() != self._pid:
                # A child that the handler has forked, and that comes back from it as well: it is
                # not for it to answer.
                os._exit(0)
            self._current = None
            self._tell_progress()
            if not self._send(said):
                # The service is gone; or the handler has closed what it does not know, and it would
                # wait for ever.
                os._exit(1)

    def _listen(self) -> None:
        with self._connection.makefile("rb") as stream:
            self._take_requests(stream)
        if self._current is not None:
            # The service is gone. Where the kernel has not seen to it, this group ends by itself.
            os.killpg(os.getpgrp(), signal.SIGTERM)
        self._calls.put(None)

    def _take_requests(self, stream: BinaryIO) -> None:
        while (message := next_request(stream)) is not None:
            if isinstance(message, Stop):
                context = self._current
                if context is not None and context.token == message.token:
                    context.ask_to_stop()
            else:
                token = message.run[3]
                self._current = RunContext(*message.run, report=self._reporter(token))
                self._calls.put((self._current, message.work))

    def _reporter(self, token: str) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            message = progress.message
            if message is not None:
                message = clean_text(str(message)[:_MESSAGE_MAX_LENGTH])
            self._unsaid = Progressed(token=token, fraction=progress.fraction, message=message)
            self._has_progressed.set()

        return report

    def _report(self) -> None:
        """Send how far a run has come: only the latest, however often it says so."""
        while True:
            self._has_progressed.wait()
            self._has_progressed.clear()
            self._tell_progress()
            threading.Event().wait(_REPORT_SECONDS)

    def _tell_progress(self) -> None:
        """Send what is not said yet; when this returns, it is: by whoever was at it."""
        with self._telling:
            unsaid, self._unsaid = self._unsaid, None
            if unsaid is not None:
                self._send(unsaid)

    def _send(self, message: Answer) -> bool:
        try:
            with self._sending:
                self._connection.sendall(answer(message))
        except OSError:
            return False
        return True


def outcome_of(context: RunContext, work: bytes, max_result_bytes: int) -> Returned | Raised:
    """Call a handler, and return what it came to."""
    final: tuple[type[BaseException], ...] = ()
    try:
        function, arguments, context_name, final = unpack(work)
        if context_name is not None:
            arguments[context_name] = context
        result = _result_of(function(**arguments), max_result_bytes)
        return Returned(token=context.token, result=result)
    except BaseException as error:  # noqa: BLE001 (whatever the user's code raises)
        return Raised.of(context.token, error, final)


def _result_of(value: object, max_bytes: int) -> Any:
    if (complaint := undone(value)) is not None:
        raise Fail(complaint)
    return as_result(value, max_bytes)
