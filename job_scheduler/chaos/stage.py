"""The stage of a chaos run: a directory and a database of its own, proxies before the servers."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import URL

from job_scheduler.chaos.faults import Steps, database_steps, redis_steps
from job_scheduler.chaos.ledger import LEDGER_VARIABLE
from job_scheduler.chaos.plan import LEASE_SECONDS
from job_scheduler.chaos.proxy import Proxy
from job_scheduler.chaos.storage import Storage, own_database
from job_scheduler.config import load_settings
from job_scheduler.exceptions import StartError
from job_scheduler.redis_client import build_redis

_GRACE_SECONDS = 2.0
_THREADS = 64
_MAX_RUNNING = 200


@dataclass(frozen=True, slots=True)
class _Server:
    """Redis, and the proxy by which the instances reach it."""

    client: Redis
    proxy: Proxy


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a run takes place: a fault is possible where there is a proxy."""

    directory: Path
    database: URL
    environment: dict[str, str]
    database_proxy: Proxy | None
    redis: _Server | None

    @property
    def ledger(self) -> Path:
        """Where handlers note their runs."""
        return self.directory / "ledger.jsonl"

    def steps(self, storage: Storage, task_ids: Callable[[], Collection[str]]) -> Steps:
        """Return how faults are done to the servers that there are."""
        steps: Steps = {}
        if self.database_proxy is not None:
            steps |= database_steps(storage, self.database_proxy)
        if self.redis is not None:
            steps |= redis_steps(self.redis.client, self.redis.proxy, task_ids)
        return steps


@contextmanager
def stage(db_url: str, redis_url: str | None, *, keep: bool) -> Iterator[Stage]:
    """Set the stage, and clear it away at the end, unless it is to be kept.

    Raises:
        StartError: a URL is wrong, or its server does not let us.
    """
    settings = load_settings(db_url=db_url, redis_url=redis_url)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="job_scheduler_chaos_"))
        if not keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        database = stack.enter_context(own_database(settings.database, directory, keep=keep))
        if keep:
            stack.callback(typer.echo, f"kept: the ledger and logs in {directory}, and {database}")
        shown = through = database.render_as_string(hide_password=False)
        database_proxy = None
        if not settings.embedded:
            database_proxy = stack.enter_context(Proxy.before(shown))
            through = database_proxy.url_for(shown)
        redis = None
        if settings.redis_url is not None:
            redis = stack.enter_context(_redis(settings.redis_url.get_secret_value()))
            redis_url = redis.proxy.url_for(settings.redis_url.get_secret_value())
        yield Stage(
            directory=directory,
            database=database,
            environment={
                "DB_URL": through,
                "REDIS_URL": redis_url or "",
                "LEASE_SECONDS": str(LEASE_SECONDS),
                "SHUTDOWN_GRACE": str(_GRACE_SECONDS),
                "THREADS": str(_THREADS),
                "MAX_RUNNING": str(_MAX_RUNNING),
                "TASK_MODULES": "job_scheduler.chaos.handlers",
                LEDGER_VARIABLE: str(directory / "ledger.jsonl"),
            },
            database_proxy=database_proxy,
            redis=redis,
        )


@contextmanager
def _redis(url: str) -> Iterator[_Server]:
    with build_redis(url) as client, Proxy.before(url) as proxy:
        try:
            client.ping()
        except RedisError as error:
            raise StartError(f"Redis does not answer ({error}). Check --redis-url.") from error
        yield _Server(client, proxy)
