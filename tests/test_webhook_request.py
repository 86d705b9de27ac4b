"""What a webhook may ask for: what is taken, what is refused and why, as it is documented."""

import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from job_scheduler.core.schemas_webhook import Webhook
from job_scheduler.urls import URL_PATTERN, Url, parse_url, shown
from tests.support.webhooks import webhook


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a", Url("http", "a", 80)),
        ("https://A.Example.com/b?c#d", Url("https", "a.example.com", 443)),
        ("HTTPS://a_b.c-d.e9.:8443", Url("https", "a_b.c-d.e9.", 8443)),
        ("http://9a.b/", Url("http", "9a.b", 80)),
        ("http://xn--mnchen-3ya.example?", Url("http", "xn--mnchen-3ya.example", 80)),
        ("http://1.2.3.4:1/", Url("http", "1.2.3.4", 1)),
        ("http://255.255.255.255:65535", Url("http", "255.255.255.255", 65535)),
        ("https://[2001:DB8::1]:80/a", Url("https", "2001:db8::1", 80)),
        ("http://[::ffff:1.2.3.4]#", Url("http", "::ffff:1.2.3.4", 80)),
        (f"http://{'a' * 63}.b/", Url("http", f"{'a' * 63}.b", 80)),
        (f"http://{'a.' * 126}b/", Url("http", f"{'a.' * 126}b", 80)),
        ("http://a/%20@:!$&'()*+,;=\"<>[]^`{|}~", Url("http", "a", 80)),
    ],
)
def test_url_is_understood(text: str, url: Url) -> None:
    assert parse_url(text) == url
    assert re.search(URL_PATTERN, text)


def read(text: str) -> Url | str:
    """Where a URL leads, or why it cannot be used."""
    try:
        return parse_url(text)
    except ValueError as error:
        return str(error)


@given(st.from_regex(URL_PATTERN.replace("$", r"\Z").replace("^", r"\A")))
def test_documented_form_is_what_is_taken_and_httpx_reads_it_alike(text: str) -> None:
    url = read(text)
    if isinstance(url, str):
        # A pattern cannot count well, and would be long if it were to know IPv6 by heart.
        assert len(text) > 253 or ("://[" in text and "an IPv6 address in brackets" in url)
        return
    theirs = httpx.URL(text)
    assert theirs.scheme == url.scheme
    assert theirs.raw_host.decode().lower() == url.host
    assert theirs.port in (url.port, None)
    assert theirs.userinfo == b""


@given(st.text() | st.from_regex(r"https?://[\w.:@\[\]\\-]{0,9}[/?#]?.{0,3}", fullmatch=True))
def test_what_is_taken_has_the_documented_form(text: str) -> None:
    url = read(text)
    assert url.endswith(".") if isinstance(url, str) else re.search(URL_PATTERN, text)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "Must begin with http:// or https://."),
        ("mailto:a@example.com", "Must begin with http:// or https://."),
        ("http://a b/", "Must hold no white space, no backslash and only ASCII. Write other "),
        ("http://a\\b/", "Must hold no white space, no backslash"),
        ("http://münchen.example/", "an international host name in its form that begins with xn--"),
        ("http://a:b@c/", "Must hold no user name or password. Send them in a header"),
        ("http:///a", "The host must be a name, such as hooks.example.com"),
        ("http://127.1/", "an IPv4 address in its usual form (four numbers from 0 to 255)"),
        ("http://a:65536/", "The port must be a number from 1 to 65535."),
        (f"http://a/{'b' * 2040}", "Must have at most 2048 characters."),
    ],
)
def test_refused_url_tells_what_to_do(url: str, words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        webhook(url)
    [fault] = refusal.value.errors()
    assert words in fault["msg"]


def test_longest_url_is_taken() -> None:
    url = f"http://a/{'b' * 2039}"
    assert webhook(url).url == url


@pytest.mark.parametrize("url", ["http://a/b?secret", "http://a/b#secret?", "http://a/b"])
def test_url_is_shown_without_its_query(url: str) -> None:
    assert shown(url) == "http://a/b"


# ----------------------------------------------------------------------------- members


def test_only_the_url_is_needed() -> None:
    hook = webhook("https://a.example/")
    assert (hook.method, hook.headers, hook.body) == ("POST", {}, None)
    assert hook.follow_redirects is False


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"url": 5}, "url"),
        ({"url": None}, "url"),
        ({"method": "post"}, "method"),
        ({"method": "CONNECT"}, "method"),
        ({"headers": []}, "headers"),
        ({"headers": {"A": 1}}, "headers.A"),
        ({"headers": {"A": None}}, "headers.A"),
        ({"headers": {"A": ["b"]}}, "headers.A"),
        ({"follow_redirects": "true"}, "follow_redirects"),
        ({"follow_redirects": 1}, "follow_redirects"),
        ({"timeout": 5}, "timeout"),
    ],
)
def test_what_has_another_type_or_name_is_refused(members: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        webhook(**members)
    [fault] = refusal.value.errors()
    assert ".".join(map(str, fault["loc"])) == field


@pytest.mark.parametrize("document", [None, 5, "http://a/", ["http://a/"], True])
def test_what_is_no_object_is_refused_with_its_own_words(document: Any) -> None:
    class Task(BaseModel):
        webhook: Webhook

    with pytest.raises(ValidationError) as refusal:
        Task.model_validate({"webhook": document}, from_attributes=True)
    [fault] = refusal.value.errors()
    assert (fault["loc"], fault["msg"]) == (
        ("webhook",),
        "Must be a JSON object, with a url at least.",
    )
    made = webhook()
    assert Task(webhook=made).webhook == made


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"": "a"}, "'' is no name of a header field"),
        ({"a b": "c"}, "'a b' is no name"),
        ({"a:": "c"}, "'a:' is no name"),
        ({"ä": "c"}, "'ä' is no name"),
        ({"a\r\nb": "c"}, r"'a\r\nb' is no name"),
        ({"a\n": "c"}, r"'a\n' is no name"),
        ({"a" * 201: "c"}, "is no name"),
        ({"Host": "a"}, "Host is set by the service itself. Leave it out."),
        ({"content-length": "5"}, "content-length is set by the service itself"),
        ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding is set by"),
        ({"Connection": "close"}, "Connection is set by"),
        ({"Accept-Encoding": "gzip"}, "Accept-Encoding is set by"),
        ({"Expect": "100-continue"}, "Expect is set by"),
        ({"Webhook-ID": "a"}, "Webhook-ID is set by"),
        ({"webhook-timestamp": "a"}, "webhook-timestamp is set by"),
        ({"webhook-signature": "a"}, "webhook-signature is set by"),
        ({"Job-Scheduler-Task-Id": "a"}, "Job-Scheduler-Task-Id is set by"),
        ({"job-scheduler-anything": "a"}, "job-scheduler-anything is set by"),
        ({"X-A": "a", "B": "b", "x-a": "c"}, "x-a stands here twice. Keep one of them."),
        ({"A": "b\r\nHost: c"}, "A: a value must be ASCII without line breaks"),
        ({"A": "b\n"}, "A: a value must be"),
        ({"A": "b\x00"}, "A: a value must be"),
        ({"A": "b\x7f"}, "A: a value must be"),
        ({"A": "ä"}, "A: a value must be"),
        ({"A": " b"}, "A: a value must be"),
        ({"A": "b\t"}, "A: a value must be"),
        ({"A": "b" * 8193}, "A: a value must be"),
        ({f"A{n}": "b" for n in range(51)}, "Must hold at most 50 header fields."),
    ],
)
def test_header_that_cannot_be_sent_is_refused(headers: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        webhook(headers=headers)
    [fault] = refusal.value.errors()
    assert fault["loc"] == ("headers",)
    assert words in fault["msg"]
    assert "hunter2" not in fault["msg"]


def test_headers_that_can_be_sent_are_taken() -> None:
    headers = {f"A{n}": "b" for n in range(49)} | {"!#$%&'*+.^_`|~9": "b \t~" + "c" * 8188}
    assert webhook(headers=headers).headers == headers


# ------------------------------------------------------------------------ as documented


def test_members_are_described_with_examples() -> None:
    schema = Webhook.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["url"]
    [example] = schema["examples"]
    assert webhook(**example).body == example["body"]
    for name in ("url", "headers", "body", "follow_redirects"):
        assert schema["properties"][name]["description"].endswith("."), name
    assert not {"type", "anyOf", "$ref"} & schema["properties"]["body"].keys()


def test_documented_headers_are_those_that_are_taken() -> None:
    headers, _null = Webhook.model_json_schema()["properties"]["headers"]["anyOf"]
    name, value = (
        headers[part]["pattern"].removesuffix("$") + r"\Z"
        for part in ("propertyNames", "additionalProperties")
    )
    for text, is_name, is_value in (
        ("Accept", True, True),
        ("a b", False, True),
        ("a\n", False, False),
        ("", False, True),
        (" ", False, False),
    ):
        assert bool(re.search(name, text)) is is_name
        assert bool(re.search(value, text)) is is_value
