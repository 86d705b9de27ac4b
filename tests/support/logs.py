"""What the service logs, as it comes.

pytest's own capture of standard error is for the end of a test: a line that comes just while it is
read is lost.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, from whichever thread."""
        self.lines.append(record.getMessage())

    def tell(self, words: str) -> bool:
        """Tell whether a message with these words has come."""
        return any(words in line for line in self.lines)


@contextmanager
def logged() -> Iterator[Messages]:
    """Listen to the service's log, which has been set up, and is not set up again meanwhile."""
    messages, logger = Messages(), logging.getLogger("job_scheduler")
    logger.addHandler(messages)
    try:
        yield messages
    finally:
        logger.removeHandler(messages)
