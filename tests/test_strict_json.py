"""JSON that is taken comes back unchanged; the rest is refused with a reason."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from job_scheduler.constants import JSON_MAX_DEPTH, RESULT_MAX_BYTES
from job_scheduler.exceptions import InvalidBody
from job_scheduler.strict_json import (
    UnusableJson,
    as_result,
    clean_text,
    dumps,
    parse,
    same,
)

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_characters="\x00", codec="utf-8")), inner)
    ),
    max_leaves=20,
)


@given(documents)
def test_what_is_written_is_read_back_unchanged(document: Any) -> None:
    assert repr(parse(dumps(document).encode())) == repr(document)
    assert same(parse(dumps(document).encode()), document)


@given(st.binary(max_size=40) | st.text('[]{}",:\\ud80NaInfity-+.eE0123456789tru', max_size=40))
def test_any_bytes_are_refused_or_taken_for_good(raw: bytes | str) -> None:
    try:
        document = parse(raw if isinstance(raw, bytes) else raw.encode())
    except InvalidBody:
        return
    assert repr(parse(dumps(document).encode())) == repr(document)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value at line 1, column 1"),
        (b"{", "Expecting property name"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"{'a': 1}", "Expecting property name"),
        (b"[1] 2", "Extra data at line 1, column 5"),
        (b'\n"a\x01b"', "Invalid control character at at line 2, column 3"),
        (b'"a\x00b"', "Invalid control character"),
        (b"01", "Extra data"),
        (b"+1", "Expecting value"),
        (b".5", "Expecting value"),
        (b'"\\x41"', "Invalid \\escape"),
        (b'\xef\xbb\xbf"a"', "BOM"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ('"ä"'.encode("latin-1"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "not valid JSON"),
        ('{"a": 1}'.encode("utf-32-be"), "not valid JSON"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b'{"a": Infinity}', "Infinity is not JSON"),
    ],
)
def test_what_is_not_json_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidBody) as refusal:
        parse(raw)
    assert refusal.value.error_code == "BODY_400"
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a", "twice. Keep one"),
        ('[{"b": {"a": 1, "\\u0061": 2}}]', "a", "twice. Keep one"),
        ('{"\\ud800": 1, "\\ud800": 2}', "\ufffd", "twice. Keep one"),
        ("9223372036854775808", None, "9223372036854775808 needs more than 64 bits"),
        ("-9223372036854775809", None, "needs more than 64 bits"),
        ("1" * 5000, None, "1111111111111111111111111 needs more than 64 bits"),
        ("1e400", None, "1e400 is beyond"),
        ("-1e400", None, "-1e400 is beyond"),
        ("1" * 400 + ".0", None, "beyond what a 64-bit float can hold. Send one that fits"),
        ('{"a": 1, "b": [2, {"c": 9223372036854775808}, 1e400]}', "b.1.c", "more than 64 bits"),
        ('[1, {"a": {}}, -1e400, 9223372036854775808]', "2", "-1e400 is beyond"),
        ('{"\\ud800": 1e400}', "\ufffd", "1e400 is beyond"),
        ('{"a": 1e400, "a": 1}', None, "1e400 is beyond"),
        ('{"a": 1e400, "b"', None, "1e400 is beyond"),
        ('{"a": 1e400, "b": ' + "[" * 100_000, None, "1e400 is beyond"),
        ('"a\\u0000"', None, "NUL"),
        ('"\\ud800"', None, "surrogate"),
        ('"\\uDFFF\\ud83d"', None, "surrogate"),
        ('{"a": ["b", {"c": "\\u0000"}]}', "a.1.c", "NUL"),
        ('{"a": {"\\u0000": 1}}', "a", "NUL"),
        ('{"\\ud800": 1}', None, "surrogate"),
        ('{"\\ud800": {"\\ud801": "x"}}', "\ufffd", "surrogate"),
        ("[" * 101 + "]" * 101, None, "more than 100 levels deep"),
        ("[" * 101 + "1" + "]" * 101, None, "more than 100 levels deep"),
        ('{"a":' * 101 + "1" + "}" * 101, None, "more than 100 levels deep"),
        ("[" * 1_000 + "]" * 1_000, None, "more than 100 levels deep"),
        ("[" * 100_000, None, "more than 100 levels deep"),
        ('{"a":' * 100_000, None, "more than 100 levels deep"),
    ],
)
def test_what_some_reader_would_alter_is_refused(raw: str, field: str | None, reason: str) -> None:
    with pytest.raises(UnusableJson) as refusal:
        parse(raw.encode())
    assert refusal.value.error_code == "BODY_422"
    assert reason in str(refusal.value)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("raw", "document"),
    [
        (b" \n null ", None),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
        (b'"\\ud83d\\ude00"', "😀"),
        ('"😀"'.encode(), "😀"),
        (b'"\\\\u0000 \\\\ud800"', "\\u0000 \\ud800"),
        (b'{"a": 1, "A": 2, "": 3}', {"a": 1, "A": 2, "": 3}),
        (b'["' + b"[{" * 200 + b'"]', ["[{" * 200]),
    ],
)
def test_what_every_reader_understands_is_taken(raw: bytes, document: Any) -> None:
    assert parse(raw) == document


def test_nesting_is_taken_up_to_the_limit() -> None:
    for deep in (
        "[" * JSON_MAX_DEPTH + "]" * JSON_MAX_DEPTH,
        '{"a":' * JSON_MAX_DEPTH + "null" + "}" * JSON_MAX_DEPTH,
        "[" + "[1],{}," * 500 + "[2]]",
    ):
        assert dumps(parse(deep.encode())) == deep


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        ("1", 1, False),
        (None, {}, False),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}, True),
        ([1, 2], [2, 1], False),
    ],
)
def test_values_are_the_same_for_a_reader_of_json(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal


# ---------------------------------------------------------------------- results


class _Model(BaseModel):
    when: datetime


@dataclass
class _Point:
    x: int
    y: float


class _Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        ("text", "text"),
        ({"a": [1, 2.5, True, None]}, {"a": [1, 2.5, True, None]}),
        ((1, 2), [1, 2]),
        ({1: "a"}, {"1": "a"}),
        (b"bytes", "bytes"),
        (datetime(2031, 7, 1, 12, tzinfo=UTC), "2031-07-01T12:00:00Z"),
        (date(2031, 7, 1), "2031-07-01"),
        (timedelta(seconds=90), "PT1M30S"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Path("a/b"), "a/b"),
        (_Point(1, 2.0), {"x": 1, "y": 2.0}),
        (_Model(when=datetime(2031, 7, 1, tzinfo=UTC)), {"when": "2031-07-01T00:00:00Z"}),
        (float("nan"), "NaN"),
        ([float("inf"), {"a": float("-inf")}], ["Infinity", {"a": "-Infinity"}]),
        ("half \ud800 pair", "half \ufffd pair"),
        ([{"a": "\udfff"}], [{"a": "\ufffd"}]),
        ("NaN is only a word here", "NaN is only a word here"),
        (2**70, 2**70),
    ],
)
def test_result_takes_its_usual_json_form(value: Any, result: Any) -> None:
    taken = as_result(value)
    assert repr(taken) == repr(result)
    assert json.loads(dumps(taken).encode()) == taken


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: object, "<class 'object'>"),
        (_cycle, "[[...]]"),
        (lambda: [_Unprintable()], "<list that cannot be shown>"),
        (lambda: _nested(JSON_MAX_DEPTH + 1), "[[["),
        (lambda: _nested(100_000), "<list that cannot be shown>"),
        (lambda: b"\xff", "b'\\xff'"),
        (lambda: {"\ud800": 1}, "{'\\ud800': 1}"),
    ],
)
def test_result_without_a_json_form_is_kept_as_its_repr(
    make: Callable[[], Any], shown: str
) -> None:
    taken = as_result(make())
    assert taken.keys() == {"unserializable"}
    assert taken["unserializable"].startswith(shown)


def test_result_as_deep_as_the_limit_is_kept_whole() -> None:
    assert as_result(_nested(JSON_MAX_DEPTH)) == _nested(JSON_MAX_DEPTH)


def test_long_result_is_cut_and_says_so() -> None:
    assert as_result("x" * (RESULT_MAX_BYTES - 2)) == "x" * (RESULT_MAX_BYTES - 2)
    taken = as_result("x" * RESULT_MAX_BYTES)
    assert taken == {
        "truncated": True,
        "bytes": RESULT_MAX_BYTES + 2,
        "head": '"' + "x" * 999,
    }


def test_text_is_cleaned_of_half_surrogate_pairs_only() -> None:
    assert clean_text("a\ud800b\udc00c \ud83d\ude00 é\x00") == "a\ufffdb\ufffdc 😀 é\x00"
