"""What the service logs, as it comes.

pytest's own capture of standard error is for the end of a test: a line that comes just while it is
read is lost.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Heard(logging.Handler):
    """Keeps what is logged, with tracebacks."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, from whichever thread."""
        self.lines.append(self.format(record))

    def count(self, text: str) -> int:
        """How many lines hold a text."""
        return sum(text in line for line in self.lines)


@contextmanager
def logged(name: str = "job_scheduler") -> Iterator[Heard]:
    """Listen to a logger of the service, which is set up already, and not anew meanwhile."""
    heard, logger = Heard(), logging.getLogger(name)
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
