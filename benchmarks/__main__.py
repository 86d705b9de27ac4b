"""python -m benchmarks: measures this service beside its peers, and writes the report.

The figures go to .bench/results.json after each step; a full run writes docs/benchmarks.md, its
charts and docs/benchmarks.json. Ctrl-C stops it, and removes what it has made on the servers.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from benchmarks import plan
from benchmarks.catalogue import PEERS, WORKS, chosen
from benchmarks.environments import HOME, ROOT
from benchmarks.pages import write
from benchmarks.results import Results
from benchmarks.run import Runner
from benchmarks.servers import Servers

DB_URL = "postgresql+psycopg2://postgres@127.0.0.1/postgres"
REDIS_URL = "redis://127.0.0.1:6379/0"


RAW = HOME / "results.json"


def main() -> None:
    """Measure, or make the report again."""
    options = parser().parse_args()
    try:
        run(options)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. --continue goes on; until now: --report {RAW}\n")
        raise SystemExit(130) from None


def run(options: argparse.Namespace) -> None:
    """Do what the options say."""
    if options.report:
        print(write(Results.load(options.report), options.output or ROOT / "docs"))
        return
    if shutil.which("wrk") is None:
        sys.stderr.write(
            "wrk is not installed (Debian, Ubuntu: apt install wrk): a slower load generator in "
            "Python takes its place, and lowers what is measured over HTTP.\n"
        )
    sqlite = options.db_url == "sqlite"
    servers = Servers(None if sqlite else options.db_url, options.redis_url or None)
    peers = [peer for peer in chosen(options.peers) if peer.sqlite or not sqlite]
    known = plan.QUICK if options.quick else plan.FULL
    cases = [case for case in known if options.cases is None or case.label in options.cases]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runner = Runner(servers, RAW, _former(options))
    runner.found.plan = _plan(options)
    sys.stderr.write("Preparing the peers (the first time this takes some minutes) …\n")
    runner.prepare(peers)
    steps = plan.steps(cases, peers, options.works, options.runs)
    found = runner.take_all(steps)
    partial = options.quick or options.peers or options.cases or sqlite
    whole = not partial and options.works == list(WORKS)
    print(write(found, options.output or (ROOT / "docs" if whole else HOME / "report")))


def _plan(options: argparse.Namespace) -> str:
    size = "quick" if options.quick else "full"
    return f"{size}, on {'SQLite' if options.db_url == 'sqlite' else 'PostgreSQL'}"


def _former(options: argparse.Namespace) -> Results | None:
    """Return what a run that was stopped has measured, when this one is to go on with it."""
    if not options.proceed or not RAW.exists():
        return None
    former = Results.load(RAW)
    if former.plan != _plan(options):
        sys.exit(f"The run that was stopped was another one ({former.plan}): leave out --continue.")
    return former


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    names = [peer.key for peer in PEERS]
    made.add_argument("--peers", nargs="+", choices=names, help="default: all")
    made.add_argument("--cases", nargs="+", metavar="LABEL", help='such as "10,000"; default: all')
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    made.add_argument(
        "--db-url",
        default=os.environ.get("BENCH_DB_URL", DB_URL),
        help="a PostgreSQL server's SQLAlchemy URL (or BENCH_DB_URL), or: sqlite",
    )
    made.add_argument("--redis-url", default=os.environ.get("BENCH_REDIS_URL", REDIS_URL))
    made.add_argument(
        "--continue", dest="proceed", action="store_true", help="keep what is measured already"
    )
    made.add_argument("--report", type=Path, metavar="JSON", help="measure nothing; report these")
    made.add_argument("--output", type=Path, help="where the report goes")
    return made


if __name__ == "__main__":
    main()
