"""The shapes of the answers about recovery."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from job_scheduler.constants import RecoverPastTasks, RecoveryAction

_EXAMPLE_PLAN: JsonDict = {
    "time": "2027-07-15T08:00:00.123456Z",
    "policy": "run",
    "rate": 1000.0,
    "hold_above": 0,
    "overdue": 120000,
    "oldest_due": "2027-07-01T10:00:00Z",
    "newest_due": "2027-07-15T07:59:59Z",
    "by_age": [
        {"age": "up to 1 minute", "tasks": 6},
        {"age": "up to 1 hour", "tasks": 354},
        {"age": "up to 1 day", "tasks": 8300},
        {"age": "up to 1 week", "tasks": 51340},
        {"age": "older", "tasks": 60000},
    ],
    "by_name": [{"name": "send_report", "tasks": 120000}],
    "other_names": {"names": 0, "tasks": 0},
    "catch_up": None,
    "living_instances": 1,
    "action": "release",
    "seconds": 120.0,
    "summary": "120000 overdue tasks would be run at 1000 a second, the oldest first, which takes "
    "about 2 minutes. This is what a start would do if no instance were alive. At present 1 is, "
    "by its heartbeat: whoever starts now joins in, and recovers nothing.",
}


class AgeCount(BaseModel):
    """How many tasks have been overdue for so long (and longer than the age before)."""

    age: str
    tasks: int


class NameCount(BaseModel):
    """How many overdue tasks have this name."""

    name: str
    tasks: int


class OtherNames(BaseModel):
    """The names that are not listed, summed up."""

    names: int
    tasks: int


class CatchUpState(BaseModel):
    """Missed tasks that an earlier start has set aside and that are not released yet."""

    state: Annotated[str, Field(description="waiting (for an approval) or releasing.")]
    since: datetime
    tasks: int
    released_until: Annotated[
        datetime | None, Field(description="The latest time to start that has been given out.")
    ]


class RecoveryPlan(BaseModel):
    """What start-up recovery would do now. Nothing is done by asking."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_PLAN]})

    time: Annotated[datetime, Field(description="The database's clock.")]
    policy: RecoverPastTasks
    rate: Annotated[float, Field(description="RECOVERY_RATE, in tasks a second.")]
    hold_above: Annotated[int, Field(description="RECOVERY_HOLD_ABOVE; 0: never.")]
    overdue: Annotated[
        int, Field(description="Tasks that are scheduled, due before now, and not set aside.")
    ]
    oldest_due: datetime | None
    newest_due: datetime | None
    by_age: list[AgeCount]
    by_name: Annotated[list[NameCount], Field(description="The 50 most frequent names.")]
    other_names: OtherNames
    catch_up: CatchUpState | None
    living_instances: Annotated[
        int, Field(description="Instances whose heartbeat is younger than LEASE_SECONDS.")
    ]
    action: Annotated[
        RecoveryAction, Field(description="What a start would do if no instance were alive.")
    ]
    seconds: Annotated[
        float | None, Field(description="About how long the release takes, if there is one.")
    ]
    summary: Annotated[str, Field(description="The same in words.")]


class RecoveryApproval(BaseModel):
    """What an approval has released."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "message": "120000 missed tasks are released.",
                    "tasks": 120000,
                    "approved_at": "2027-07-15T08:00:00.123456Z",
                    "until": "2027-07-15T08:02:00.123456Z",
                }
            ]
        }
    )

    message: str
    tasks: int
    approved_at: datetime
    until: Annotated[datetime, Field(description="About when the last of them may start.")]
