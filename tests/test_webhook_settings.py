"""WEBHOOK_ALLOW and WEBHOOK_SECRET as people write them, and the page on webhooks."""

import asyncio
import base64
import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from job_scheduler.config import load_settings
from job_scheduler.core.handlers.webhook.answers import BODY_MAX_BYTES
from job_scheduler.core.handlers.webhook.guard import Guard
from job_scheduler.core.handlers.webhook.sending import REDIRECTS_MAX, TIMEOUT_SECONDS
from job_scheduler.core.handlers.webhook.transport import CONNECT_SECONDS
from job_scheduler.core.schemas_webhook import HEADERS_MAX
from job_scheduler.exceptions import ConfigurationError
from job_scheduler.urls import URL_MAX_LENGTH
from job_scheduler.webhook_allow import Allowed, parse_webhook_allow
from job_scheduler.webhook_keys import parse_webhook_secret
from tests.support.app import ROOT
from tests.support.webhooks import OK, answer, context, receiver, sender, webhook

PAGE = (ROOT / "docs" / "webhooks.md").read_text()


def key(raw: bytes) -> str:
    """A key as a person writes it."""
    return "whsec_" + base64.b64encode(raw).decode()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a `.env` file of this machine's configures anything."""
    for name in ("WEBHOOK_ALLOW", "WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------- WEBHOOK_ALLOW


def test_entries_are_hosts_domains_addresses_and_networks() -> None:
    text = " Hooks.Internal., *.Corp.example ,db,10.1.2.3, 10.2.0.0/16,fd00::5,fd00:1::/32,, "
    assert parse_webhook_allow(text) == Allowed(
        frozenset({"hooks.internal", "db"}),
        (".corp.example",),
        tuple(map(ip_network, ("10.1.2.3", "10.2.0.0/16", "fd00::5", "fd00:1::/32"))),
    )


def test_nothing_is_allowed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().webhooks_allowed == Allowed()
    monkeypatch.setenv("WEBHOOK_ALLOW", "")
    allowed = load_settings().webhooks_allowed
    assert not allowed.names("")
    assert not allowed.names("localhost")
    assert not allowed.holds(ip_address("127.0.0.1"))


def test_setting_opens_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOW", "127.0.0.1")
    guard = Guard(load_settings().webhooks_allowed)
    assert guard.refusal("http://127.0.0.1/") is None
    assert guard.refusal("http://127.0.0.2/") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://hooks.internal", "'http://hooks.internal' is none of these"),
        ("hooks.internal:80", "'hooks.internal:80' is none of these"),
        ("a b", "'a b' is none of these"),
        ("*", "'*' is none of these"),
        ("*.", "'*.' is none of these"),
        ("*hooks.internal", "is none of these"),
        ("a.*.internal", "is none of these"),
        ("[::1]", "is none of these"),
        ("127.1", "is none of these"),
        ("2130706433", "is none of these"),
        ("10.0.0.0/33", "is none of these"),
        ("10.1.2.3/16", "'10.1.2.3/16' is none of these (do you mean 10.1.0.0/16?)"),
        ("ok.example,ü", "'ü' is none of these"),
    ],
)
def test_other_entry_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOW", text)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert line.startswith("Configuration error: WEBHOOK_ALLOW: must be host names")
    assert words in line
    assert f"(found: {text!r})" in line


# -------------------------------------------------------------------------- WEBHOOK_SECRET


@pytest.mark.parametrize("between", [",", " ", ", ", "\n", " ,, "])
def test_several_keys_stand_beside_each_other(between: str) -> None:
    keys = (b"a" * 24, b"\xff" * 64, b"c" * 32)
    assert parse_webhook_secret(between.join(map(key, keys))) == keys


def test_setting_holds_the_keys_and_does_not_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().webhook_keys == ()
    monkeypatch.setenv("WEBHOOK_SECRET", "")
    assert load_settings().webhook_secret is None
    written = key(b"a" * 24)
    monkeypatch.setenv("WEBHOOK_SECRET", written)
    settings = load_settings()
    assert settings.webhook_keys == (b"a" * 24,)
    assert written[6:] not in f"{settings} {settings!r} {settings.model_dump()}"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("hunter2", 1),
        (key(b"hunter2"), 1),
        (key(b"hunter2" + b"a" * 16), 1),
        (key(b"hunter2" + b"a" * 58), 1),
        (base64.b64encode(b"hunter2" + b"a" * 20).decode(), 1),
        (key(b"hunter2" + b"a" * 18).rstrip("="), 1),
        (key(b"hunter2" + b"a" * 20) + "!", 1),
        ("whsec_hunter2ü", 1),
        (f"{key(b'a' * 24)},{key(b'hunter2')}", 2),
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, text: str, number: int
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", text)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert line == (
        "Configuration error: WEBHOOK_SECRET: must be one or several keys, by comma, each whsec_ "
        f"and then 24 to 64 random bytes in base64; number {number} is none."
    )
    assert refusal.value.__suppress_context__


# --------------------------------------------------------------------------------- the page


def blocks(language: str) -> list[str]:
    """The fenced blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_receiver_of_the_page_takes_what_is_signed_and_nothing_else() -> None:
    [program] = blocks("python")
    [secret] = re.findall(r"whsec_[\w+/=]+", program)
    namespace: dict[str, Any] = {}
    exec(program, namespace)  # noqa: S102 (it is our own page)

    async def send() -> list[int]:
        keys = parse_webhook_secret(secret)
        async with receiver(OK) as to, sender("127.0.0.1", keys) as one:
            await one.send(webhook(to.url(), body={"report": "sales"}), context())
        [request] = to.requests
        return [namespace["receive"](request.headers, body) for body in (request.body, b"{}")]

    assert asyncio.run(send()) == [204, 400]


def test_command_of_the_page_makes_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    [command] = [block for block in blocks("sh") if "whsec_" in block]
    [code] = re.findall(r"python3 -c '(.*)'", command)
    exec(code)  # noqa: S102 (likewise)
    [made] = parse_webhook_secret(capsys.readouterr().out)
    assert len(made) == 32


def test_request_of_the_page_is_one() -> None:
    [request] = [block for block in blocks("sh") if "curl" in block]
    [body] = re.findall(r"-d '(\{.*\})'", request, re.DOTALL)
    wanted = json.loads(body)["webhook"]
    assert webhook(**wanted).body == wanted["body"]


def test_result_of_the_page_is_one() -> None:
    [shown] = map(json.loads, blocks("json"))

    async def send() -> dict[str, Any]:
        body = json.dumps(shown["body"]).encode()
        headers = [f"{name}: {value}" for name, value in shown["headers"].items()]
        async with receiver(answer("200 OK", body, *headers)) as to, sender("127.0.0.1") as one:
            return await one.send(webhook(to.url()), context())

    assert asyncio.run(send()) == shown


def test_limits_of_the_page_are_the_ones_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"up to {URL_MAX_LENGTH:,} ASCII characters" in text
    assert f"Up to {HEADERS_MAX} header fields" in text
    assert f"At most {BODY_MAX_BYTES // 1024} KiB" in text
    assert f"for the whole request, {TIMEOUT_SECONDS:g} by default" in text
    assert f"takes at most {CONNECT_SECONDS:g} of them" in text
    assert {5: "five times at most"}[REDIRECTS_MAX] in text
