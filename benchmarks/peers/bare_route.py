"""A floor: FastAPI and uvicorn with the route of bare_app.py."""

import re
import sys
from typing import ClassVar

from benchmarks.peers.kit import ROOT, Answer, Child, serve
from benchmarks.peers.over_http import HttpPeer


class BareRoute(HttpPeer):
    """One uvicorn process with uvloop and httptools, without a log of requests."""

    app: ClassVar = "benchmarks.peers.bare_app:app"

    def __init__(self) -> None:
        self._child: Child | None = None

    async def work(self) -> Answer:
        """Start it."""
        command = [sys.executable, "-m", "uvicorn", self.app, "--port", "0", "--no-access-log"]
        command += ["--loop", "uvloop", "--http", "httptools"]
        self._child = Child(command, "uvicorn", PYTHONPATH=str(ROOT))
        found = await self._child.until(lambda log: re.search(r"running on (\S+:\d+)", log))
        self.url = found.group(1)
        return {"pids": [self._child.pid]}

    async def close(self) -> None:
        """Stop it."""
        if self._child is not None:
            self._child.stop()


if __name__ == "__main__":
    serve(BareRoute)
