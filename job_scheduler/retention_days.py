"""``RETENTION_DAYS``: for how long finished tasks are kept, as a person writes it."""

import re
from collections.abc import Mapping
from datetime import timedelta

from job_scheduler.constants import TaskStatus

_MAX_DAYS = 36_500
_DEFAULT_DAYS = 30.0
_NUMBER = re.compile(r"[0-9]{1,5}(\.[0-9]{1,9})?", re.ASCII)
_FORMS = (
    f"must be a number of days from 0 to {_MAX_DAYS} (0 keeps for ever), or one for each outcome, "
    "such as done=7,failed=90,unknown=0"
)


def parse_retention_days(text: str) -> dict[TaskStatus, timedelta]:
    """Return after how long a task with each outcome is removed; one that is left out never is.

    A single number is for ``done``, ``failed`` and ``cancelled``. ``unknown`` waits for a person,
    and is only removed where it is named.

    Raises:
        ValueError: the text is neither a number of days nor a list of them by outcome.
    """
    days = dict.fromkeys((TaskStatus.Done, TaskStatus.Failed, TaskStatus.Cancelled), _DEFAULT_DAYS)
    if "=" in text:
        days |= _by_outcome(text)
    else:
        days |= dict.fromkeys(days, _days(text))
    return {outcome: timedelta(days=number) for outcome, number in days.items() if number}


def _by_outcome(text: str) -> Mapping[TaskStatus, float]:
    named: dict[TaskStatus, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        outcome = _OUTCOMES.get(name.strip())
        if outcome is None or outcome in named:
            raise ValueError(_FORMS)
        named[outcome] = _days(number)
    return named


def _days(text: str) -> float:
    number = text.strip()
    if not _NUMBER.fullmatch(number) or float(number) > _MAX_DAYS:
        raise ValueError(_FORMS)
    return float(number)


_OUTCOMES = {
    outcome.value: outcome
    for outcome in (
        TaskStatus.Done,
        TaskStatus.Failed,
        TaskStatus.Unknown,
        TaskStatus.Cancelled,
    )
}
