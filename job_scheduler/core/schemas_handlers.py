"""The shape of a handler, as it is listed."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_EXAMPLE: dict[str, Any] = {
    "name": "send_report",
    "description": "Report on the tasks whose run_at lies in the `hours` before `until`.",
    "payload": {
        "type": "object",
        "properties": {"hours": {"type": "number", "default": 24.0}},
        "additionalProperties": False,
    },
    "example": {},
    "max_attempts": 1,
    "retry_delay": 5.0,
    "retry_max_delay": 3600.0,
    "timeout": None,
    "isolation": None,
    "max_running": None,
    "rate_limit": None,
}


class HandlerShown(BaseModel):
    """A handler: what a task of its name runs."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: str
    description: Annotated[str, Field(description="The function's docstring.")]
    payload: Annotated[
        dict[str, Any],
        Field(description="The JSON Schema of what `payload` may hold in a task of this name."),
    ]
    example: Annotated[
        dict[str, Any] | None,
        Field(description="A payload that fits; null where it would have to be guessed."),
    ]
    max_attempts: Annotated[
        int, Field(description="For tasks that do not say so themselves, as what follows.")
    ]
    retry_delay: float | list[float]
    retry_max_delay: float
    timeout: float | None
    isolation: Annotated[
        Literal["process"] | None,
        Field(description="`process`: it runs in a worker process, which can be killed."),
    ]
    max_running: Annotated[
        int | None,
        Field(description="How many of its tasks run at a time, on all instances; null: any."),
    ]
    rate_limit: Annotated[
        str | None,
        Field(description="How many of its tasks start in a time, such as `100/minute`."),
    ]
