"""Plain text for a terminal: tables that fit its width, and nothing that could control it."""

import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_GAP = "  "
_LEAST = 8
"""A column is cut down to so many cells, and no further."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; where a table has no room, `cut` ones are cut, and `spare` ones left out."""

    title: str
    cut: bool = False
    spare: bool = False


def terminal_width() -> int | None:
    """Return how many cells a line has; None: as many as it takes, since nobody looks at it."""
    return shutil.get_terminal_size((0, 0)).columns or None


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> list[str]:
    """Return the lines of a table with its titles, which fit `width` cells if that can be done."""
    cells = [
        [column.title for column in columns],
        *([printable(text) for text in row] for row in rows),
    ]
    widths = [max(map(cell_width, texts)) for texts in zip(*cells, strict=True)]
    widths = _fitted(columns, widths, width)
    return [
        _GAP.join(
            _padded(text, room) for text, room in zip(texts, widths, strict=True) if room
        ).rstrip()
        for texts in cells
    ]


def printable(text: str) -> str:
    """Return a text in one line, without what could control a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def cell_width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _fitted(columns: Sequence[Column], widths: list[int], width: int | None) -> list[int]:
    """Return how wide each column is to be (0: it is left out); the last ones give way first."""
    for place in reversed(range(len(columns))):
        used = [room + len(_GAP) for room in widths if room]
        over = sum(used) - len(_GAP) - (width or sum(used))
        if over > 0 and columns[place].cut:
            room = max(_LEAST, widths[place] - over)
            left_out = columns[place].spare and room > widths[place] - over
            widths[place] = 0 if left_out else min(widths[place], room)
    return widths


def _padded(text: str, room: int) -> str:
    if cell_width(text) > room:
        while cell_width(text) >= room:
            text = text[:-1]
        text += "…"
    return text + " " * (room - cell_width(text))
