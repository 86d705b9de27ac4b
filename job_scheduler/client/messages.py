"""Server-sent events: read from a stream that comes in pieces."""

from dataclasses import dataclass

from job_scheduler.client.lines import Cut

MEDIA_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Message:
    """A message; its `data` is text, and its `place` where to go on after it."""

    kind: str
    place: str
    data: str


class Messages:
    """The messages of a stream, as far as they have come whole.

    A comment, which comes as a sign of life, is none.
    """

    def __init__(self) -> None:
        self._cut = Cut()
        self._fields: dict[str, str] = {}

    def ended(self, piece: bytes) -> list[Message]:
        """Take a piece; return the messages that have ended with it.

        Raises:
            UnicodeDecodeError: it is no text.
        """
        found = []
        for each in self._cut.ended(piece):
            line = each.decode().removesuffix("\r")
            if line:
                self._note(line)
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields:
                kind = fields.get("event", "message")
                found.append(Message(kind, fields.get("id", ""), fields["data"]))
        return found

    def _note(self, line: str) -> None:
        """Note a line of a message; a comment is one of no field."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and name in self._fields:
            value = f"{self._fields[name]}\n{value}"
        self._fields[name] = value
