"""The report: Markdown, made of the raw figures alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.catalogue import BATCH, BURST, CREATE, LATENESS, OURS, PEERS, PENDING, SEVERAL
from benchmarks.ratios import all_ratios
from benchmarks.results import Results, Spread

TITLES = {peer.key: peer.title for peer in PEERS}


@dataclass(frozen=True)
class Column:
    """A figure of a work, as it is shown."""

    figure: str
    head: str
    digits: int = 0
    spread: bool = False


@dataclass(frozen=True)
class Section:
    """A work in the report. Rows are in the order of the first column; the best comes first."""

    work: str
    title: str
    text: str
    columns: tuple[Column, ...]
    low_is_good: bool = False


SECTIONS = (
    Section(
        CREATE,
        "Create: one task a call",
        "A service is asked over HTTP by wrk with one thread, a library through its own call, from "
        "one caller and from 32 at once (tasks of an event loop, or threads where the call "
        "blocks). Due in a year; or within the next 5 s, each at an instant of its own.",
        (
            Column("per_s", "tasks/s", spread=True),
            Column("p50_ms", "p50, ms", 2),
            Column("p99_ms", "p99, ms", 2),
        ),
    ),
    Section(
        BATCH,
        "Create: batches of 1,000",
        "One caller, one batch after the other. Each batch is one transaction.",
        (Column("per_s", "tasks/s", spread=True), Column("p50_ms", "a batch, p50 in ms", 1)),
    ),
    Section(
        BURST,
        "Burst: many due at one instant",
        "All are stored before (and ANALYZE is run), then the instant comes. “tasks/s” counts "
        "from that instant until the last one is recorded as finished; “once started” counts from "
        "the first start, and so leaves out what a peer waits until its next poll. A task that "
        "has not run exactly once is counted under “never” or “twice”; where some never ran, the "
        "time is that of the last start. A peer that needs more than 100 s to store the tasks, "
        "or more than 20 s for the small burst, is not asked for the large one.",
        (
            Column("per_s", "tasks/s", spread=True),
            Column("once_started_per_s", "once started, tasks/s"),
            Column("first_start_s", "first start after, s", 2),
            Column("last_start_s", "last start after, s", 2),
            Column("cpu_s", "CPU of the workers, s", 1),
            Column("never", "never"),
            Column("twice", "twice"),
        ),
    ),
    Section(
        LATENESS,
        "Lateness: start minus due",
        "At even times for some seconds; all are stored before, or (for those that do not poll) "
        "each is created one by one 3 s before its time while the others run. The CPU time is that "
        "of the worker's processes, without PostgreSQL's and Redis'.",
        (
            Column("p99_ms", "p99, ms", 1, spread=True),
            Column("p50_ms", "p50, ms", 1),
            Column("worst_ms", "worst, ms", 1),
            Column("cpu_per_task_ms", "CPU a task, ms", 2),
            Column("never", "never"),
            Column("twice", "twice"),
        ),
        low_is_good=True,
    ),
    Section(
        PENDING,
        "Pending: many tasks that are due in a year",
        "Start-up until it says that it works, its memory 3 s later, and lateness at 200 a second. "
        "A peer that needs more than 100 s to store so many is not asked for them.",
        (
            Column("startup_s", "start-up, s", 2, spread=True),
            Column("memory_mb", "memory, MB", spread=True),
            Column("p50_ms", "lateness p50, ms", 1),
            Column("p99_ms", "lateness p99, ms", 1),
        ),
        low_is_good=True,
    ),
    Section(
        SEVERAL,
        "Several instances on one burst",
        "On a PostgreSQL that the benchmark starts itself, with pg_stat_statements. Statements are "
        "counted without BEGIN and COMMIT, from just before the instant until all is recorded; "
        "“inner” ones are those that functions and foreign keys run inside the server.",
        (
            Column("per_s", "tasks/s", spread=True),
            Column("once_started_per_s", "once started, tasks/s"),
            Column("statements_per_task", "statements a task", 3),
            Column("inner_per_task", "inner ones", 2),
            Column("transactions_per_task", "COMMITs a task", 3),
            Column("wal_bytes_per_task", "WAL a task, bytes"),
            Column("never", "never"),
            Column("twice", "twice"),
        ),
    ),
)


def markdown(found: Results, charts: Sequence[str]) -> str:
    """Return the whole report; `charts` are the names of the pictures beside it."""
    parts = [_head(found), _ratios(found)]
    parts += [f"![{name.removesuffix('.svg')}]({name})" for name in charts]
    parts += [_section(found, section) for section in SECTIONS if found.cases(section.work)]
    parts.append(_peers(found))
    return "\n\n".join(parts) + "\n"


def _head(found: Results) -> str:
    runs = max((row.run for row in found.rows), default=0)
    facts = "\n".join(f"- {name}: {value}" for name, value in found.machine.items())
    return (
        "# Benchmarks\n\n"
        "Made by `make bench`, never by hand. The service is measured beside what people would "
        "use instead, in one run on one machine, with the load generator on it too: compare "
        "the rows with each other, not with figures from elsewhere. Each task's handler does "
        "nothing but append a line to a file.\n\n"
        f"{runs} run{'s' * (runs != 1)}. A figure is the median over the runs; where a range "
        f"stands behind it, that is the lowest and the highest.\n\n{facts}"
    )


def _ratios(found: Results) -> str:
    rows = []
    for ratio in all_ratios(found):
        measured = ratio.measured(found)
        shown = "–" if measured is None else _spread(measured, 2) + ratio.unit
        rows.append([ratio.text, ratio.at_least, ratio.aim, shown, ratio.verdict(measured)])
    return "## What it must reach\n\nRatios are taken within each run.\n\n" + table(
        ["Work", "At least", "Aim", "Measured", ""], rows
    )


def _section(found: Results, section: Section) -> str:
    parts = [f"## {section.title}\n\n{section.text}"]
    for case in found.cases(section.work):
        measured: list[tuple[float, list[str]]] = []
        failed = []
        for peer in found.peers(section.work):
            spreads = [
                found.spread(section.work, case, peer, column.figure) for column in section.columns
            ]
            problem = found.problem(section.work, case, peer)
            name = f"**{TITLES.get(peer, peer)}**" if peer == OURS else TITLES.get(peer, peer)
            if spreads[0] is not None:
                cells = [
                    _cell(spread, column)
                    for spread, column in zip(spreads, section.columns, strict=True)
                ]
                measured.append((spreads[0].median, [name, *cells]))
            elif problem:
                failed.append(f"- {name}: not measured. {problem}")
        measured.sort(key=lambda row: row[0], reverse=not section.low_is_good)
        # A column that is empty for all is left out.
        heads = ["", *(column.head for column in section.columns)]
        rows = [cells for _, cells in measured]
        used = [0] + [
            place for place in range(1, len(heads)) if any(row[place] != "–" for row in rows)
        ]
        shown = table(
            [heads[place] for place in used], [[row[place] for place in used] for row in rows]
        )
        parts.append(
            f"### {case}\n\n{shown}" + "".join(["\n\n" + "\n".join(failed)] if failed else [])
        )
    return "\n\n".join(parts)


def _cell(spread: Spread | None, column: Column) -> str:
    if spread is None:
        return "–"
    return (
        _spread(spread, column.digits) if column.spread else f"{spread.median:,.{column.digits}f}"
    )


def _spread(spread: Spread, digits: int) -> str:
    middle, low, high = (
        f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _peers(found: Results) -> str:
    rows = [
        [peer.title, found.versions.get(peer.key, "–"), peer.settings]
        for peer in PEERS
        if peer.key in found.versions
    ]
    text = "## The peers and their settings\n\n" + table(["Peer", "Version", "Settings"], rows)
    missing = [f"- {TITLES.get(key, key)}: {reason}" for key, reason in found.missing.items()]
    return text + ("\n\nNot installed:\n\n" + "\n".join(missing) if missing else "")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; numbers stand at the right."""
    line = (
        "|"
        + "|".join(
            ["---"]
            + ["---:" if _is_number(rows, place) else "---" for place in range(1, len(heads))]
        )
        + "|"
    )
    shown = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in (heads, *rows)
    ]
    return "\n".join([shown[0], line, *shown[1:]])


def _is_number(rows: Sequence[Sequence[str]], place: int) -> bool:
    return all(row[place][:1].isdigit() or row[place][:1] in "-–" for row in rows)
