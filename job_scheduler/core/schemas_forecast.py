"""The shape in which it is told how many tasks fall due."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

HOURS_MAX = 168
INTERVALS_MAX = 1_000

_EXAMPLE_INTERVAL: JsonDict = {
    "at": "2027-07-01T09:00:00Z",
    "tasks": 5003,
    "names": [{"name": "send_report", "tasks": 5000}, {"name": "backup", "tasks": 3}],
}


class NameForecast(BaseModel):
    """How many of the tasks have this name."""

    name: str
    tasks: int


class IntervalForecast(BaseModel):
    """How many tasks fall due from an instant on, until the next interval begins."""

    at: Annotated[datetime, Field(description="When the interval begins.")]
    tasks: int
    names: Annotated[list[NameForecast], Field(description="The most frequent names: 5 at most.")]


class Forecast(BaseModel):
    """How many tasks fall due in the time to come. All times are UTC."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "from": "2027-07-01T08:50:12.345678Z",
                    "until": "2027-07-01T09:50:12.345678Z",
                    "interval_seconds": 1_800,
                    "intervals": [
                        {"at": "2027-07-01T08:30:00Z", "tasks": 0, "names": []},
                        _EXAMPLE_INTERVAL,
                        {
                            "at": "2027-07-01T09:30:00Z",
                            "tasks": 1,
                            "names": [{"name": "backup", "tasks": 1}],
                        },
                    ],
                    "total": 5_004,
                    "peaks": [
                        _EXAMPLE_INTERVAL,
                        {
                            "at": "2027-07-01T09:30:00Z",
                            "tasks": 1,
                            "names": [{"name": "backup", "tasks": 1}],
                        },
                    ],
                    "overdue": 0,
                    "truncated": False,
                    "complete_until": "2027-07-01T09:50:12.345678Z",
                }
            ]
        },
    )

    begin: Annotated[
        datetime, Field(alias="from", description="Now: nothing before it is counted.")
    ]
    until: datetime
    interval_seconds: int
    intervals: Annotated[
        list[IntervalForecast],
        Field(
            description="All of them, in order. They begin at round times: the first one before "
            "`from`."
        ),
    ]
    total: Annotated[int, Field(description="The tasks of all intervals.")]
    peaks: Annotated[list[IntervalForecast], Field(description="The busiest intervals: 5 at most.")]
    overdue: Annotated[
        int,
        Field(
            description="Tasks that are due and have not started, which count in no interval; "
            "100000 stands for as many or more."
        ),
    ]
    truncated: Annotated[
        bool,
        Field(
            description="Whether there was more to count than one answer takes: the numbers after "
            "`complete_until` are too small then."
        ),
    ]
    complete_until: Annotated[datetime, Field(description="Up to when all is counted.")]
