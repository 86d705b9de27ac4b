"""Statements written as text: what they are given, and what they return.

A batch is given as one JSON parameter, ``:given``, so that a statement's text never changes.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import TextualSelect, column, text
from sqlalchemy.types import NULLTYPE, TypeEngine

from job_scheduler.constants import PREPARED


def given_rows(dialect: str, columns: Mapping[str, str]) -> str:
    """Return what stands after FROM for the rows of ``:given``, an array of objects.

    The rows are called ``given``; `columns` are the objects' members and their types, as
    PostgreSQL names them. SQLite takes a member as it is.
    """
    if dialect == "postgresql":
        typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        return f"json_to_recordset(CAST(:given AS json)) AS given({typed})"
    members = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in columns)
    return f"(SELECT {members} FROM json_each(:given)) AS given"  # noqa: S608 (made of constants)


def locked_tasks(
    dialect: str,
    members: Mapping[str, str],
    columns: str,
    condition: str,
    *,
    skip_locked: bool = False,
) -> str:
    """Return the SELECT of `columns` from ``given`` and ``task``, the row of the same task_id.

    The rows are locked in the order of their ids, so that two batches cannot deadlock. `condition`
    are the branches of a CASE by the task's status, which hides them from the partial indexes: each
    task is found by its id. With OR, all that have a status would be read for each batch.
    """
    lock = ""
    if dialect == "postgresql":
        lock = "FOR NO KEY UPDATE OF task" + (" SKIP LOCKED" if skip_locked else "")
    return f"""
        SELECT {columns}
        FROM {given_rows(dialect, members)}
        JOIN scheduled_tasks AS task ON task.task_id = given.task_id
        WHERE CASE task.status {condition} ELSE false END
        ORDER BY task.task_id {lock}"""  # noqa: S608 (made of constants)


def returning(
    dialect: str, statement: str, columns: Mapping[str, TypeEngine[Any]]
) -> TextualSelect:
    """Return a statement that answers these columns, in this order.

    Since they are named, how a row is read is worked out once, not for each batch anew. The types
    are for SQLite's driver: PostgreSQL's makes the values by itself, and is much faster.
    """
    is_sqlite = dialect == "sqlite"
    typed = [column(name, kind if is_sqlite else NULLTYPE) for name, kind in columns.items()]
    return text(statement).columns(*typed)


def batched(dialect: str, statement: str, columns: Mapping[str, TypeEngine[Any]]) -> TextualSelect:
    """Return a statement as ``returning`` does, of which PostgreSQL keeps the plan."""
    return returning(dialect, statement, columns).execution_options(**{PREPARED: True})
