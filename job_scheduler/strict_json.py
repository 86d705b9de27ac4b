"""JSON as the service takes and keeps it: what any other program can read back unchanged.

Refused, following I-JSON (RFC 7493): duplicate keys, numbers that a reader would alter
(beyond 64 bits, beyond a double's range, NaN, Infinity), lone surrogates and NUL in strings
and keys, encodings other than UTF-8, and documents nested deeper than ``JSON_MAX_DEPTH``.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Never

from pydantic_core import to_json, to_jsonable_python

from job_scheduler.constants import JSON_MAX_DEPTH, RESULT_MAX_BYTES
from job_scheduler.exceptions import InvalidBody

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

# A string can only hold a NUL or half a surrogate pair when one of these escapes stands in the
# text; most documents have none and are spared the walk.
_SUSPICIOUS_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_FORBIDDEN_CHARACTER = re.compile("[\x00\ud800-\udfff]")
# What a result may hold (perhaps only as part of its text) that JSON has no room for.
_TO_BE_MENDED = re.compile(r"\\u[dD][89a-fA-F]|NaN|Infinity")
_RESULT_HEAD = 1_000
_MARKER_BYTES = 100


class UnusableJson(InvalidBody):
    """Well-formed JSON that some reader would alter, so that it cannot be kept as it is."""

    error_code = "BODY_422"


class _UnusableNumber(UnusableJson):
    """A number that some reader would alter; where it stands is not known yet."""

    def __init__(self, digits: str, reason: str) -> None:
        super().__init__(
            f"The number {digits[:25]} {reason}. Send one that fits; inside a payload, it may also "
            "be a string."
        )


def parse(raw: bytes) -> Any:
    """Parse a JSON document.

    Raises:
        InvalidBody: it is not JSON in UTF-8.
        UnusableJson: it is, but breaks one of this module's rules; ``field`` says where.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidBody("The body is not UTF-8. Send JSON encoded in UTF-8.") from None
    if text.startswith("\ufeff"):
        raise InvalidBody("The body begins with a byte order mark (BOM). Send JSON without one.")
    try:
        document = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidBody(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except _UnusableNumber as error:
        raise UnusableJson(str(error), _place_of_number(text)) from None
    if text.count("[") + text.count("{") > JSON_MAX_DEPTH and _depth(document) > JSON_MAX_DEPTH:
        raise _too_deep()
    if _SUSPICIOUS_ESCAPE.search(text):
        _refuse_forbidden_characters(document)
    return document


def dumps(value: Any) -> str:
    """Return `value` as compact text.

    It is made of JSON's own types; an instant in UTC may stand in it (RFC 3339). pydantic's writer
    is three times as fast as the standard library's, and every batch goes through it.
    """
    return to_json(value).decode()


def loads(text: str) -> Any:
    """Return a stored document, whoever wrote it: never raises.

    One that cannot be parsed or shown (another program may have stored it) becomes an object
    with its beginning, so that one bad row does not hide the others.
    """
    try:
        document = json.loads(text)
        if _depth(document) <= JSON_MAX_DEPTH:
            if _SUSPICIOUS_ESCAPE.search(text):
                document = json.loads(clean_text(json.dumps(document, ensure_ascii=False)))
            return document
    except (ValueError, RecursionError):
        pass  # Not JSON, a number of thousands of digits, or brackets without end.
    return {"unreadable": clean_text(text[:_RESULT_HEAD])}


def same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal to a reader of JSON.

    For Python 1, 1.0 and True are equal, for a reader they are not; the order of an object's
    members means nothing to either.
    """
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def as_result(value: Any, max_bytes: int = RESULT_MAX_BYTES) -> Any:
    """Return what a handler returned as a JSON value that can be stored and shown.

    Dates, models, dataclasses, sets and the like become their usual JSON form; NaN and the
    infinities become text; a lone surrogate becomes U+FFFD. A value that has no JSON form is
    kept as its ``repr``, and one of more than `max_bytes` as its beginning, each
    inside an object that says so: that the work was done matters more than how it was put.
    """
    if value is None:
        return None
    try:
        plain = to_jsonable_python(value)
        text = json.dumps(plain, separators=(",", ":"))
        if _TO_BE_MENDED.search(text):
            text = clean_text(json.dumps(plain, ensure_ascii=False))
            plain = json.loads(text, parse_constant=str)
            text = json.dumps(plain, separators=(",", ":"))
        if _depth(plain) > JSON_MAX_DEPTH:
            return {"unserializable": clean_text(_safe_repr(value)[:_RESULT_HEAD])}
    except (ValueError, TypeError, RecursionError):
        # pydantic raises its own ValueErrors for unknown types, cycles and broken strings.
        return {"unserializable": clean_text(_safe_repr(value)[:_RESULT_HEAD])}
    if len(text) > max_bytes:
        # In the head, every quotation mark becomes two characters.
        head = min(_RESULT_HEAD, (max_bytes - _MARKER_BYTES) // 2)
        return {"truncated": True, "bytes": len(text), "head": text[:head]}
    return plain


def clean_text(text: str) -> str:
    """Return `text` fit to be stored and sent: a lone surrogate becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 (it is the user's, or nested too deeply)
        return f"<{type(value).__name__} that cannot be shown>"


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise UnusableJson("The same key stands here twice. Keep one of them.", clean_text(twice))
    return members


def _integer(digits: str) -> int:
    # 20 characters hold every 64-bit number; longer ones are not even converted.
    if len(digits) <= 20 and INTEGER_MIN <= (number := int(digits)) <= INTEGER_MAX:
        return number
    raise _UnusableNumber(digits, "needs more than 64 bits")


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _UnusableNumber(digits, "is beyond what a 64-bit float can hold")
    return number


def _refuse_constant(name: str) -> Never:
    raise InvalidBody(
        f"{name} is not JSON (RFC 8259). Send a number, or null; inside a payload, it may also be "
        "a string."
    )


def _too_deep() -> UnusableJson:
    return UnusableJson(f"The body is nested more than {JSON_MAX_DEPTH} levels deep. Flatten it.")


def _depth(document: Any) -> int:
    """Return how many containers stand inside one another at most."""
    depth, level = 0, [document]
    while containers := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in containers for child in _children(node)]
    return depth


def _children(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _refuse_forbidden_characters(document: Any) -> None:
    for path, node in _nodes(document):
        if isinstance(node, str) and _FORBIDDEN_CHARACTER.search(node):
            raise UnusableJson(
                "Text may not contain NUL (\\u0000) or half a surrogate pair "
                "(\\ud800 to \\udfff). Remove it.",
                clean_text(path) or None,
            )


def _place_of_number(text: str) -> str | None:
    """Return where the first number stands that cannot be used; None where that is not to be told,
    since the rest of the document is broken.
    """
    try:
        document = _locator.decode(text)
    except (ValueError, RecursionError):
        return None
    places = (path for path, node in _nodes(document) if node is _UNUSABLE)
    return clean_text(next(places, "")) or None


def _nodes(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield all values in their order, each with its place, and keys as texts where they stand."""
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        inner: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, dict):
            waiting += [(path, key) for key in node]
            inner = node.items()
        elif isinstance(node, list):
            inner = enumerate(node)
        values = [(f"{path}.{key}" if path else str(key), value) for key, value in inner]
        waiting += reversed(values)


def _marked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def mark(digits: str) -> Any:
        try:
            return read(digits)
        except _UnusableNumber:
            return _UNUSABLE

    return mark


_UNUSABLE = object()
"""Stands where a number cannot be used."""
# Made once: json.loads makes one for each document when it is given hooks.
_decoder = json.JSONDecoder(
    object_pairs_hook=_object_of_unique_keys,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_refuse_constant,
)
_locator = json.JSONDecoder(parse_int=_marked(_integer), parse_float=_marked(_float))
