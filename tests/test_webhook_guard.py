"""Which addresses webhooks reach: those that are dialled are those that were examined.

Nothing here is dialled: the resolver and the network are the tests' own.
"""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

import httpcore
import pytest
from pydantic import ValidationError

from job_scheduler import Fail, RetryLater
from job_scheduler.core.handlers.webhook.addresses import Address, kind_of_inside
from job_scheduler.core.handlers.webhook.guard import AddressRefused, Guard
from job_scheduler.core.handlers.webhook.resolver import SystemResolver
from job_scheduler.core.handlers.webhook.transport import GuardedNetwork
from job_scheduler.urls import parse_url
from job_scheduler.webhook_allow import Allowed, parse_webhook_allow
from tests.support.webhooks import (
    OK,
    FakeNetwork,
    FakeResolver,
    answer,
    context,
    redirect,
    sender,
    webhook,
)

INSIDE = [
    ("0.0.0.0", "an unspecified"),  # noqa: S104 (nothing is bound)
    ("0.1.2.3", "an unspecified"),
    ("10.0.0.1", "a private"),
    ("10.255.255.255", "a private"),
    ("100.64.0.1", "a private"),
    ("100.100.100.200", "a private"),  # metadata
    ("100.127.255.255", "a private"),
    ("127.0.0.1", "a loopback"),
    ("127.255.255.254", "a loopback"),
    ("168.63.129.16", "a cloud's inside"),
    ("169.254.0.1", "a link-local"),
    ("169.254.169.254", "a link-local"),  # metadata
    ("172.16.0.1", "a private"),
    ("172.31.255.255", "a private"),
    ("192.0.0.1", "a reserved"),
    ("192.0.0.192", "a reserved"),  # metadata
    ("192.0.2.1", "a documentation"),
    ("192.88.99.1", "a reserved"),
    ("192.168.1.1", "a private"),
    ("198.18.0.1", "a reserved"),
    ("198.19.255.255", "a reserved"),
    ("198.51.100.7", "a documentation"),
    ("203.0.113.7", "a documentation"),
    ("224.0.0.1", "a multicast"),
    ("239.255.255.255", "a multicast"),
    ("240.0.0.1", "a reserved"),
    ("255.255.255.255", "a reserved"),
    ("::", "an unspecified"),
    ("::1", "a loopback"),
    ("::127.0.0.1", "a reserved"),  # IPv4-compatible
    ("::8.8.8.8", "a reserved"),
    ("::ffff:127.0.0.1", "a loopback"),  # IPv4-mapped
    ("::ffff:10.0.0.1", "a private"),
    ("::ffff:169.254.169.254", "a link-local"),
    ("::ffff:168.63.129.16", "a cloud's inside"),
    ("::ffff:0:127.0.0.1", "a reserved"),  # IPv4-translated
    ("64:ff9b::10.0.0.1", "a private"),  # NAT64
    ("64:ff9b::a9fe:a9fe", "a link-local"),
    ("64:ff9b:1::7f00:1", "a reserved"),  # NAT64 of a network's own
    ("100::1", "a reserved"),
    ("1fff:ffff::1", "a reserved"),
    ("2001::7f00:1", "a reserved"),  # Teredo
    ("2001:2::1", "a reserved"),
    ("2001:10::1", "a reserved"),
    ("2001:db8::1", "a documentation"),
    ("2002:7f00:1::", "a reserved"),  # 6to4
    ("2002:808:808::1", "a reserved"),
    ("3fff::1", "a documentation"),
    ("4000::1", "a reserved"),
    ("5f00::1", "a reserved"),
    ("fc00::1", "a private"),
    ("fd00:ec2::254", "a private"),  # metadata
    ("fe80::1", "a link-local"),
    ("fe80::1%1", "a link-local"),
    ("febf::1", "a link-local"),
    ("fec0::1", "a private"),
    ("feff::1", "a private"),
    ("ff02::1", "a multicast"),
    ("ffff::1", "a multicast"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1"),
    *("126.255.255.255", "128.0.0.1", "168.63.129.15", "168.63.129.17", "169.253.255.255"),
    *("172.15.255.255", "172.32.0.1", "192.0.1.1", "192.167.255.255", "198.17.255.255"),
    *("198.20.0.1", "223.255.255.255", "2000::1", "2001:200::1", "2001:4860:4860::8888"),
    *("2003::1", "2606:4700::1111", "3ffe:ffff::1", "::ffff:8.8.8.8", "64:ff9b::808:808"),
]


@pytest.mark.parametrize(("address", "kind"), INSIDE)
def test_inside_address_is_known_for_what_it_is(address: str, kind: str) -> None:
    assert kind_of_inside(ip_address(address)) == kind


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_none_of_these(address: str) -> None:
    assert kind_of_inside(ip_address(address)) is None


# ------------------------------------------------------------------------ by the wire


def host(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


async def refusal_of(url: str, resolver: FakeResolver, allow: str = "") -> str:
    """Send to a URL; return why it fails for good, with nothing dialled."""
    network = FakeNetwork(OK)
    async with sender(allow, resolver=resolver, network=network) as one:
        with pytest.raises(Fail) as refusal:
            await one.send(webhook(url), context())
    assert network.dialled == []
    return str(refusal.value)


@pytest.mark.parametrize(("address", "kind"), INSIDE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_name_of_an_inside_address_is_refused_at_once(address: str, kind: str, scheme: str) -> None:
    resolver = FakeResolver(hook=[[address]])
    words = asyncio.run(refusal_of(f"{scheme}://hook:8080/", resolver))
    assert words == (
        f"POST {scheme}://hook:8080/: the host 'hook' leads to {kind} address, which webhooks may "
        "not reach: WEBHOOK_ALLOW can open it"
    )


@pytest.mark.parametrize(("address", "kind"), [each for each in INSIDE if "%" not in each[0]])
def test_inside_address_itself_is_refused_at_once(address: str, kind: str) -> None:
    url = f"http://{host(address)}/"
    assert f"leads to {kind} address" in asyncio.run(refusal_of(url, FakeResolver()))
    # That can be told without a look-up, too.
    assert f"leads to {kind} address" in str(Guard(parse_webhook_allow("")).refusal(url))


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "1.1.1.1", "fe80::1"],
        ["2606:4700::1111", "::ffff:10.0.0.1"],
    ],
)
def test_host_with_one_inside_address_among_others_is_refused(addresses: list[str]) -> None:
    asyncio.run(refusal_of("http://mixed/", FakeResolver(mixed=[addresses])))


@pytest.mark.parametrize(
    "name",
    # As the system's own look-up takes them, should one of them ever get so far.
    ["2130706433", "0177.0.0.1", "0x7f.1", "127.1", "0x7f000001", "017700000001"],
)
def test_number_that_the_system_takes_for_an_address_is_examined(name: str) -> None:
    network = FakeNetwork()

    async def connect() -> None:
        resolver = SystemResolver()
        guarded = GuardedNetwork(Guard(Allowed()), resolver, network)
        with pytest.raises(AddressRefused, match="leads to a loopback address"):
            await guarded.connect_tcp(name, 80)
        resolver.close()

    asyncio.run(connect())
    assert network.dialled == []


HOSTILE = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.1./",
    "http://127.0.0.01/",
    "http://127.0.0.256/",
    "http://a.1/",
    "http://1/",
    "http://0/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://127%2e0%2e0%2e1/",
    "http://%31%32%37.0.0.1/",
    "http://ⓛocalhost/",
    "http://good.example@127.0.0.1/",
    "http://user:password@good.example/",
    "http://good.example:80@127.0.0.1/",
    "http://good.example#@127.0.0.1\\/",
    "http://good.example\\@127.0.0.1/",
    "http://127.0.0.1\\.good.example/",
    "http:\\\\127.0.0.1/",
    "http:127.0.0.1/",
    "http:///127.0.0.1/",
    "http:/127.0.0.1/",
    "//127.0.0.1/",
    "127.0.0.1",
    "http://",
    "http://?a",
    "http://:80/",
    "http://good.example:0/",
    "http://good.example:65536/",
    "http://good.example:-1/",
    "http://good.example:080/",
    "http://good.example:/",
    "http://good.example:8 0/",
    "http://good.example:٨٠/",
    "http://good.example:80:80/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[::1%25lo]/",
    "http://[::1%lo]/",
    "http://[v1.a]/",
    "http://[]/",
    "http://[:::]/",
    "http://[127.0.0.1]/",
    "http://good.example /",
    " http://good.example/",
    "http://good.example/\r\nHost: inside",
    "http://good.example/\tx",
    "http://good.example/\x00",
    "http://good.example/\x7f",
    "http://good.example/\u2028",
    "http://good..example/",
    "http://.example/",
    "http://-a.example/",
    "http://a-.example/",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 126}bc/",
    f"http://good.example/{'a' * 2048}",
    "file:///etc/passwd",
    "ftp://good.example/",
    "gopher://127.0.0.1:6379/_",
    "unix:///run/docker.sock",
    "javascript:alert(1)",
    "",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_url_that_not_everybody_reads_alike_is_refused_when_it_is_posted(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        webhook(url)
    [fault] = refusal.value.errors()
    assert fault["loc"] == ("url",)
    assert fault["msg"].endswith(".")


@pytest.mark.parametrize("url", HOSTILE)
def test_redirect_to_such_a_url_leads_nowhere_inside(url: str) -> None:
    # Some of them lead to a path of the first host, or to the other one, by anybody's reading.
    resolver = FakeResolver(**{"first": [["8.8.8.8"]], "good.example": [["1.1.1.1"]]})
    network = FakeNetwork(redirect("302 Found", url), OK, OK)

    async def send() -> None:
        async with sender(resolver=resolver, network=network) as one:
            with suppress(Fail, RetryLater):
                await one.send(webhook("http://first/", follow_redirects=True), context())

    asyncio.run(send())
    assert network.dialled[0] == ("8.8.8.8", 80)
    assert {address for address, _ in network.dialled} <= {"8.8.8.8", "1.1.1.1"}


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "http://[::ffff:127.0.0.1]:6379/",
        "//169.254.169.254/latest/meta-data",
        "http://inside/",
        "https://inside/",
        "http://127%2E0%2E0%2E1/",
        "http://127。0。0。1/",
        "http://good.example@127.0.0.1/",
    ],
)
def test_redirect_to_the_inside_is_refused(target: str) -> None:
    resolver = FakeResolver(first=[["8.8.8.8"]], inside=[["10.0.0.1"]])
    network = FakeNetwork(redirect("307 Temporary Redirect", target), OK)

    async def send() -> None:
        async with sender(resolver=resolver, network=network) as one:
            with pytest.raises(Fail):
                await one.send(webhook("http://first/", follow_redirects=True), context())

    asyncio.run(send())
    assert network.dialled == [("8.8.8.8", 80)]


def test_name_that_changes_between_look_and_connect_gains_nothing() -> None:
    resolver = FakeResolver(rebound=[["8.8.8.8"], ["127.0.0.1"]])
    network = FakeNetwork(OK)

    async def send() -> None:
        async with sender(resolver=resolver, network=network) as one:
            await one.send(webhook("http://rebound/"), context())

    asyncio.run(send())
    assert (resolver.asked, network.dialled) == (["rebound"], [("8.8.8.8", 80)])
    assert resolver.is_closed


def test_name_is_examined_again_for_each_new_connection() -> None:
    resolver = FakeResolver(rebound=[["8.8.8.8"], ["127.0.0.1"]])
    network = FakeNetwork(answer("200 OK", b"", "Connection: close"), OK)

    async def send() -> None:
        async with sender(resolver=resolver, network=network) as one:
            await one.send(webhook("http://rebound/"), context())
            with pytest.raises(Fail, match="a loopback address"):
                await one.send(webhook("http://rebound/"), context())

    asyncio.run(send())
    assert network.dialled == [("8.8.8.8", 80)]


def test_host_is_still_spoken_to_by_its_name() -> None:
    resolver = FakeResolver(secure=[["8.8.8.8"]])
    network = FakeNetwork(OK)

    async def send() -> None:
        async with sender(resolver=resolver, network=network) as one:
            await one.send(webhook("https://secure:8443/a"), context())

    asyncio.run(send())
    [stream] = network.streams
    assert network.dialled == [("8.8.8.8", 8443)]
    assert stream.tls_name == "secure"
    assert b"\r\nHost: secure:8443\r\n" in stream.sent


# ---------------------------------------------------------------------- what is opened


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("hook", "http://hook/"),
        ("other, hook ,", "http://HOOK./"),
        ("Hook.", "http://hook/"),
        ("10.1.2.3", "http://hook/"),
        ("10.1.2.3", "http://10.1.2.3/"),
        ("10.0.0.0/8", "http://hook/"),
        ("0.0.0.0/0,::/0", "http://hook/"),
        ("*.internal", "http://a.internal/"),
        ("*.internal", "http://a.b.INTERNAL/"),
        ("fd00::/8", "http://six/"),
        ("fd00::5", "http://[fd00:0::5]/"),
    ],
)
def test_what_is_allowed_is_reached(allow: str, url: str) -> None:
    inside = [["10.1.2.3"]]
    resolver = FakeResolver(
        **{
            "hook": inside,
            "hook.": inside,
            "six": [["fd00::5"]],
            "a.internal": inside,
            "a.b.internal": inside,
        }
    )
    network = FakeNetwork(OK)

    async def send() -> None:
        async with sender(allow, resolver=resolver, network=network) as one:
            await one.send(webhook(url), context())

    assert Guard(parse_webhook_allow(allow)).refusal(url) is None
    asyncio.run(send())
    assert network.dialled in ([("10.1.2.3", 80)], [("fd00::5", 80)])


@pytest.mark.parametrize(
    ("allow", "name"),
    [
        ("", "hook"),
        ("hook.example", "hook"),
        ("ook", "hook"),
        ("10.1.2.4", "hook"),
        ("10.2.0.0/16", "hook"),
        ("::ffff:10.1.2.3", "hook"),
        ("*.internal", "internal"),
        ("*.internal", "notinternal"),
        ("*.internal", "internal.example"),
    ],
)
def test_what_is_not_quite_that_stays_refused(allow: str, name: str) -> None:
    resolver = FakeResolver(**{name: [["10.1.2.3"]]})
    assert "a private address" in asyncio.run(refusal_of(f"http://{name}/", resolver, allow))


@pytest.mark.parametrize(
    ("allow", "url", "kind"),
    [
        ("", "http://localhost:9000/", "a loopback"),
        ("", "http://a.LOCALHOST./", "a loopback"),
        ("127.0.0.1", "http://localhost/", None),  # it may have that address alone
        ("::1", "http://localhost/", None),
        ("localhost", "http://localhost/", None),
        ("", "http://localhost.example/", None),
        ("", "http://10.1.2.3/", "a private"),
        ("10.1.2.3", "http://10.1.2.3/", None),
        ("", "https://8.8.8.8/", None),
        ("", "http://whatever/", None),  # that takes a look-up
    ],
)
def test_certain_refusal_is_told_beforehand(allow: str, url: str, kind: str | None) -> None:
    words = Guard(parse_webhook_allow(allow)).refusal(url)
    if kind is None:
        assert words is None
    else:
        assert words == (
            f"the host {parse_url(url).host!r} leads to {kind} address, which webhooks may not "
            "reach: WEBHOOK_ALLOW can open it"
        )


# ------------------------------------------------------------------------- connecting


def failed_connection(resolver: FakeResolver, network: FakeNetwork, seconds: float = 5.0) -> str:
    """Send to the host `many`, which cannot be connected to; return why not."""

    async def send() -> str:
        async with sender(resolver=resolver, network=network, connect_seconds=seconds) as one:
            with pytest.raises(RetryLater) as failure:
                await one.send(webhook("http://many/a?token=1"), context())
        assert failure.value.after is None
        return str(failure.value)

    return asyncio.run(send())


def test_next_address_is_tried_when_one_does_not_answer() -> None:
    addresses = ["2606:4700::1111", "8.8.8.8", "1.1.1.1"]
    network = FakeNetwork(httpcore.ConnectTimeout(""), httpcore.ConnectError("refused"), OK)

    async def send() -> None:
        async with sender(resolver=FakeResolver(many=[addresses]), network=network) as one:
            await one.send(webhook("http://many/"), context())

    asyncio.run(send())
    assert [address for address, _ in network.dialled] == addresses
    # Of five seconds each gets its part: none takes the time that the others need.
    first, second, third = network.seconds
    assert first == pytest.approx(5 / 3, abs=0.1)
    assert second == pytest.approx(5 / 2, abs=0.1)
    assert third == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (httpcore.ConnectError("no way"), "cannot connect: no way"),
        (httpcore.ConnectTimeout(""), "cannot connect: no answer"),
    ],
)
def test_host_that_cannot_be_connected_to_is_tried_later(problem: Exception, words: str) -> None:
    resolver = FakeResolver(many=[["8.8.8.8"]])
    assert failed_connection(resolver, FakeNetwork(problem)) == f"POST http://many/a: {words}"


def test_host_without_an_address_is_tried_later() -> None:
    network = FakeNetwork()
    words = failed_connection(FakeResolver(many=[[]]), network)
    assert words == "POST http://many/a: cannot connect: the host has no address"
    assert network.dialled == []


class HangingResolver(FakeResolver):
    """Never comes to an end."""

    async def resolve(self, host: str) -> Sequence[Address]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return await super().resolve(host)


def test_look_up_counts_towards_the_time_for_connecting() -> None:
    network = FakeNetwork()
    words = failed_connection(HangingResolver(), network, 0.01)
    assert words == "POST http://many/a: no connection within 0.01 s"
    assert network.dialled == []


def test_port_that_nobody_listens_on_is_told_in_the_systems_words() -> None:
    async def send() -> str:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with sender("127.0.0.1") as one:
            with pytest.raises(RetryLater) as failure:
                await one.send(webhook(f"http://127.0.0.1:{port}/"), context())
        return str(failure.value)

    assert asyncio.run(send()).endswith("/: cannot connect: Connection refused")


# -------------------------------------------------------------------------- resolving


def test_system_is_asked_for_names_and_not_for_addresses() -> None:
    asked: list[str] = []

    def ask(name: str) -> list[str]:
        asked.append(name)
        return ["8.8.8.8", "fe80::1%2"]

    async def resolve() -> None:
        resolver = SystemResolver(ask)
        assert await resolver.resolve("127.0.0.1") == [ip_address("127.0.0.1")]
        assert await resolver.resolve("::1") == [ip_address("::1")]
        assert await resolver.resolve("a.example") == [
            ip_address("8.8.8.8"),
            ip_address("fe80::1%2"),
        ]
        resolver.close()

    asyncio.run(resolve())
    assert asked == ["a.example"]


def test_system_knows_localhost_and_not_the_unknown() -> None:
    async def resolve() -> None:
        resolver = SystemResolver()
        found = await resolver.resolve("localhost")
        assert all(address.is_loopback for address in found)
        with pytest.raises(httpcore.ConnectError, match=r"the host 'no\.invalid' is not found: "):
            await resolver.resolve("no.invalid")
        resolver.close()

    asyncio.run(resolve())


def test_look_up_that_hangs_holds_up_nobody_and_is_not_made_for_those_who_gave_up() -> None:
    hanging, release = threading.Event(), threading.Event()
    asked: list[str] = []

    def ask(name: str) -> list[str]:
        asked.append(name)
        if len(asked) == 8:
            hanging.set()
        release.wait(10)
        return ["8.8.8.8"]

    async def resolve() -> None:
        resolver = SystemResolver(ask)
        calls = [asyncio.ensure_future(resolver.resolve(f"{n}.example")) for n in range(20)]
        assert await asyncio.to_thread(hanging.wait, 10)  # the loop turns meanwhile
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        last = asyncio.ensure_future(resolver.resolve("last.example"))
        await asyncio.sleep(0)
        release.set()
        assert await last == [ip_address("8.8.8.8")]
        resolver.close()

    asyncio.run(resolve())
    assert sorted(asked) == [*(f"{n}.example" for n in range(8)), "last.example"]
