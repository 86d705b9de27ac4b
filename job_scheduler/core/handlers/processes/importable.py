"""Which functions a worker process can find."""

import inspect
from typing import Any


def importable(function: Any) -> str | None:
    """Say why a worker process cannot find a function by its name; None where it can.

    Whether the name stands for this very function shows only when it is called: while its
    decorators run, its module has no such name yet.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if module is None or name is None or inspect.ismethod(function):
        return "it is an object, not a function of a module"
    if module == "__main__":
        return "it is defined in the program that was started (__main__), which no other can import"
    if "<lambda>" in name:
        return "it is a lambda, which has no name"
    if "<locals>" in name:
        return "it is defined inside another function"
    return None
