"""The shape of one attempt at a task."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from job_scheduler.constants import RunOutcome
from job_scheduler.core.fields import EXAMPLE_ID, Uuid


class Run(BaseModel):
    """One attempt at a task. All times are UTC."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "attempt": 1,
                    "scheduled_for": "2027-07-01T10:00:00Z",
                    "started_at": "2027-07-01T10:00:00.003000Z",
                    "finished_at": "2027-07-01T10:00:01.503000Z",
                    "late": 0.003,
                    "duration": 1.5,
                    "outcome": "done",
                    "result": "Hello Ada",
                    "traceback": None,
                    "instance_id": EXAMPLE_ID,
                }
            ]
        }
    )

    attempt: Annotated[int, Field(description="Its number, from 1.")]
    scheduled_for: Annotated[datetime, Field(description="When it was to start.")]
    started_at: datetime
    finished_at: Annotated[datetime | None, Field(description="null while it is under way.")]
    late: Annotated[float, Field(description="From scheduled_for to started_at, in seconds.")]
    duration: Annotated[
        float | None,
        Field(
            description="From started_at to finished_at, in seconds; null while it is under way."
        ),
    ]
    outcome: Annotated[
        RunOutcome | Literal["running"],
        Field(
            description="`running`: it is under way. `done`: the handler returned. `failed`: it "
            "raised. `cancelled`: it was ended by `POST /tasks/{task_id}/cancel`. `interrupted`: "
            "the service was stopped. `crashed`: its instance was found dead. `lost`: it ended "
            "after its instance had been taken for dead, so that its result does not count."
        ),
    ]
    result: Annotated[
        JsonValue,
        Field(description="What the handler returned, or the error or reason as text."),
    ]
    traceback: Annotated[
        str | None,
        Field(description="Where the handler raised; null unless SHOW_TRACEBACKS=true."),
    ]
    instance_id: Annotated[Uuid | None, Field(description="The instance that ran it.")]
