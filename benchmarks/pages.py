"""Writes the report, its charts and the raw figures into a directory."""

from pathlib import Path

from benchmarks.catalogue import BURST, CREATE, LATENESS, OURS, PEERS
from benchmarks.chart import Bar, bar_chart
from benchmarks.report import markdown
from benchmarks.results import Results


def write(found: Results, directory: Path) -> Path:
    """Write all; return the report's path."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = charts(found)
    for name, picture in pictures.items():
        (directory / name).write_text(picture)
    found.save(directory / "benchmarks.json")
    page = directory / "benchmarks.md"
    page.write_text(markdown(found, list(pictures)))
    return page


def charts(found: Results) -> dict[str, str]:
    """Return the pictures by the names of their files; none of what was not measured."""
    wanted = (
        (CREATE, "32 connections", "per_s", "Create, 32 at once", "tasks/s, more is better"),
        (BURST, "10,000", "per_s", "10,000 due at one instant", "tasks/s, more is better"),
        (
            *(LATENESS, "200 a second", "p99_ms", "Lateness at 200 a second, p99"),
            "ms, less is better; logarithmic",
        ),
    )
    made = {}
    for work, case, figure, title, note in wanted:
        low_is_good = work == LATENESS
        bars = sorted(
            (
                Bar(peer.title, spread.median, _kind(peer.key, floor=peer.floor))
                for peer in PEERS
                if (spread := found.spread(work, case, peer.key, figure)) is not None
            ),
            key=lambda bar: bar.value if low_is_good else -bar.value,
        )
        if bars:
            picture = bar_chart(title, note, bars, logarithmic=low_is_good)
            made[f"benchmarks-{work}.svg"] = picture
    return made


def _kind(peer: str, *, floor: bool) -> str:
    return "ours" if peer == OURS else "floor" if floor else ""
