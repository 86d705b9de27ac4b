"""The kinds of values that requests and responses are made of."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, SkipValidation
from pydantic.json_schema import WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from job_scheduler.constants import (
    BATCH_MAX_TASKS,
    COMMAND_MAX_PARTS,
    COMMAND_PART_MAX_LENGTH,
    MAX_ATTEMPTS_LIMIT,
    NAME_MAX_LENGTH,
    PRIORITY_MAX,
    RUNNING_MAX,
    RUNS_MAX,
    SECONDS_MAX,
    TAG_MAX_LENGTH,
    TAGS_MAX,
)
from job_scheduler.identifiers import parse_uuid

EXAMPLE_ID = "01980d2a-6c1e-7c3a-9f57-3f0f4c1f2a61"

# RFC 3339, section 5.6, with two liberties: seconds and offset may be left out.
_INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
INSTANT_REMEDY = "Write it like 2027-07-01T10:00:00Z or 2027-07-01T12:00:00+02:00."

REMEDIES = {
    "missing": "This field is required.",
    "extra_forbidden": "There is no such field here. Remove it, or correct its name.",
    "string_pattern_mismatch": "Must not contain NUL, and not be white space alone.",
    "string_type": "Must be text (a JSON string).",
    "string_unicode": "Must be text without halves of surrogate pairs.",
    "string_too_short": "Must not be empty.",
    "string_too_long": f"Must have at most {NAME_MAX_LENGTH} characters.",
    "dict_type": "Must be a JSON object, or be left out.",
    "model_type": "Must be a JSON object.",
    "list_type": "Must be a JSON array of tasks.",
    "too_short": f"Must hold from 1 to {BATCH_MAX_TASKS} tasks.",
    "too_long": f"Must hold from 1 to {BATCH_MAX_TASKS} tasks. Send the rest in further requests.",
    "model_attributes_type": "Must be a JSON object, with a name and a run_at at least.",
}
"""What to do about a value that is refused, by pydantic's type of the error."""


def parse_instant(value: object) -> datetime:
    """Return the instant that `value` names, in UTC; a time without offset is taken as UTC.

    Raises:
        PydanticCustomError: it is no text, no time, or one outside the years 1 to 9999 in UTC.
    """
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise PydanticCustomError("instant", f"Not an ISO 8601 date and time. {INSTANT_REMEDY}")
    try:
        moment = datetime.fromisoformat(value.upper())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "instant", f"There is no such date and time in UTC. {INSTANT_REMEDY}"
        ) from None


def local_time(value: object) -> datetime | None:
    """Return a time without offset as it stands; None if it has an offset."""
    moment = datetime.fromisoformat(str(value).upper())
    return None if moment.tzinfo else moment


def _canonical_uuid(text: str) -> str:
    canonical = parse_uuid(text)
    if canonical is None:
        raise PydanticCustomError("uuid", f"Not a UUID. Write it like {EXAMPLE_ID}.")
    return canonical


def parse_command(value: object) -> object:
    """Return `value`, a program and its arguments, as it is.

    Raises:
        PydanticCustomError: it is something else, or too long.
    """
    if not (
        isinstance(value, list)
        and 1 <= len(value) <= COMMAND_MAX_PARTS
        and all(_is_part(part) for part in value)
        and value[0]
    ):
        raise PydanticCustomError(
            "command",
            f"Must be a JSON array of 1 to {COMMAND_MAX_PARTS} texts: a program, which is not "
            f"empty, and its arguments. Each has at most {COMMAND_PART_MAX_LENGTH} characters, and "
            "no NUL.",
        )
    return value


def _is_part(value: object) -> bool:
    return isinstance(value, str) and len(value) <= COMMAND_PART_MAX_LENGTH and "\0" not in value


def whole_number(value: object) -> object:
    """Return 3.0 as 3: to JSON they are the same number. The rest is left as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class NullMeans:
    """Tells of a member that null means its `default`, as if it were left out."""

    default: Any

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the member's schema, with null."""
        return core_schema.no_info_after_validator_function(
            self._chosen, core_schema.nullable_schema(handler(source))
        )

    def _chosen(self, value: Any) -> Any:
        return self.default if value is None else value


Name = Annotated[
    str,
    Field(
        strict=True,
        min_length=1,
        max_length=NAME_MAX_LENGTH,
        pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
    ),
]
Attempts = Annotated[
    int, Field(strict=True, ge=1, le=MAX_ATTEMPTS_LIMIT), BeforeValidator(whole_number)
]
Priority = Annotated[int, Field(strict=True, ge=0, le=PRIORITY_MAX), BeforeValidator(whole_number)]
Places = Annotated[int, Field(strict=True, ge=1, le=RUNNING_MAX), BeforeValidator(whole_number)]
Runs = Annotated[int, Field(strict=True, ge=1, le=RUNS_MAX), BeforeValidator(whole_number)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=SECONDS_MAX, allow_inf_nan=False)]
Timeout = Annotated[float, Field(strict=True, gt=0, le=SECONDS_MAX, allow_inf_nan=False)]


def parse_retry_delay(value: object) -> object:
    """Return `value`, a delay or several, as it is.

    Raises:
        PydanticCustomError: it is something else, or one of them is out of bounds.
    """
    delays = value if isinstance(value, list) else [value]
    if not 1 <= len(delays) <= MAX_ATTEMPTS_LIMIT or not all(map(_is_delay, delays)):
        raise PydanticCustomError(
            "retry_delay",
            f"Must be a number of seconds from 0 to {SECONDS_MAX}, or an array of 1 to "
            f"{MAX_ATTEMPTS_LIMIT} such numbers.",
        )
    return value


def _is_delay(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= SECONDS_MAX  # type: ignore[operator]  # a number, as it says


RetryDelay = Annotated[
    Seconds | Annotated[list[Seconds], Field(min_length=1, max_length=MAX_ATTEMPTS_LIMIT)],
    BeforeValidator(parse_retry_delay),
]


def parse_tags(value: object) -> object:
    """Return `value`, the tags of a task, as it is.

    Raises:
        PydanticCustomError: it is something else, too many, or one of them twice.
    """
    if not (
        isinstance(value, list)
        and len(value) <= TAGS_MAX
        and all(isinstance(tag, str) and 1 <= len(tag) <= TAG_MAX_LENGTH for tag in value)
        and len(set(value)) == len(value)
    ):
        raise PydanticCustomError(
            "tags",
            f"Must be a JSON array of up to {TAGS_MAX} different texts of 1 to {TAG_MAX_LENGTH} "
            "characters.",
        )
    return value


Tag = Annotated[
    str,
    Field(
        strict=True,
        min_length=1,
        max_length=TAG_MAX_LENGTH,
        pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
    ),
]
Tags = Annotated[
    list[Tag],
    BeforeValidator(parse_tags),
    Field(max_length=TAGS_MAX, json_schema_extra={"uniqueItems": True}),
]

_UUID_SCHEMA = {"type": "string", "format": "uuid"}
_UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

Instant = Annotated[
    datetime,
    BeforeValidator(parse_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
GivenUuid = Annotated[
    str,
    AfterValidator(_canonical_uuid),
    WithJsonSchema(_UUID_SCHEMA | {"pattern": _UUID_PATTERN}),
]
Uuid = Annotated[str, WithJsonSchema(_UUID_SCHEMA)]


_WITHOUT_NUL = r"^[^\x00]*$"
_PART_SCHEMA = {"type": "string", "maxLength": COMMAND_PART_MAX_LENGTH, "pattern": _WITHOUT_NUL}

Command = Annotated[
    list[str],
    BeforeValidator(parse_command),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "maxItems": COMMAND_MAX_PARTS,
            "prefixItems": [_PART_SCHEMA | {"minLength": 1}],
            "items": _PART_SCHEMA,
        }
    ),
]

# strict_json has examined the values already. No schema of any JSON that leaves out NUL is shown
# here: it would be a recursive one, and generators of clients stumble over those.
PayloadObject = Annotated[
    dict[str, SkipValidation[Any]], WithJsonSchema({"type": "object", "additionalProperties": True})
]
