"""The shapes in which times are told."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

_EXAMPLE_MOMENT: JsonDict = {
    "utc": "2027-07-01T07:00:00Z",
    "local": "2027-07-01T09:00:00",
    "offset": "+02:00",
}


class Moment(BaseModel):
    """An instant, and what clocks in the task's time zone show then."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_MOMENT]})

    utc: datetime
    local: Annotated[str, Field(description="As clocks there show it.")]
    offset: Annotated[str, Field(description="By how much they are ahead of UTC.")]


class Preview(BaseModel):
    """When a task would run, and what is worth knowing before it is posted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "next": [_EXAMPLE_MOMENT],
                    "description": "At 09:00 on Monday through Friday (Europe/Berlin).",
                    "warnings": [],
                }
            ]
        }
    )

    next: list[Moment]
    description: Annotated[str, Field(description="Its times in words.")]
    warnings: Annotated[
        list[str],
        Field(
            description="A time that clocks leave out or show twice, months without that day, a "
            "payload that would be refused, times that have passed, a jitter that is too large …"
        ),
    ]
