"""What a person types: lengths of time, and members with their values."""

import json
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import typer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PART = r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])"


def duration(text: str) -> timedelta:
    """Return a length of time; a bare number is seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    written = f"{text}s" if text[-1:].isdigit() else text
    if not re.fullmatch(f"(?:{_PART})+", written, re.ASCII):
        raise typer.BadParameter(
            f"{text!r} is no length of time. Write it like 90s, 10m, 1h30m or 2d."
        )
    try:
        parts = re.findall(_PART, written)
        return sum(
            (timedelta(**{_UNITS[unit]: float(count)}) for count, unit in parts), timedelta()
        )
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long. Write it like 90s, 10m or 2d.") from None


def members(given: Iterable[str], option: str) -> dict[str, Any]:
    """Return what `name=value` texts say, and JSON objects among them; the last one holds.

    A value is read as JSON, where it is JSON, and else taken as text.

    Raises:
        typer.BadParameter: one is neither.
    """
    found: dict[str, Any] = {}
    for text in given:
        found.update(
            _object(text, option) if text.lstrip().startswith("{") else _pair(text, option)
        )
    return found


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise typer.BadParameter(f"This is no JSON: {error}.", param_hint=option) from None


def _pair(text: str, option: str) -> dict[str, Any]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise typer.BadParameter(
            f"{text!r} is neither name=value nor a JSON object.", param_hint=option
        )
    try:
        return {name: json.loads(value)}
    except ValueError:
        return {name: value}
