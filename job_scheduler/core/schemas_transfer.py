"""The shape of what an import came to."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from job_scheduler.core.schemas_problem import Problem


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
