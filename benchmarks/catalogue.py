"""The peers: what is installed for each, how it is set, and what it is asked to do.

To add one: its program in `peers/` (see `peers/kit.py`, `peers/kit.mjs`) and an entry here.
"""

from dataclasses import dataclass

CREATE, BATCH, BURST, LATENESS, PENDING, SEVERAL = WORKS = (
    *("create", "batch", "burst"),
    *("lateness", "pending", "several"),
)
OURS, BARE_ROUTE, TUTORIAL, PSYCOPG2 = "service", "bare_route", "tutorial", "psycopg2"
APSCHEDULER, PROCRASTINATE, CELERY = "apscheduler", "procrastinate", "celery"
PGQUEUER, PGQUEUER_100 = "pgqueuer", "pgqueuer_100"
_PGQUEUER = ("pgqueuer>=1,<2", "asyncpg", "uvloop")
_GRAPHILE = ("graphile-worker@^0.17", "pg@^8")  # the last that runs on Node 20


@dataclass(frozen=True)
class Peer:
    """One peer. `program` is a file in `peers/`; without `packages` it runs in our own venv."""

    key: str
    title: str
    program: str
    works: tuple[str, ...]
    settings: str
    packages: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    """For its program."""
    store_rate: float = 500.0
    """About how many tasks of different instants it stores a second, at its best: so much before
    the first is due they must be stored."""
    bulk_rate: float = 0.0
    """The same for tasks of one instant; `store_rate` unless told."""
    database: bool = True
    redis: bool = False
    sqlite: bool = False
    floor: bool = False
    home: str = ""
    """The key of the peer whose environment it shares."""
    version: str = ""
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
        "as it comes, one process, PostgreSQL and Redis, MAX_RUNNING 200",
        store_rate=10_000,
        redis=True,
        sqlite=True,
    ),
    Peer(
        BARE_ROUTE,
        "bare FastAPI route (validates, stores nothing)",
        "bare_route.py",
        (CREATE,),
        "`async def`, the same request and response, uvicorn with uvloop and httptools",
        database=False,
        floor=True,
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
        store_rate=200,
        redis=True,
        version="fastapi",
    ),
    Peer(
        APSCHEDULER,
        "APScheduler, SQLAlchemyJobStore",
        "apscheduler.py",
        (CREATE, BURST, LATENESS),
        "AsyncIOScheduler and AsyncIOExecutor, `misfire_grace_time=None`; enqueues in its own loop",
        ("apscheduler>=3.11,<4", "sqlalchemy>=2,<3", "psycopg2-binary"),
        store_rate=800,
    ),
    Peer(
        PROCRASTINATE,
        "Procrastinate",
        "procrastinate.py",
        WORKS,
        "concurrency 16, polling 5 s (default)",
        ("procrastinate>=3,<4", "psycopg[binary]"),
        store_rate=800,
        bulk_rate=6_000,
    ),
    Peer(
        PGQUEUER,
        "pgqueuer",
        "pgqueuer.py",
        WORKS,
        "asyncpg and uvloop, batches of 10 (default)",
        _PGQUEUER,
        store_rate=10_000,
    ),
    Peer(
        PGQUEUER_100,
        "pgqueuer, batch 100",
        "pgqueuer.py",
        (BURST, LATENESS, SEVERAL),
        "asyncpg and uvloop, batches of 100",
        _PGQUEUER,
        environ=(("BENCH_BATCH", "100"),),
        store_rate=10_000,
        home=PGQUEUER,
    ),
    Peer(
        CELERY,
        "Celery",
        "celery.py",
        (CREATE, BURST, LATENESS),
        "ETA, Redis (not durable), prefork 2, results kept",
        ("celery[redis]>=5,<6",),
        store_rate=350,  # its worker takes each task in as soon as it is sent
        database=False,
        redis=True,
    ),
    Peer(
        "arq",
        "arq",
        "arq.py",
        (CREATE, BURST, LATENESS),
        "Redis (not durable), max_jobs 100, polling 0.5 s (default)",
        ("arq>=0.26,<1",),
        store_rate=1_000,
        database=False,
        redis=True,
    ),
    Peer(
        "graphile_worker",
        "graphile-worker",
        "graphile_worker.mjs",
        WORKS,
        "concurrency 10, polling 2 s (default)",
        _GRAPHILE,
        store_rate=10_000,
    ),
    Peer(
        "graphile_worker_local",
        "graphile-worker, local queue",
        "graphile_worker.mjs",
        (BURST, LATENESS, SEVERAL),
        "concurrency 10, local queue 500, completions in batches, polling 2 s (default)",
        _GRAPHILE,
        environ=(("BENCH_LOCAL_QUEUE", "500"),),
        store_rate=10_000,
        home="graphile_worker",
    ),
    Peer(
        "pg_boss",
        "pg-boss",
        "pg_boss.mjs",
        WORKS,
        "batches of 500, polling 0.5 s (its shortest)",
        ("pg-boss@^10",),  # the last that runs on Node 20
        store_rate=8_000,
    ),
    Peer(
        "bullmq",
        "BullMQ",
        "bullmq.mjs",
        (CREATE, BATCH, BURST, LATENESS, PENDING),
        "delayed jobs, Redis (not durable), concurrency 50",
        ("bullmq@^6", "ioredis@^5"),
        store_rate=8_000,
        database=False,
        redis=True,
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
