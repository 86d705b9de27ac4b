"""Webhooks over a real connection to this machine: what is sent, and what answers make of it."""

import asyncio
import base64
import gzip
import json
import re
from typing import Any

import httpcore
import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from job_scheduler import Fail, RetryLater, __version__
from job_scheduler.core.handlers.webhook.answers import BODY_MAX_BYTES, retry_after
from job_scheduler.core.handlers.webhook.sending import stored_webhook
from job_scheduler.core.handlers.webhook.signing import signature
from tests.support.webhooks import (
    NOW,
    OK,
    TASK_ID,
    Answer,
    FakeNetwork,
    FakeResolver,
    FixedClock,
    Received,
    Receiver,
    answer,
    context,
    receiver,
    redirect,
    sender,
    webhook,
)

LOOPBACK = "127.0.0.1/32"
KEYS = (b"a" * 24, b"b" * 64)


def sent(
    *answers: Answer,
    keys: tuple[bytes, ...] = (),
    attempt: int = 1,
    path: str = "/hook",
    **members: Any,
) -> tuple[Any, list[Received]]:
    """Send a webhook to a receiver with these answers; return what came of it, and the requests."""

    async def send() -> tuple[Any, list[Received]]:
        async with receiver(*answers) as to, sender(LOOPBACK, keys, FixedClock()) as one:
            try:
                result: Any = await one.send(webhook(to.url(path), **members), context(attempt))
            except (Fail, RetryLater) as error:
                result = error
            return result, to.requests

    return asyncio.run(send())


def words_of(error: Fail | RetryLater) -> str:
    """What a failure says, with the receiver's address left out."""
    return re.sub(r"http://127\.0\.0\.1:\d+/", "http://HERE/", str(error))


# ------------------------------------------------------------------------ what is sent


def test_json_is_sent_with_what_tells_of_the_task() -> None:
    _, [request] = sent(OK, body={"größe": [1, None, True]}, attempt=3)
    assert request.line == "POST /hook HTTP/1.1"
    assert json.loads(request.body) == {"größe": [1, None, True]}
    host = request.headers.pop("host")
    assert host.startswith("127.0.0.1:")
    assert request.headers == {
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "accept-encoding": "identity",
        "user-agent": f"job-scheduler/{__version__}",
        "webhook-id": TASK_ID,
        "webhook-timestamp": str(int(NOW.timestamp())),
        "job-scheduler-task-id": TASK_ID,
        "job-scheduler-attempt": "3",
        "job-scheduler-scheduled-for": "2027-07-01T10:00:00Z",
    }


@pytest.mark.parametrize(
    ("members", "content_type", "body"),
    [
        ({"body": "text"}, "application/json", b'"text"'),
        ({"body": 0}, "application/json", b"0"),
        ({"body": False}, "application/json", b"false"),
        ({"body": {}}, "application/json", b"{}"),
        ({"body": ""}, "application/json", b'""'),
        ({"body": None}, None, b""),
        ({}, None, b""),
        ({"body": "a=ü", "headers": {"content-TYPE": "text/plain"}}, "text/plain", b"a=\xc3\xbc"),
        ({"body": "", "headers": {"Content-Type": "text/plain"}}, "text/plain", b""),
        ({"body": [1], "headers": {"Content-Type": "a/b+json"}}, "a/b+json", b"[1]"),
    ],
)
def test_body_is_json_or_the_users_own_text(
    members: dict[str, Any], content_type: str | None, body: bytes
) -> None:
    _, [request] = sent(OK, **members)
    assert (request.headers.get("content-type"), request.body) == (content_type, body)
    assert request.headers["content-length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE", "HEAD"])
def test_every_method_is_sent_with_and_without_a_body(method: str) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    for body, raw in ((None, b""), ([1], b"[1]")):
        result, [request] = sent(reply, path="/a?b=c#d", method=method, body=body)
        assert (request.line, request.body) == (f"{method} /a?b=c HTTP/1.1", raw)
        assert (result["status"], result["body"]) == (200, None)


def test_users_headers_are_added_and_may_name_another_agent() -> None:
    headers = {"Authorization": "Bearer 8d1f", "user-agent": "mine", "X-Empty": "", "Accept": "a/b"}
    _, [request] = sent(OK, headers=headers)
    assert (
        headers.items()
        <= {
            "Authorization": request.headers["authorization"],
            "user-agent": request.headers["user-agent"],
            "X-Empty": request.headers["x-empty"],
            "Accept": request.headers["accept"],
        }.items()
    )


def test_proxies_and_passwords_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    result, [request] = sent(OK)
    assert result["status"] == 200
    assert "authorization" not in request.headers


def test_cookies_are_not_kept() -> None:
    async def send() -> list[Received]:
        cookie = answer("200 OK", b"", "Set-Cookie: session=1; Path=/")
        async with receiver(cookie, OK) as to, sender(LOOPBACK) as one:
            await one.send(webhook(to.url()), context())
            await one.send(webhook(to.url()), context())
            assert to.connections == 1  # It is kept, though.
            return to.requests

    assert "cookie" not in asyncio.run(send())[1].headers


# ----------------------------------------------------------------------------- signing


def test_signature_is_the_one_of_the_published_example() -> None:
    # The example of the scheme's own test suites.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("body", [{"größe": 1}, "text", None])
def test_public_library_verifies_by_each_of_the_keys(key: bytes, body: Any) -> None:
    async def send() -> Received:
        async with receiver(OK) as to, sender(LOOPBACK, KEYS) as one:
            members = {"headers": {"Content-Type": "text/plain"}} if body == "text" else {}
            await one.send(webhook(to.url(), body=body, **members), context())
            return to.requests[0]

    request = asyncio.run(send())
    verifier = standardwebhooks.Webhook(base64.b64encode(key).decode())
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    if body == {"größe": 1}:
        assert verifier.verify(request.body, request.headers) == body
    else:  # The library reads what is JSON only, once it has verified it.
        with pytest.raises(json.JSONDecodeError):
            verifier.verify(request.body, request.headers)
    stranger = standardwebhooks.Webhook(base64.b64encode(b"c" * 24).decode())
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        stranger.verify(request.body, request.headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(request.body + b" ", request.headers)


def test_id_stays_over_attempts() -> None:
    _, [first] = sent(OK, attempt=1, keys=KEYS)
    _, [second] = sent(OK, attempt=2, keys=KEYS)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == TASK_ID


# ----------------------------------------------------------------------------- success


def test_answer_is_the_result() -> None:
    reply = answer(
        "201 Created",
        b'{"a": [1]}',
        "Content-Type: Application/JSON; charset=utf-8",
        "Location: /made/1",
        "X-Request-Id: r1",
        "Set-Cookie: secret=1",
        f"ETag: {'e' * 2000}",
    )
    result, _ = sent(reply)
    assert result == {
        "status": 201,
        "headers": {
            "content-type": "Application/JSON; charset=utf-8",
            "etag": "e" * 1000,
            "location": "/made/1",
            "x-request-id": "r1",
        },
        "body": {"a": [1]},
    }


@pytest.mark.parametrize(
    ("content_type", "raw", "body"),
    [
        ("application/problem+json", b"[]", []),
        ("application/json", b'"\xff"', '"\ufffd"'),
        ("application/json", b"{", "{"),
        ("application/json", b'{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ("application/json", b"[" * 200, "[" * 200),
        ("application/jsonp", b"[]", "[]"),
        ("text/plain; charset=latin-1", b"a\x00\xe4", "a\ufffd\ufffd"),
        ("text/html", "grün".encode(), "grün"),
        ("application/json", b"", None),
    ],
)
def test_body_is_json_where_it_is_else_text(content_type: str, raw: bytes, body: Any) -> None:
    result, _ = sent(answer("200 OK", raw, f"Content-Type: {content_type}"))
    assert result["body"] == body
    assert "truncated" not in result


@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "299 Whatever"])
def test_every_2xx_is_a_success(status: str) -> None:
    result, _ = sent(answer(status, b"fine"))
    assert (result["status"], result["body"]) == (int(status[:3]), "fine")


def test_answer_without_a_body_has_none() -> None:
    result, _ = sent(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert result == {"status": 204, "headers": {}, "body": None}


# ------------------------------------------------------------------- bodies without end


async def endlessly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body that never ends, declared as JSON."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    try:
        while True:
            writer.write(b"10000\r\n" + b"1" * 0x10000 + b"\r\n")
            await writer.drain()
    except ConnectionError:
        pass


def test_body_is_read_up_to_its_limit() -> None:
    result, _ = sent(endlessly)
    assert (result["body"], result["truncated"]) == ("1" * BODY_MAX_BYTES, True)


@pytest.mark.parametrize(("more", "is_cut"), [(0, False), (1, True)])
def test_body_of_exactly_the_limit_is_whole(more: int, is_cut: bool) -> None:
    result, _ = sent(answer("200 OK", b"1" * (BODY_MAX_BYTES + more)))
    assert len(result["body"]) == BODY_MAX_BYTES
    assert result.get("truncated", False) is is_cut


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_body_that_is_compressed_all_the_same_is_not_unpacked(status: str) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    headers = ("Content-Encoding: gzip", "Content-Type: application/json")
    result, _ = sent(answer(status, bomb, *headers))
    if status == "200 OK":
        assert result["headers"]["content-encoding"] == "gzip"
        assert result["body"] is None
    else:
        assert words_of(result) == "POST http://HERE/hook answered 404 Not Found"


def test_success_is_one_though_its_body_breaks_off() -> None:
    async def breaking(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
        writer.write(head + b"12")
        await writer.drain()

    result, _ = sent(breaking)
    # What looks like a number is but the beginning of one.
    assert (result["status"], result["body"], result["truncated"]) == (200, "12", True)


def test_connection_is_closed_at_once_when_the_rest_is_not_read() -> None:
    network = FakeNetwork(answer("200 OK", b"1" * (2 * BODY_MAX_BYTES))[:-1])

    async def send() -> None:
        async with sender(resolver=FakeResolver(), network=network) as one:
            await one.send(webhook("http://8.8.8.8/"), context())
            [stream] = network.streams
            assert stream.is_closed

    asyncio.run(send())


# ----------------------------------------------------------------------------- failure


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("300 Multiple Choices", Fail),
        ("304 Not Modified", Fail),
        ("400 Bad Request", Fail),
        ("401 Unauthorized", Fail),
        ("404 Not Found", Fail),
        ("407 Proxy Authentication Required", Fail),
        ("409 Conflict", Fail),
        ("410 Gone", Fail),
        ("499 Whatever", Fail),
        ("408 Request Timeout", RetryLater),
        ("425 Too Early", RetryLater),
        ("429 Too Many Requests", RetryLater),
        ("500 Internal Server Error", RetryLater),
        ("503 Service Unavailable", RetryLater),
        ("599 Whatever", RetryLater),
    ],
)
def test_status_tells_whether_it_is_worth_repeating(
    status: str, kind: type[Fail] | type[RetryLater]
) -> None:
    error, requests = sent(answer(status), path="/hook?token=hunter2")
    assert type(error) is kind
    known = "" if "Whatever" in status else status[3:]
    assert words_of(error) == f"POST http://HERE/hook answered {status[:3]}{known}"
    assert len(requests) == 1


def test_failure_tells_the_beginning_of_the_answer_on_one_line() -> None:
    error, _ = sent(answer("400 Bad Request", b" no\r\n\x1b[31m such\x00 hook " + b"x" * 1000))
    words = words_of(error).partition("Bad Request: ")[2]
    assert words.startswith("no [31m such\ufffd hook xx")
    assert len(words) == 300


@pytest.mark.parametrize(
    ("status", "text", "seconds"),
    [
        ("429 Too Many Requests", "120", 120.0),
        ("503 Service Unavailable", "Thu, 01 Jul 2027 10:01:03 GMT", 59.5),
        ("500 Internal Server Error", "7", 7.0),
        ("408 Request Timeout", "7", 7.0),
        ("503 Service Unavailable", "1000000", 86_400.0),
        ("503 Service Unavailable", "soon", None),
    ],
)
def test_receiver_says_when_to_come_again(status: str, text: str, seconds: float | None) -> None:
    async def send() -> float | None:
        reply = answer(status, b"", f"Retry-After: {text}")
        async with receiver(reply) as to, sender(LOOPBACK, clock=FixedClock()) as one:
            with pytest.raises(RetryLater) as failure:
                await one.send(webhook(to.url()), context())
            return failure.value.after

    assert asyncio.run(send()) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1.0),
        ("86400", 86_400.0),
        ("86401", 86_400.0),
        ("9" * 18, 86_400.0),
        ("0", None),
        ("-1", None),
        ("1.5", None),
        ("\u0661", None),
        ("", None),
        ("Thu, 01 Jul 2027 10:00:05 GMT", 1.5),
        ("Thu, 01 Jul 2027 12:00:05 +0200", 1.5),
        ("Thursday, 01-Jul-27 10:00:05 GMT", 1.5),
        ("Thu Jul  1 10:00:05 2027", 1.5),
        ("Thu, 01 Jul 2027 10:00:03 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("Thu, 32 Jul 2027 10:00:05 GMT", None),
        ("Thu, 01 Jul 2027 10:00:05 +99999999999999999999", None),
    ],
)
def test_time_to_come_again_is_read_in_all_its_forms(text: str, seconds: float | None) -> None:
    assert retry_after(text, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Za-z]{3}, ?\d+[ -][A-Za-z]+[ -]\d+ [\d:.]* ?[-+A-Z\d]*"))
def test_any_text_is_a_time_or_none(text: str) -> None:
    seconds = retry_after(text, NOW)
    assert seconds is None or 0 < seconds <= 86_400


async def silently(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""


async def nonsensically(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer in no language of HTTP's."""
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()


@pytest.mark.parametrize("reply", [silently, nonsensically])
def test_connection_that_breaks_is_tried_later(reply: Answer) -> None:
    error, _ = sent(reply)
    assert type(error) is RetryLater
    assert error.after is None
    assert words_of(error).startswith("POST http://HERE/hook: ")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (httpcore.ConnectError("certificate verify failed"), "certificate verify failed"),
        (httpcore.WriteError(""), "the connection broke"),
        (ConnectionResetError("broken TLS"), "broken TLS"),
    ],
)
def test_problem_of_the_network_is_told(problem: Exception, words: str) -> None:
    class Broken(FakeNetwork):
        async def connect_tcp(self, *_: Any, **__: Any) -> Any:
            raise problem

    # Beneath the guard, as it would come from TLS.
    async def send() -> None:
        resolver = FakeResolver(hook=[["8.8.8.8"]])
        async with sender(resolver=resolver, network=Broken()) as one:
            with pytest.raises(RetryLater) as failure:
                await one.send(webhook("http://hook/a"), context())
        assert str(failure.value).endswith(words)

    asyncio.run(send())


# --------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 T", "308 P"])
def test_redirect_is_a_failure_unless_it_is_to_be_followed(status: str) -> None:
    error, requests = sent(redirect(status, "/other"))
    assert type(error) is Fail
    assert f"answered {status[:3]}" in words_of(error)
    assert "(set follow_redirects to go where it leads)" in words_of(error)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        ("301 Moved Permanently", "POST", "GET"),
        ("302 Found", "POST", "GET"),
        ("303 See Other", "POST", "GET"),
        ("303 See Other", "PUT", "GET"),
        ("301 Moved Permanently", "PUT", "PUT"),
        ("302 Found", "DELETE", "DELETE"),
        ("307 Temporary Redirect", "POST", "POST"),
        ("308 Permanent Redirect", "POST", "POST"),
    ],
)
def test_redirect_is_followed_as_browsers_do(status: str, method: str, then: str) -> None:
    headers = {"Authorization": "Bearer 8d1f", "Content-Type": "a/b"}
    result, [first, second] = sent(
        redirect(status, "other?a=b"),
        OK,
        method=method,
        headers=headers,
        body={"a": 1},
        follow_redirects=True,
        keys=KEYS,
    )
    assert result["status"] == 200
    assert (first.line, first.body) == (f"{method} /hook HTTP/1.1", b'{"a":1}')
    keeps_body = then != "GET"
    assert (second.line, second.body) == (
        f"{then} /other?a=b HTTP/1.1",
        b'{"a":1}' if keeps_body else b"",
    )
    assert second.headers.get("content-type") == ("a/b" if keeps_body else None)
    # It is the same origin, and each body has its own signature.
    assert second.headers["authorization"] == "Bearer 8d1f"
    seconds = int(NOW.timestamp())
    assert second.headers["webhook-signature"] == signature(KEYS, TASK_ID, seconds, second.body)


def test_head_stays_head() -> None:
    reply = redirect("303 See Other", "/other")
    _, [_, second] = sent(reply, OK, method="HEAD", follow_redirects=True)
    assert second.line == "HEAD /other HTTP/1.1"


def test_other_origin_does_not_get_the_users_headers() -> None:
    async def send() -> Received:
        async with receiver(OK) as other:
            there = redirect("307 Temporary Redirect", other.url("/there"))
            async with receiver(there) as to, sender(LOOPBACK) as one:
                headers = {"Authorization": "secret", "X-Api-Key": "secret"}
                hook = webhook(to.url(), headers=headers, body=[1], follow_redirects=True)
                await one.send(hook, context())
            return other.requests[0]

    request = asyncio.run(send())
    assert (request.line, request.body) == ("POST /there HTTP/1.1", b"[1]")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == TASK_ID
    assert request.headers["user-agent"] == f"job-scheduler/{__version__}"
    assert request.headers.keys().isdisjoint({"authorization", "x-api-key"})


def test_other_origin_gets_no_content_type_where_there_is_none() -> None:
    network = FakeNetwork(redirect("302 Found", "http://1.1.1.1/"), OK)

    async def send() -> None:
        async with sender(resolver=FakeResolver(), network=network) as one:
            await one.send(webhook("http://8.8.8.8/", follow_redirects=True), context())

    asyncio.run(send())
    assert b"content-type" not in network.streams[1].sent.lower()


def test_redirects_come_to_an_end() -> None:
    replies = [redirect("307 Temporary Redirect", f"/{n}") for n in range(9)]
    error, requests = sent(*replies, follow_redirects=True)
    assert type(error) is Fail
    assert words_of(error) == "POST http://HERE/hook was redirected more than 5 times"
    assert len(requests) == 6
    result, _ = sent(*replies[:5], OK, follow_redirects=True)
    assert result["status"] == 200


def test_redirect_without_a_location_is_a_failure() -> None:
    error, _ = sent(answer("302 Found"), follow_redirects=True)
    assert type(error) is Fail
    assert words_of(error) == "POST http://HERE/hook answered 302 Found"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://first/", "302, and its Location cannot be used: Must begin with http"),
        ("http://a@first/", "302, and its Location cannot be used: Must hold no user name"),
        ("http://first:x/", "302, and its Location cannot be used: Invalid port: 'x'"),
        ("http://[/", "302, and its Location cannot be used: "),
        ("http://first/", "302, but is not followed from https to http"),
    ],
)
def test_redirect_that_leads_nowhere_is_a_failure(location: str, words: str) -> None:
    network = FakeNetwork(redirect("302 Found", location))

    async def send() -> str:
        resolver = FakeResolver(first=[["8.8.8.8"]])
        async with sender(resolver=resolver, network=network) as one:
            with pytest.raises(Fail) as failure:
                await one.send(webhook("https://first/", follow_redirects=True), context())
        return str(failure.value)

    assert asyncio.run(send()).startswith(f"POST https://first/ answered {words}")
    assert len(network.dialled) == 1


def test_redirect_from_http_to_https_is_followed() -> None:
    network = FakeNetwork(redirect("308 Permanent Redirect", "https://first/"), OK)

    async def send() -> dict[str, Any]:
        resolver = FakeResolver(first=[["8.8.8.8"]])
        async with sender(resolver=resolver, network=network) as one:
            return await one.send(webhook("http://first/", follow_redirects=True), context())

    assert asyncio.run(send())["status"] == 200
    assert network.dialled == [("8.8.8.8", 80), ("8.8.8.8", 443)]


# -------------------------------------------------------------------------- cancelling


def held(begun: asyncio.Event, gone: asyncio.Event, head: bytes) -> Answer:
    """An answer that begins with `head` and does not end, until the other side has gone."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        begun.set()
        assert await reader.read() == b""
        gone.set()

    return hold


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"], ids=["no answer", "slow body"]
)
def test_cancelled_request_gives_its_connection_back(head: bytes) -> None:
    async def send() -> None:
        begun, gone = asyncio.Event(), asyncio.Event()
        reply = held(begun, gone, head)
        async with receiver(reply, OK) as to, sender(LOOPBACK) as one:
            sending = asyncio.ensure_future(one.send(webhook(to.url()), context()))
            await begun.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await asyncio.wait_for(gone.wait(), 10)
            # And the next one is sent as if nothing had been.
            assert (await one.send(webhook(to.url()), context()))["status"] == 200

    asyncio.run(send())


def test_many_are_sent_at_once() -> None:
    async def send() -> Receiver:
        together, number = asyncio.Event(), 0

        async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal number
            number += 1
            if number == 150:
                together.set()
            await together.wait()
            writer.write(OK)
            await writer.drain()

        async with receiver(*[wait] * 150) as to, sender(LOOPBACK) as one:
            calls = [one.send(webhook(to.url()), context()) for _ in range(150)]
            await asyncio.wait_for(asyncio.gather(*calls), 60)
            return to

    assert asyncio.run(send()).connections == 150


# --------------------------------------------------------------------------- from stock


def test_stored_webhook_is_the_one_that_was_asked_for() -> None:
    hook = webhook("https://a.example/", headers={"A": "b"}, body={"a": None}, method="PUT")
    for document in (
        hook.model_dump(mode="json"),
        hook.model_dump(mode="json", exclude_unset=True),
    ):
        assert stored_webhook(json.loads(json.dumps(document))) == hook


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "webhook: Must be a JSON object, with a url at least."),
        ({"url": "nonsense"}, "webhook.url: Must begin with http:// or https://."),
        ({"url": "http://a/", "new": 1}, "webhook.new: Extra inputs are not permitted"),
    ],
)
def test_stored_webhook_that_is_none_fails_with_words(document: Any, words: str) -> None:
    with pytest.raises(Fail) as failure:
        stored_webhook(document)
    assert str(failure.value) == f"this webhook cannot be sent: {words}"
