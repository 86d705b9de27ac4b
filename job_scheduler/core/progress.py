"""How far runs have come: kept in memory as handlers say so, and stored now and then."""

import logging
from typing import Any

from sqlalchemy import Connection, text

from job_scheduler import strict_json
from job_scheduler.core.claims import Claim
from job_scheduler.core.columns import NOW_SQL
from job_scheduler.core.given import locked_tasks
from job_scheduler.core.handlers.context import Progress
from job_scheduler.database import Database
from job_scheduler.exceptions import DatabaseUnavailable
from job_scheduler.strict_json import clean_text

_logger = logging.getLogger(__name__)

_MESSAGE_MAX_LENGTH = 1_000


class ProgressBoard:
    """The latest that each run has said and that is not stored yet.

    A handler may say something as often as it likes: of what comes within half a second only the
    last is stored. Losing it does no harm.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest: dict[str, dict[str, Any]] = {}

    def note(self, claim: Claim, progress: Progress) -> None:
        """Take what a run says; from any thread."""
        message = progress.message and clean_text(str(progress.message)[:_MESSAGE_MAX_LENGTH])
        self._latest[claim.token] = {
            "task_id": claim.task_id,
            "token": claim.token,
            "progress": strict_json.dumps({"fraction": progress.fraction, "message": message}),
        }

    async def store(self) -> None:
        """Store what was said since the last time.

        Raises:
            DatabaseUnavailable: the database cannot be reached; it is not stored.
        """
        await self._store(list(self._latest))

    async def settle(self, claim: Claim) -> None:
        """Store what a run has said last, which has ended; never raises."""
        try:
            await self._store([claim.token])
        except DatabaseUnavailable:
            pass  # Its result will wait for the database; this does not.
        except Exception:
            _logger.exception("task %s: its progress could not be stored", claim.task_id)

    async def _store(self, tokens: list[str]) -> None:
        said = [entry for token in tokens if (entry := self._latest.pop(token, None))]
        if said:
            await self._database.write(_note_progress, said)


def _note_progress(connection: Connection, said: list[dict[str, Any]]) -> None:
    connection.execute(_NOTE[connection.dialect.name], {"given": strict_json.dumps(said)})


_MEMBERS = {"task_id": "uuid", "token": "uuid", "progress": "text"}


def _statement(dialect: str) -> Any:
    standing = locked_tasks(
        dialect,
        _MEMBERS,
        "task.task_id, given.progress",
        "WHEN 'running' THEN task.claim_token = given.token",
    )
    value = "CAST(standing.progress AS json)" if dialect == "postgresql" else "standing.progress"
    return text(
        f"""
        WITH standing AS MATERIALIZED ({standing})
        UPDATE scheduled_tasks AS task SET progress = {value}, updated_at = {NOW_SQL[dialect]}
        FROM standing WHERE task.task_id = standing.task_id
        """  # noqa: S608 (made of constants)
    )


_NOTE = {dialect: _statement(dialect) for dialect in NOW_SQL}
