"""Bar charts as SVG, without a library: they read in light and in dark, and as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _NAME, _VALUE = 760, 250, 90
_ROW, _BAR, _TOP = 26, 16, 54
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 } .note { fill: #57606a; font-size: 12px }
  .bar { fill: #8c959f } .ours { fill: #0969da } .floor { fill: #d0d7de } .name { text-anchor: end }
  .own { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #8d96a0 }
    .bar { fill: #6e7681 } .ours { fill: #4493f8 } .floor { fill: #3d444d }
  }"""


@dataclass(frozen=True)
class Bar:
    """One row; `kind` is `ours`, `floor` or empty."""

    name: str
    value: float
    kind: str = ""


def bar_chart(title: str, note: str, bars: Sequence[Bar], *, logarithmic: bool = False) -> str:
    """Return an SVG; the rows are drawn in the order given."""
    height = _TOP + _ROW * len(bars) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title, _QUOTE)}">',
        f"<style>{_STYLE}\n</style>",
        f'<text class="title" x="10" y="22">{escape(title)}</text>',
        f'<text class="note" x="10" y="42">{escape(note)}</text>',
    ]
    scale = _scale([bar.value for bar in bars], logarithmic=logarithmic)
    for place, (bar, share) in enumerate(zip(bars, scale, strict=True)):
        y = _TOP + place * _ROW
        width = max(1.0, share * (_WIDTH - _NAME - _VALUE - 20))
        bold = " own" if bar.kind == "ours" else ""
        parts += [
            f'<text class="name{bold}" x="{_NAME}" y="{y + 13}">{escape(bar.name)}</text>',
            f'<rect class="{bar.kind or "bar"}" x="{_NAME + 8}" y="{y}" width="{width:.1f}" '
            f'height="{_BAR}" rx="2"/>',
            f'<text class="value{bold}" x="{_NAME + 14 + width:.1f}" y="{y + 13}">'
            f"{_number(bar.value)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


_QUOTE = {'"': "&quot;"}


def _scale(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """Each value as a share of the longest bar."""
    if not values:
        return []
    if not logarithmic:
        return [value / max(*values, 1e-9) for value in values]
    # From a whole power of ten below the smallest, so that it has a bar as well.
    positive = [max(value, 0.01) for value in values]
    low = math.floor(math.log10(min(positive))) - 0.2
    high = max(math.log10(max(positive)), low + 1)
    return [(math.log10(value) - low) / (high - low) for value in positive]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
