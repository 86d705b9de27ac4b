"""The shapes of an import: of what it came to, and of what goes on in a recurring task."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from job_scheduler.constants import RUNS_MAX
from job_scheduler.core.fields import Instant, whole_number
from job_scheduler.core.schemas_problem import Problem
from job_scheduler.core.schemas_when import near

_Count = Annotated[int, Field(strict=True, ge=0, le=RUNS_MAX), BeforeValidator(whole_number)]


class Standing(BaseModel):
    """How far a recurring task has come elsewhere: its next time, and how often it has run."""

    model_config = ConfigDict(frozen=True)

    run_at: Annotated[Instant, AfterValidator(near)] | None = None
    run_count: _Count | None = None


ANEW = Standing()
"""That of a task which is new."""


class ImportProblem(BaseModel):
    """Why a line was not taken."""

    line: Annotated[int, Field(description="Its number, from 1 on.")]
    problem: Problem


class ImportResult(BaseModel):
    """What became of the lines of an import."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "lines": 1200,
                    "created": 1150,
                    "present": 0,
                    "skipped": 50,
                    "refused": 0,
                    "problems": [],
                    "dry_run": False,
                }
            ]
        }
    )

    lines: Annotated[int, Field(description="Lines that are not blank.")]
    created: Annotated[int, Field(description="Tasks that were stored.")]
    present: Annotated[
        int,
        Field(
            description="Tasks that were there already, made by the same request, or by another "
            "one with their `unique_key`."
        ),
    ]
    skipped: Annotated[int, Field(description="Exported tasks that have begun.")]
    refused: Annotated[int, Field(description="Lines that were not taken.")]
    problems: Annotated[list[ImportProblem], Field(description="Why, for the first 100 of them.")]
    dry_run: bool
