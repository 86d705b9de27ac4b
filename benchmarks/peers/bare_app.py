"""The floor of a create: the same route, request and response, that stores nothing."""

from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI

from job_scheduler.core.schemas import TaskCreate
from job_scheduler.core.schemas_task import Task
from job_scheduler.identifiers import new_task_id

app = FastAPI()
_UNSET = dict.fromkeys(Task.model_fields)


@app.post("/tasks", status_code=201, response_model=Task)
async def create(wanted: TaskCreate) -> dict[str, Any]:
    """Validate, and answer."""
    now = datetime.now(UTC)
    return _UNSET | {
        "task_id": new_task_id(now),
        "name": wanted.name,
        "run_at": wanted.run_at,
        "status": "scheduled",
        "created_at": now,
        "updated_at": now,
        "payload": wanted.payload,
        "attempt": 0,
        "max_attempts": wanted.max_attempts or 1,
        "priority": wanted.priority,
    }
