"""The shapes of a request to watch, and of what is told of a change."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from job_scheduler.constants import LIST_MAX_VALUES, TaskStatus
from job_scheduler.core.fields import EXAMPLE_ID, GivenUuid, Name, Tag, Uuid

_SEVERAL = Field(max_length=LIST_MAX_VALUES)


class EventQuery(BaseModel):
    """Which changes to tell of: those that meet all that is given."""

    status: Annotated[
        list[TaskStatus],
        _SEVERAL,
        Field(description="Only changes to this status; given several times, to one of them."),
    ] = []
    name: Annotated[
        list[Name], _SEVERAL, Field(description="Only of tasks with one of these names.")
    ] = []
    tag: Annotated[
        list[Tag], _SEVERAL, Field(description="Only of tasks with all of these tags.")
    ] = []
    key: Annotated[
        list[Name], _SEVERAL, Field(description="Only of tasks with one of these keys.")
    ] = []
    task_id: Annotated[list[GivenUuid], _SEVERAL, Field(description="Only of these tasks.")] = []

    def wants(self, event: Mapping[str, Any]) -> bool:
        """Tell whether a change is to be told of."""
        return (
            (not self.status or event["status"] in self.status)
            and (not self.name or event["name"] in self.name)
            and (not self.key or event["concurrency_key"] in self.key)
            and (not self.task_id or event["task_id"] in self.task_id)
            and set(self.tag) <= set(event["tags"] or ())
        )


class TaskChanged(BaseModel):
    """A change of a task's status."""

    task_id: Uuid
    name: str
    status: Annotated[TaskStatus | None, Field(description="Null: the task is gone.")]
    former: Annotated[TaskStatus | None, Field(description="Null: the task is new.")]
    attempt: int
    at: Annotated[datetime, Field(description="When it changed.")]


EXAMPLE_STREAM = f"""\
event: open
data: {{"complete":true}}
id: 1042-17

data: {{"task_id":"{EXAMPLE_ID}","name":"send_report","status":"running",\
"former":"scheduled","attempt":1,"at":"2027-07-01T10:00:00.003Z"}}
id: 1043-18

"""
