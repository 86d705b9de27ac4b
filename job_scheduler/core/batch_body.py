"""The body of a batch: parsed, and examined task by task."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from job_scheduler import strict_json
from job_scheduler.batch_exceptions import InvalidBatch
from job_scheduler.core.schemas import TaskBatch, TaskCreate
from job_scheduler.errors import located, refusal_of
from job_scheduler.exceptions import InvalidField, InvalidRequest, NamedTwice

Examined = TaskCreate | InvalidRequest
"""A task that is asked for, or why it is not taken."""


def parse(
    raw: bytes,
    reason_against: Callable[[TaskCreate], InvalidRequest | None],
    *,
    keyed: bool,
    partial: bool,
) -> list[Examined]:
    """Return the tasks that a body asks for; with `partial`, also why some are not taken.

    `reason_against` tells why a task is not taken; `keyed`, whether a key names the tasks.

    Raises:
        InvalidBody: it is no JSON that can be taken.
        RequestValidationError: it does not have the form of a batch.
        InvalidBatch: tasks are refused, or one task_id, or unique_key, stands there twice; and not
            `partial`. (In part, it is for `on_conflict` to say what the second one of a key does.)
        NamedTwice: there is a key, and a task_id.
    """
    examined: list[Examined] = []
    refused: dict[int, InvalidRequest] = {}
    seen: dict[tuple[str, str], int] = {}
    once = ("task_id",) if partial else ("task_id", "unique_key")
    for index, document in enumerate(_documents(raw)):
        one = examine(document, reason_against)
        if isinstance(one, TaskCreate):
            if keyed and one.task_id is not None:
                raise NamedTwice
            one = _repetition(one, index, once, seen) or one
        if isinstance(one, InvalidRequest):
            refused[index] = one
        examined.append(one)
    if refused and not partial:
        raise InvalidBatch(refused)
    return examined


def examine(
    document: Any, reason_against: Callable[[TaskCreate], InvalidRequest | None]
) -> Examined:
    """Return the task that a document asks for, or why it is not taken."""
    try:
        # From attributes: what is no object is then refused in the same words as elsewhere.
        wanted = TaskCreate.model_validate(document, from_attributes=True)
    except ValidationError as error:
        return refusal_of(error)
    return reason_against(wanted) or wanted


def _documents(raw: bytes) -> Sequence[Any]:
    """Return what stands for the tasks, unexamined."""
    if not raw:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": ""}])
    try:
        return TaskBatch.model_validate(strict_json.parse(raw)).tasks
    except ValidationError as error:
        raise RequestValidationError(located(error)) from None


def _repetition(
    wanted: TaskCreate, index: int, once: Sequence[str], seen: dict[tuple[str, str], int]
) -> InvalidRequest | None:
    """Return why a task is not taken that has what may stand there `once`, as one before it."""
    for name in once:
        value = getattr(wanted, name)
        if value is not None and (before := seen.setdefault((name, value), index)) != index:
            return InvalidField("body", name, f"The same {name} as that of tasks.{before}.")
    return None
