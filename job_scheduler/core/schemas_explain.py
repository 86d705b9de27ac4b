"""The shape in which it is told why a task has not run, ran late, or ran twice."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from job_scheduler.constants import RecoverPastTasks, TaskStatus
from job_scheduler.core.explain import Explanation
from job_scheduler.core.fields import EXAMPLE_ID, Uuid
from job_scheduler.core.reasons import ReasonCode
from job_scheduler.core.schemas_task import Progress

_EXAMPLE: JsonDict = {
    "task_id": EXAMPLE_ID,
    "status": "scheduled",
    "summary": "It waits for its concurrency key 'customer-4711', which task "
    "01980d2a-7d1e-7c3a-9f57-3f0f4c1f2a62 holds: no more than 1 task may run beside each other.",
    "reasons": [
        {
            "code": "waiting_for_key",
            "text": "It waits for its concurrency key 'customer-4711', which task "
            "01980d2a-7d1e-7c3a-9f57-3f0f4c1f2a62 holds: no more than 1 task may run beside each "
            "other.",
            "remedy": "Wait until they end, cancel one (POST /tasks/…/cancel), or give max_running "
            f"with PATCH /tasks/{EXAMPLE_ID} so that more may run.",
            "limit": "key:customer-4711",
            "key": "customer-4711",
            "since": "2027-07-01T10:00:00Z",
            "seconds": 42.5,
            "running": 1,
            "places": 1,
            "holders": ["01980d2a-7d1e-7c3a-9f57-3f0f4c1f2a62"],
            "before": 0,
        }
    ],
}


class TaskReason(BaseModel):
    """One reason: a sentence, what to do, and the facts behind it; what does not apply is left out.

    All times are UTC.
    """

    code: Annotated[ReasonCode, Field(description="What kind of reason it is: docs/explain.md.")]
    text: Annotated[str, Field(description="The reason, in a sentence.")]
    remedy: Annotated[str, Field(description="What to do about it.")]
    since: Annotated[datetime | None, Field(description="Since when it has been so.")] = None
    until: Annotated[
        datetime | None,
        Field(description="Until when it is so: its time, or when it is looked at again."),
    ] = None
    expected_at: Annotated[datetime | None, Field(description="About when it may start.")] = None
    seconds: Annotated[
        float | None,
        Field(description="How long: until its time, since its time, or by how much it was late."),
    ] = None
    run_at: Annotated[datetime | None, Field(description="The time that was asked for.")] = None
    created_at: Annotated[datetime | None, Field(description="When it was posted.")] = None
    started_at: Annotated[
        datetime | None, Field(description="When its first attempt was started.")
    ] = None
    finished_at: Annotated[datetime | None, Field(description="When it ended.")] = None
    missed_at: Annotated[datetime | None, Field(description="When a start set it aside.")] = None
    next_at: Annotated[datetime | None, Field(description="The next time of a recurring task.")] = (
        None
    )
    policy: Annotated[
        RecoverPastTasks | None, Field(description="What RECOVER_PAST_TASKS was.")
    ] = None
    name: Annotated[
        str | None,
        Field(description="The name that no handler has, or whose handler has the limit."),
    ] = None
    instance_id: Annotated[
        Uuid | None, Field(description="The instance that runs it, or that was asked.")
    ] = None
    limit: Annotated[
        str | None, Field(description="The limit that it waits for, as in `blocked_by`.")
    ] = None
    key: Annotated[str | None, Field(description="Its concurrency key.")] = None
    holders: Annotated[
        list[Uuid] | None, Field(description="Tasks that run under the limit: 10 at most.")
    ] = None
    running: Annotated[
        int | None,
        Field(description="How many run under the limit, or take places of the instances."),
    ] = None
    places: Annotated[int | None, Field(description="How many may.")] = None
    running_of_name: Annotated[int | None, Field(description="How many of them have its name.")] = (
        None
    )
    places_of_name: Annotated[int | None, Field(description="How many may have one name.")] = None
    before: Annotated[
        int | None,
        Field(description="How many tasks come before it; 1000 stands for as many or more."),
    ] = None
    rate: Annotated[float | None, Field(description="How many may start in a second.")] = None
    attempts: Annotated[
        int | None,
        Field(description="How many attempts there were, of this kind where the code names one."),
    ] = None
    attempt: Annotated[int | None, Field(description="The number of the last of them.")] = None
    max_attempts: Annotated[int | None, Field(description="How many it may have.")] = None
    error: Annotated[
        str | None, Field(description="What the last one said: 500 characters at most.")
    ] = None
    progress: Annotated[
        Progress | None, Field(description="How far the run has come, as its handler says.")
    ] = None
    runs: Annotated[int | None, Field(description="How often a recurring task has run.")] = None
    count: Annotated[
        int | None, Field(description="How many of its times; 100 stands for as many or more.")
    ] = None
    times: Annotated[
        list[datetime] | None, Field(description="Some of these times: 10 at most.")
    ] = None


class TaskExplanation(BaseModel):
    """Why a task stands where it stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    task_id: Uuid
    status: TaskStatus
    summary: Annotated[str, Field(description="The most important reason, in a sentence.")]
    reasons: Annotated[
        list[TaskReason], Field(description="One or more; the most important one comes first.")
    ]

    @classmethod
    def of(cls, found: Explanation) -> "TaskExplanation":
        """Return an explanation as it is shown."""
        return cls(
            task_id=found.task_id,
            status=found.status,
            summary=found.summary,
            reasons=[
                TaskReason(code=each.code, text=each.text, remedy=each.remedy, **each.data)
                for each in found.reasons
            ],
        )
