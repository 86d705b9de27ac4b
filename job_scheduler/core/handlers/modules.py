"""The user's modules of task handlers, which register them as they are imported."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from job_scheduler.exceptions import ConfigurationError


def import_task_modules(names: Sequence[str]) -> None:
    """Import the user's modules of task handlers, also from the working directory.

    Raises:
        ConfigurationError: there is no such module.
    """
    if names and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # The module was found; one that it imports was not.
            raise ConfigurationError(
                f"Configuration error: TASK_MODULES: there is no module {name!r} in the Python "
                "path or the working directory."
            ) from None
