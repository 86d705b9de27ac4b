"""A receiver of webhooks on this machine, which keeps what comes and answers as it is told."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Received:
    """A request as it came; the names of `headers` are in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body's document."""
        return json.loads(self.body)


class Receiver:
    """Answers each request with the next of `statuses`, and with the last one from then on.

    `answer` and `headers` are what it says then, if that matters; `times` tells when each request
    came (seconds).
    """

    def __init__(self, statuses: Sequence[int] = (200,)) -> None:
        self.requests: list[Received] = []
        self.times: list[float] = []
        self.answer: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self._statuses = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            """Takes what comes."""

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def _take(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received = Received(self.command, self.path, headers, body)
                status = receiver._next_status()
                receiver.times.append(time.monotonic())
                receiver.requests.append(received)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                document = receiver.answer or {"received": len(receiver.requests)}
                answer = json.dumps(document).encode()
                self.send_header("Content-Length", str(len(answer)))
                for header in receiver.headers.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET = do_PUT = _take  # noqa: N815 (the server looks for these names)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _next_status(self) -> int:
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def __enter__(self) -> "Receiver":
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
