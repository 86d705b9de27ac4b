"""The peers: what is installed for each, how it is set, and what it is asked to do.

To add one: its program in `peers/` (see `peers/kit.py`, `peers/kit.mjs`) and an entry here.
"""

from dataclasses import dataclass, field

CREATE, BATCH, BURST, LATENESS, PENDING, SEVERAL = WORKS = (
    *("create", "batch", "burst"),
    *("lateness", "pending", "several"),
)
OURS, BARE_ROUTE, TUTORIAL, PSYCOPG2 = "service", "bare_route", "tutorial", "psycopg2"


@dataclass(frozen=True)
class Peer:
    """One peer. `program` is a file in `peers/`; without `packages` it runs in our own venv."""

    key: str
    title: str
    program: str
    works: tuple[str, ...]
    settings: str
    packages: tuple[str, ...] = ()
    store_rate: float = 500.0
    """About how many tasks a second it stores at its best: how far ahead a burst must be due."""
    database: bool = True
    redis: bool = False
    sqlite: bool = False
    floor: bool = False
    http: bool = False
    version: str = field(default="")
    """The package whose version is shown; the first of `packages` unless told."""

    @property
    def node(self) -> bool:
        """Whether it is a program for Node."""
        return self.program.endswith(".mjs")


PEERS: tuple[Peer, ...] = (
    Peer(
        OURS,
        "Job Scheduler Service",
        "service.py",
        WORKS,
        "as it comes, one process, PostgreSQL and Redis, MAX_RUNNING 100",
        store_rate=10_000,
        redis=True,
        sqlite=True,
        http=True,
    ),
    Peer(
        BARE_ROUTE,
        "bare FastAPI route (validates, stores nothing)",
        "bare_route.py",
        (CREATE,),
        "`async def`, the same request and response, uvicorn with uvloop and httptools",
        database=False,
        floor=True,
        http=True,
        version="fastapi",
    ),
    Peer(
        PSYCOPG2,
        "bare psycopg2",
        "psycopg2_floor.py",
        (CREATE, BATCH, BURST),
        "one INSERT a commit; multi-row INSERTs; claim and complete by 100, one connection",
        store_rate=10_000,
        floor=True,
        version="psycopg2-binary",
    ),
    Peer(
        TUTORIAL,
        "the tutorial pattern",
        "tutorial.py",
        (CREATE, BURST, LATENESS),
        "FastAPI, SQLAlchemy session, APScheduler in memory, Redis lock; all defaults",
        redis=True,
        http=True,
        version="fastapi",
    ),
)


def chosen(keys: list[str] | None) -> list[Peer]:
    """Return the peers that are named, in our order; all of them for None.

    Raises:
        KeyError: there is no such peer.
    """
    known = {peer.key: peer for peer in PEERS}
    return [known[key] for key in known if keys is None or key in keys] + [
        known[key] for key in keys or () if key not in known
    ]
