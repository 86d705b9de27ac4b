"""The body of a change: examined by itself, and what it makes of a task."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from job_scheduler.core.new_task import changed_members, request_of
from job_scheduler.core.recurring import keeps_time, refusal_of_runs
from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.store import TaskRow
from job_scheduler.dependencies import Services
from job_scheduler.errors import located
from job_scheduler.exceptions import InvalidField, InvalidRequest

_FIXED = {
    "task_id": "A task keeps its id. Leave it out.",
    "on_conflict": "It goes with POST /tasks. Leave it out.",
}
_SCHEMA = TaskCreate.model_json_schema(ref_template="#/components/schemas/{model}")
for _left_out in ("$defs", "required", "examples"):
    _SCHEMA.pop(_left_out, None)
for _fixed in _FIXED:
    _SCHEMA["properties"].pop(_fixed)
_SCHEMA |= {
    "title": "TaskChange",
    "description": "What is to be another: each as in `POST /tasks`; null takes it away, or "
    "back to its default.",
    "examples": [{"run_at": "2027-07-02T10:00:00Z"}, {"payload": {"hours": 48}, "priority": 2}],
}
CHANGE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
}
"""The body of a change, for the OpenAPI document."""

_LENIENT: list[dict[str, Any]] = [
    {"name": "any", "concurrency_key": "any", "run_at": datetime.min.replace(tzinfo=UTC)},
    {"name": "any", "concurrency_key": "any", "recurrence": {"interval_seconds": 60}},
]
"""Tasks that take whatever one of their kind can: one that runs once, one that recurs."""


def examine_change(change: dict[str, Any]) -> None:
    """Refuse a change that no task could take.

    Raises:
        InvalidField: it is of what stays.
        RequestValidationError: it is wrong for whatever task.
    """
    _refuse_fixed(change)
    errors = []
    for task in _LENIENT:
        try:
            TaskCreate.model_validate(request_of(task, change) | change)
        except ValidationError as error:
            errors.append(error)
    if len(errors) == len(_LENIENT):
        # The fewer, the less of it is due to the kind of task.
        least = min(errors, key=ValidationError.error_count)
        raise RequestValidationError(located(least))


def changed(services: Services, change: dict[str, Any], row: TaskRow) -> dict[str, Any]:
    """Return the new values of a task's columns.

    Raises:
        InvalidRequest: it would not be taken like this.
        RequestValidationError: likewise.
    """
    _refuse_fixed(change)
    try:
        wanted = TaskCreate.model_validate(request_of(row, change) | change)
    except ValidationError as error:
        raise RequestValidationError(located(error)) from None
    if (refusal := _refusal_of_zone(wanted, change) or services.refusal_of(wanted)) is not None:
        raise refusal
    members = changed_members(services.new_task(wanted, row["task_id"]))
    if members["recurrence"] is not None:
        members["run_count"] = row["run_count"] or 0
        if (refusal := refusal_of_runs(members["recurrence"], members["run_count"])) is not None:
            raise refusal
    if not keeps_time(members, row):
        return members | {"attempt": 0, "missed_at": None, "blocked_by": None}
    return {name: members[name] for name in members.keys() - {"run_at", "retry_at"}}


def _refuse_fixed(change: Mapping[str, Any]) -> None:
    for name, remedy in _FIXED.items():
        if name in change:
            raise InvalidField("body", name, remedy)


def _refusal_of_zone(wanted: TaskCreate, change: Mapping[str, Any]) -> InvalidRequest | None:
    """Return why a change is not taken that names a time zone, where there is nothing to read in
    it.
    """
    given = [name for name, value in change.items() if value is not None]
    if "timezone" not in given or wanted.recurrence is not None:
        return None
    if not {"run_at", "start_before"}.isdisjoint(given):
        return None
    return InvalidField(
        "body",
        "timezone",
        "A task that runs once stays at its instant: a time zone only tells how a time without "
        "offset is read. Give a run_at with it, or leave it out.",
    )
