"""Logging: one line an event, times in UTC, to standard error."""

import logging
import logging.config
import time

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"


class UtcFormatter(logging.Formatter):
    """Writes every time in UTC, as the API does."""

    converter = staticmethod(time.gmtime)


def configure_logging(level: str) -> None:
    """Send this package's log from `level` up, and the warnings of others, to standard error.

    Repeating the call changes nothing; loggers that others have set up (uvicorn's) stay.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": UtcFormatter,
                    "format": _FORMAT,
                    "datefmt": "%Y-%m-%dT%H:%M:%S",
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {
                "job_scheduler": {"level": level, "handlers": ["stderr"], "propagate": False},
                # It logs each job at INFO, and each burst's lateness at WARNING.
                "apscheduler": {"level": "ERROR", "handlers": ["stderr"], "propagate": False},
            },
        }
    )
