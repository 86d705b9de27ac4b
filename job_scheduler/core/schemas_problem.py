"""The shape of an error (RFC 9457)."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from job_scheduler.core.fields import EXAMPLE_ID


class FieldProblem(BaseModel):
    """What is wrong with one field, and what to write instead."""

    location: Annotated[str, Field(description="body, query, path or header.")]
    field: Annotated[str, Field(description="Its name; dots lead into nested objects.")]
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `error_code` is stable: programs may rely on it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": f"There is no task '{EXAMPLE_ID}'. "
                    "GET /tasks lists those that exist.",
                    "error_code": "TASK_404",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    error_code: str
    errors: list[FieldProblem] | None = None
