"""The body of a batch: parsed and examined task by task, and no further than is worth telling."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from job_scheduler import strict_json
from job_scheduler.batch_exceptions import InvalidBatch
from job_scheduler.constants import BATCH_FAULTS_NAMED
from job_scheduler.core.schemas import TaskBatch, TaskCreate
from job_scheduler.errors import located
from job_scheduler.exceptions import InvalidField, InvalidRequest, NamedTwice


def parse(
    raw: bytes, refusal_of: Callable[[TaskCreate], InvalidRequest | None], *, keyed: bool
) -> list[TaskCreate]:
    """Return the tasks that a body asks for.

    `refusal_of` tells why a task is not taken; `keyed`, whether a key names the tasks.

    Raises:
        InvalidBody: it is no JSON that can be taken.
        RequestValidationError: it does not have the form of a batch.
        InvalidBatch: tasks are refused, or one task_id, or unique_key, stands there twice.
        NamedTwice: there is a key, and a task_id.
    """
    wanted = _validated(_documents(raw))
    _refuse(
        {
            index: refusal
            for index, task in enumerate(wanted)
            if (refusal := refusal_of(task)) is not None
        }
    )
    if keyed and any(task.task_id for task in wanted):
        raise NamedTwice
    for name in ("task_id", "unique_key"):
        _refuse(_repetitions(name, [getattr(task, name) for task in wanted]))
    return wanted


def _documents(raw: bytes) -> Sequence[Any]:
    """Return what stands for the tasks, unexamined."""
    if not raw:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": ""}])
    try:
        return TaskBatch.model_validate(strict_json.parse(raw)).tasks
    except ValidationError as error:
        raise RequestValidationError(located(error)) from None


def _validated(documents: Sequence[Any]) -> list[TaskCreate]:
    wanted: list[TaskCreate] = []
    errors: list[Any] = []
    for index, document in enumerate(documents):
        try:
            # From attributes: what is no object is then refused in the same words as elsewhere.
            wanted.append(TaskCreate.model_validate(document, from_attributes=True))
        except ValidationError as error:
            errors += located(error, "tasks", index)
            if len(errors) >= BATCH_FAULTS_NAMED:
                break
    if errors:
        raise RequestValidationError(errors[:BATCH_FAULTS_NAMED])
    return wanted


def _refuse(refused: Mapping[int, InvalidRequest]) -> None:
    if refused:
        raise InvalidBatch(refused)


def _repetitions(name: str, values: Sequence[str | None]) -> dict[int, InvalidRequest]:
    first: dict[str, int] = {}
    return {
        index: InvalidField("body", name, f"The same {name} as that of tasks.{before}.")
        for index, value in enumerate(values)
        if value is not None and (before := first.setdefault(value, index)) != index
    }
