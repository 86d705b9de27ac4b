"""The benchmarks: what their report makes of raw figures, and one small burst for real."""

import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient

from benchmarks import ledger, plan, ratios
from benchmarks.arena import arena
from benchmarks.catalogue import BURST, CREATE, LATENESS, OURS, PEERS, PENDING, WORKS, chosen
from benchmarks.chart import Bar, bar_chart
from benchmarks.environments import prepare
from benchmarks.ledger import Start
from benchmarks.pages import charts, write
from benchmarks.peers.bare_app import app
from benchmarks.plan import Case
from benchmarks.progress import Progress
from benchmarks.report import markdown, table
from benchmarks.results import Results, Row, Spread
from benchmarks.run import Runner
from benchmarks.servers import Servers
from benchmarks.works import burst
from tests.support.app import Backend, running, task_body

PROGRAMS = Path(plan.__file__).parent / "peers"


def burst_row(run: int, peer: str, per_s: float, **figures: float) -> Row:
    """A burst of 10,000, as it is noted."""
    return Row(run, BURST, "10,000", peer, 9.0, {"per_s": per_s, "never": 0, "twice": 0, **figures})


@pytest.fixture
def found() -> Results:
    """The figures of two runs: a peer that is quicker, one that failed, one that is missing."""
    rows = [
        burst_row(1, OURS, 4_000),
        burst_row(2, OURS, 6_000),
        burst_row(1, "pgqueuer", 8_000, twice=3),
        burst_row(2, "pgqueuer", 6_000),
        burst_row(1, "apscheduler", 1_000),
        Row(1, BURST, "10,000", "celery", 1.0, {}, "work: it | broke\nhere"),
        Row(1, LATENESS, "200 a second", OURS, 9.0, {"p99_ms": 2.5, "p50_ms": 1.0}),
    ]
    versions = {OURS: "commit abc", "pgqueuer": "pgqueuer 1.6.0"}
    return Results({"Python": "3.11"}, versions, {"arq": "no such package"}, rows)


def test_report_puts_the_best_first_whoever_it_is(found: Results) -> None:
    section = markdown(found, []).partition("### 10,000")[2]
    names = re.findall(r"^\| ([^|]+) \| [\d]", section, re.MULTILINE)[:3]
    assert names == ["pgqueuer", "**Job Scheduler Service**", "APScheduler, SQLAlchemyJobStore"]


def test_report_shows_median_and_range(found: Results) -> None:
    assert "| 5,000 (4,000 to 6,000) |" in markdown(found, [])


def test_report_shows_what_failed_and_what_is_missing_with_the_reason(found: Results) -> None:
    report = markdown(found, ["one.svg"])
    assert "- Celery: not measured. work: it | broke" in report
    assert "- arq: no such package" in report
    assert "(one.svg)" in report


def test_ratios_are_taken_within_a_run(found: Results) -> None:
    beside = {ratio.text: ratio for ratio in ratios.all_ratios(found)}
    pgqueuer = beside["burst of 10,000, one instance, beside pgqueuer, its defaults"]
    assert pgqueuer.measured(found) == Spread(0.75, 0.5, 1.0)
    assert pgqueuer.verdict(pgqueuer.measured(found)) == "**missed**"
    store = beside["burst of 10,000, one instance, beside APScheduler's store"]
    assert store.measured(found) == Spread(4.0, 4.0, 4.0)
    assert store.verdict(store.measured(found)) == "reached"
    late = beside["lateness at 200 a second, p99 of the service"]
    assert late.verdict(late.measured(found)) == "aim reached"
    missing = beside["the same beside the tutorial pattern"]
    assert missing.verdict(missing.measured(found)) == "not measured"


def test_report_can_be_made_again_from_its_raw_figures(found: Results, tmp_path: Path) -> None:
    page = write(found, tmp_path / "docs")
    again = Results.load(page.with_name("benchmarks.json"))
    assert again == found
    assert page.read_text() == markdown(again, list(charts(again)))
    assert all(page.with_name(name).is_file() for name in charts(found))


@pytest.mark.parametrize("logarithmic", [False, True])
def test_chart_is_well_formed_and_its_bars_fit(*, logarithmic: bool) -> None:
    bars = [Bar("ours <&>", 4_000, "ours"), Bar("slow", 0.5), Bar("none", 0)]
    root = ElementTree.fromstring(  # noqa: S314 (our own text)
        bar_chart('A "title"', "ms", bars, logarithmic=logarithmic)
    )
    drawn = root.findall("{http://www.w3.org/2000/svg}rect")
    widths = [float(bar.attrib["width"]) for bar in drawn]
    assert widths == sorted(widths, reverse=True)
    ends = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in drawn]
    assert max(ends) < float(root.attrib["width"])


def test_table_keeps_its_columns() -> None:
    lines = table(["a", "b"], [["x|y", "1"], ["z\n", "–"]]).splitlines()
    assert lines == ["| a | b |", "|---|---:|", "| x\\|y | 1 |", "| z  | – |"]


def test_every_peer_has_its_program_and_known_works() -> None:
    assert {peer.key for peer in PEERS} >= {peer.home for peer in PEERS if peer.home}
    for peer in PEERS:
        assert (PROGRAMS / peer.program).is_file()
        assert set(peer.works) <= set(WORKS)


def test_plan_lets_all_peers_do_a_case_before_the_next_and_turns_their_order() -> None:
    peers = chosen(["service", "psycopg2"])
    cases = (Case(CREATE, "a", {}, 1), Case(CREATE, "b", {}, 1), Case(LATENESS, "c", {}, 1))
    steps = plan.steps(cases, peers, [CREATE, LATENESS], 2)
    order = [(step.run, step.case.label, step.peer.key) for step in steps]
    assert order[:3] == [(1, "a", "service"), (1, "a", "psycopg2"), (1, "b", "service")]
    assert order[4] == (1, "c", "service")
    assert order[5:7] == [(2, "a", "psycopg2"), (2, "a", "service")]


def test_plan_spares_a_peer_that_would_store_for_ever() -> None:
    case = Case(PENDING, "1,000,000", {"tasks": 1_000_000}, 1)
    (procrastinate, service) = chosen(["procrastinate"]) + chosen(["service"])
    assert not plan.fits(case, procrastinate)
    assert plan.fits(case, service)


def test_ledger_counts_what_ran_never_or_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text("2 11.000\n0 10.001\n2 12.5\n")
    starts = ledger.read(path)
    assert starts[0] == Start(0, 10.001)
    assert ledger.counts(starts, 4) == {"never": 2, "twice": 1}
    late = ledger.lateness(starts, [10.0, 10.0, 10.9])
    assert late["worst_ms"] == pytest.approx(1600)
    assert late["min_ms"] == pytest.approx(1)


def test_progress_learns_how_long_a_step_takes(capsys: pytest.CaptureFixture[str]) -> None:
    steps = plan.steps((Case(BURST, "10", {"tasks": 10}, 100),), chosen([OURS]), [BURST], 3)
    progress = Progress(steps, terminal=True)
    progress.show(0)
    progress.took(steps[0], 10)
    assert progress.seconds_left(1) == 20
    progress.end()
    shown = capsys.readouterr().err
    assert "1/3, about 5:00 left; run 1: burst 10: Job Scheduler Service" in shown
    assert shown.endswith("\n")


def test_what_fails_does_not_stop_the_run(tmp_path: Path) -> None:
    save_to = tmp_path / "results.json"
    runner = Runner(Servers(None, None), save_to)
    (ours,) = chosen([OURS])
    runner.prepare([ours])
    found = runner.take_all(plan.steps((Case(BURST, "?", {"no": 1}, 1),), [ours], [BURST], 1))
    assert "unexpected keyword" in found.rows[0].problem
    assert Results.load(save_to).rows == found.rows


def test_run_goes_on_where_it_was_stopped(found: Results, tmp_path: Path) -> None:
    (ours,) = chosen([OURS])
    runner = Runner(Servers(None, None), tmp_path / "results.json", found)
    runner.prepare([ours])
    before = [row for row in found.rows if not row.problem]
    case = Case(BURST, "10,000", {"no": 1}, 1)
    runner.take_all(plan.steps((case,), [ours], [BURST], 3))
    # Two runs were there.
    assert [row.run for row in runner.found.rows[len(before) :]] == [3]
    assert runner.found.rows[: len(before)] == before
    assert re.fullmatch(r"commit abc, then .+", runner.found.versions[OURS])


@pytest.mark.parametrize(("recorded_s", "spared"), [(10.5, True), (9.5, False)])
def test_peer_that_is_slow_is_spared_what_is_larger(
    tmp_path: Path, recorded_s: float, *, spared: bool
) -> None:
    (ours,) = chosen([OURS])
    former = Results(rows=[burst_row(1, OURS, 900, recorded_s=recorded_s)])
    runner = Runner(Servers(None, None), tmp_path / "results.json", former)
    runner.prepare([ours])
    case = Case(BURST, "60,000", {"no": 1}, 1, larger_than="10,000")
    found = runner.take_all(plan.steps((case,), [ours], [BURST], 1))
    assert (found.rows[-1].problem == "took more than 10 s for 10,000") is spared


@pytest.mark.slow
def test_small_burst_on_sqlite_runs_each_task_once() -> None:
    (ours,) = chosen([OURS])
    begin = time.monotonic()
    with arena(ours, prepare(ours), Servers(None, None)) as made:
        figures = burst(made, tasks=50)
        directory = made.ledger.parent
    assert (figures["never"], figures["twice"], figures["left"]) == (0, 0, 0)
    assert 0 < float(figures["last_start_s"]) < time.monotonic() - begin
    assert not directory.exists()


def test_floor_of_a_create_answers_as_the_service_does(store: Backend) -> None:
    body = task_body(payload={"a": 1})
    with running(store) as client, TestClient(app) as bare:
        ours, theirs = client.post("/tasks", json=body), bare.post("/tasks", json=body)
    assert (ours.status_code, theirs.status_code) == (201, 201)
    own = {"task_id", "created_at", "updated_at"}
    assert {name: value for name, value in ours.json().items() if name not in own} == {
        name: value for name, value in theirs.json().items() if name not in own
    }
