"""What the service and a worker process say to each other, over a pair of sockets.

Each message is its length, in four bytes, and its content. To the worker it is pickled: arguments
may be anything, and both are the same code. From the worker it is JSON: what the user's code has
done there must not decide what is run here.
"""

import pickle
import struct
import traceback
from asyncio import StreamReader
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, Field, TypeAdapter

from job_scheduler.constants import SECONDS_MAX
from job_scheduler.core.handlers.raised import Fail, RetryLater
from job_scheduler.core.handlers.words import words_of
from job_scheduler.strict_json import clean_text

_LENGTH = struct.Struct(">I")
_ANSWER_MAX_BYTES = 16 * 1024 * 1024
_DETAILS_MAX_LENGTH = 50_000


@dataclass(frozen=True, slots=True)
class Call:
    """Run a handler: `run` are the arguments of its ``RunContext``, `work` what `pack` made."""

    run: tuple[str, str, int, str, datetime, datetime | None]
    work: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the run with this token to come to an end."""

    token: str


class _Said(BaseModel):
    """What is said of the run with this token, and of no other."""

    token: str


class Progressed(_Said):
    """How far it has come."""

    kind: Literal["progressed"] = "progressed"
    fraction: Annotated[float, Field(ge=0, le=1)]
    message: str | None


class Returned(_Said):
    """The handler has returned."""

    kind: Literal["returned"] = "returned"
    result: Any


class Raised(_Said):
    """The handler has raised; `final` where it is not to be tried again.

    `exhausted`: the worker's memory was, so that it had better not go on.
    """

    kind: Literal["raised"] = "raised"
    words: str
    details: str
    final: bool
    after: Annotated[float | None, Field(ge=0, le=SECONDS_MAX)]
    exhausted: bool

    @classmethod
    def of(
        cls, token: str, error: BaseException, final: tuple[type[BaseException], ...]
    ) -> "Raised":
        """Return what there is to say of an exception; one of the types `final` ends the task."""
        exhausted = isinstance(error, MemoryError)
        if exhausted:
            # What the handler holds is in the way of telling it.
            traceback.clear_frames(error.__traceback__)
        details = "".join(traceback.format_exception(error))
        return cls(
            token=token,
            words=words_of(error),
            details=clean_text(details[-_DETAILS_MAX_LENGTH:]),
            final=isinstance(error, (Fail, *final)),
            after=error.after if isinstance(error, RetryLater) else None,
            exhausted=exhausted,
        )

    def error(self) -> Fail | RetryLater:
        """Return the verdict, to be raised here."""
        error = Fail(self.words) if self.final else RetryLater(self.after, self.words)
        error.details = self.details
        return error


Answer = Progressed | Returned | Raised

_answers: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")])


def request(message: Call | Stop) -> bytes:
    """Return a message to the worker as it is sent."""
    return _framed(pickle.dumps(message))


def answer(message: Answer) -> bytes:
    """Return a message from the worker as it is sent."""
    return _framed(message.model_dump_json().encode())


def next_request(stream: BinaryIO) -> Call | Stop | None:
    """Wait for the service's next message; None when there will be none."""
    try:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        content = stream.read(length)
    except ConnectionError:
        return None
    if len(content) < length:
        return None
    message: Call | Stop = pickle.loads(content)  # noqa: S301 (the service made it)
    return message


async def next_answer(stream: StreamReader) -> Answer:
    """Wait for the worker's next message.

    Raises:
        EOFError: there will be none.
        ConnectionError: likewise.
        ValueError: it is not one that a worker sends.
    """
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    if length > _ANSWER_MAX_BYTES:
        raise ValueError("the worker's message is too long")
    return _answers.validate_json(await stream.readexactly(length))


def pack(
    function: Any,
    arguments: dict[str, Any],
    context: str | None,
    final: tuple[type[BaseException], ...],
) -> bytes:
    """Return a call as it travels; functions and types do by their names.

    `context` names the argument that gets the ``RunContext``.

    Raises:
        Fail: some part of it cannot travel.
    """
    try:
        return pickle.dumps((function, arguments, context, final))
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise Fail(f"the call cannot be handed to a worker process: {error}") from error


def unpack(
    work: bytes,
) -> tuple[Any, dict[str, Any], str | None, tuple[type[BaseException], ...]]:
    """Return what `pack` was given."""
    function, arguments, context, final = pickle.loads(work)  # noqa: S301 (the service made it)
    return function, arguments, context, final


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content
