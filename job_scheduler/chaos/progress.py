"""How far a run is: a line that changes on a terminal, else a line every few seconds."""

import asyncio
import sys
from collections.abc import Callable

import typer

_ON_TERMINAL_SECONDS = 0.2
_ELSEWHERE_SECONDS = 5.0


class Progress:
    """Shows what `line` tells, on standard error."""

    def __init__(self, line: Callable[[], str], *, terminal: bool | None = None) -> None:
        self._line = line
        self._terminal = sys.stderr.isatty() if terminal is None else terminal

    async def run(self) -> None:
        """Show it now and then, for ever."""
        while True:
            self.show()
            await asyncio.sleep(_ON_TERMINAL_SECONDS if self._terminal else _ELSEWHERE_SECONDS)

    def show(self) -> None:
        """Show it once."""
        if self._terminal:
            # Back to the begin of the line, and clear it to its end.
            typer.echo(f"\r{self._line()}\x1b[K", err=True, nl=False, color=True)
        else:
            typer.echo(self._line(), err=True)

    def end(self) -> None:
        """Show it for the last time."""
        self.show()
        if self._terminal:
            typer.echo(err=True)
