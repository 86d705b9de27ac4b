"""Load over HTTP: wrk where it is installed, else a small generator of ours."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from benchmarks.peers.kit import DIRECTORY, Answer, Peer, figures

CONNECTIONS_TO_STORE = 32

# Each request has its own number and its own instant, as those of real callers have.
_WRK = """
local number = 0
request = function()
  local due = %(due)r + number * %(step)r
  local whole = math.floor(due)
  local text = os.date("!%%Y-%%m-%%dT%%H:%%M:%%S", whole) ..
    string.format(".%%06dZ", math.floor((due - whole) * 1000000))
  local body = '{"name":"noop","run_at":"' .. text .. '","payload":{"number":' .. number .. '}}'
  number = number + 1
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
end
done = function(summary, latency, requests)
  io.write(string.format(
    '\\n{"number":%%d,"seconds":%%f,"p50_ms":%%f,"p99_ms":%%f,"bad":%%d}\\n',
    summary.requests, summary.duration / 1000000, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, summary.errors.status + summary.errors.connect +
    summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


class HttpPeer(Peer):
    """A service with `POST /tasks`; `url` is set once it works."""

    url = ""
    _idle: "list[Connection] | None" = None

    async def create_one(self, number: int, due: float) -> None:
        """Post one, over a connection that is idle."""
        if self._idle is None:
            self._idle = []
        connection = self._idle.pop() if self._idle else Connection(self.url)
        await connection.post("/tasks", body(number, due))
        self._idle.append(connection)

    async def create(self, seconds: float, connections: int, due: float, step: float) -> Answer:
        """Post for some seconds."""
        if not self.url:
            await self.work()
        wrk = shutil.which("wrk")
        if wrk is None:
            return await self._create(seconds, connections, due, step)
        script = DIRECTORY / "create.lua"
        script.write_text(_WRK % {"due": due, "step": step})
        command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["--latency", "--timeout", "20s", "-s", str(script), f"{self.url}/tasks"]
        done = await asyncio.to_thread(
            subprocess.run, command, check=True, capture_output=True, text=True
        )
        answer: Answer = json.loads(done.stdout.strip().splitlines()[-1])
        if answer["bad"]:
            raise RuntimeError(f"{answer['bad']} of {answer['number']} requests were not answered")
        return answer | {"load": "wrk"}

    async def store(self, first: int, due: Sequence[float]) -> Answer | None:
        """Post one by one, over a few connections."""
        await post_all(self.url, enumerate_bodies(first, due))
        return None

    async def _create(self, seconds: float, connections: int, due: float, step: float) -> Answer:
        taken: list[float] = []
        begin = time.perf_counter()
        numbers = iter(range(1_000_000_000))

        async def caller() -> None:
            async with Connection(self.url) as connection:
                while time.perf_counter() - begin < seconds:
                    number = next(numbers)
                    start = time.perf_counter()
                    await connection.post("/tasks", body(number, due + number * step))
                    taken.append(time.perf_counter() - start)

        await asyncio.gather(*(caller() for _ in range(connections)))
        return figures(taken, time.perf_counter() - begin) | {"load": "built-in"}


def body(number: int, due: float) -> bytes:
    """The request for one task."""
    return json.dumps(task(number, due)).encode()


def task(number: int, due: float) -> Answer:
    """A task as POST /tasks takes it."""
    run_at = datetime.fromtimestamp(due, UTC).isoformat()
    return {"name": "noop", "run_at": run_at, "payload": {"number": number}}


def enumerate_bodies(first: int, due: Sequence[float]) -> list[bytes]:
    """The requests for many tasks."""
    return [body(number, moment) for number, moment in enumerate(due, first)]


async def post_all(url: str, bodies: Sequence[bytes], path: str = "/tasks") -> None:
    """Post all of them, over a few connections at once."""
    waiting = iter(bodies)

    async def caller() -> None:
        async with Connection(url) as connection:
            for one in waiting:
                await connection.post(path, one)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONNECTIONS_TO_STORE, len(bodies))):
            group.create_task(caller())


class NotCreated(RuntimeError):
    """The service has answered something else than 2xx."""

    def __init__(self, status: int, text: bytes) -> None:
        super().__init__(f"HTTP {status}: {text[:300].decode(errors='replace')}")
        self.status = status


class Connection:
    """One kept-alive HTTP/1.1 connection: enough for JSON, and a tenth of a client's cost."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def post(self, path: str, content: bytes) -> bytes:
        """Post JSON and return the answer's body."""
        if self._streams is None or self._streams[0].at_eof():  # closed: it was idle for too long
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(None, 2)[1])
        length = 0
        for line in head.lower().splitlines():
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answer = await reader.readexactly(length)
        if not 200 <= status < 300:
            raise NotCreated(status, answer)
        return answer
