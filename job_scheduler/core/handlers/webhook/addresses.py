"""Which addresses belong to the internet at large, and what the others are.

A table of our own: ``ipaddress.is_global`` takes several forms of inside addresses for public
ones, and knows nothing of those that a cloud has among its public ones.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_IPV4 = {
    IPv4Network(text): kind
    for text, kind in (
        ("0.0.0.0/8", "an unspecified"),
        ("10.0.0.0/8", "a private"),
        ("100.64.0.0/10", "a private"),  # carriers' and clouds' own, metadata of one included
        ("127.0.0.0/8", "a loopback"),
        ("168.63.129.16/32", "a cloud's inside"),  # Azure's: metadata, DNS, agents
        ("169.254.0.0/16", "a link-local"),  # most clouds' metadata
        ("172.16.0.0/12", "a private"),
        ("192.0.0.0/24", "a reserved"),  # metadata of one cloud included
        ("192.0.2.0/24", "a documentation"),
        ("192.88.99.0/24", "a reserved"),  # relays of 6to4
        ("192.168.0.0/16", "a private"),
        ("198.18.0.0/15", "a reserved"),  # benchmarks
        ("198.51.100.0/24", "a documentation"),
        ("203.0.113.0/24", "a documentation"),
        ("224.0.0.0/4", "a multicast"),
        ("240.0.0.0/4", "a reserved"),  # broadcast included
    )
}
_IPV6 = {
    IPv6Network(text): kind
    for text, kind in (
        ("::/128", "an unspecified"),
        ("::1/128", "a loopback"),
        ("fc00::/7", "a private"),
        ("fe80::/10", "a link-local"),
        ("fec0::/10", "a private"),
        ("ff00::/8", "a multicast"),
        ("2001::/23", "a reserved"),  # Teredo, which wraps an IPv4 address, and protocols' own
        ("2001:db8::/32", "a documentation"),
        ("2002::/16", "a reserved"),  # 6to4, which wraps an IPv4 address
        ("3fff::/20", "a documentation"),
    )
}
_GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All that has been given out. What wraps an IPv4 address elsewhere is refused with the rest."""

_TRANSLATED = (
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped: the system itself dials the IPv4 address
    IPv6Network("64:ff9b::/96"),  # NAT64: where there is no IPv4, the way to every IPv4 host
)
"""Forms of an IPv4 address that count as what they hold."""


def kind_of_inside(address: Address) -> str | None:
    """Return what kind of inside address this is, with its article; None for a public one."""
    if isinstance(address, IPv4Address):
        return next((kind for network, kind in _IPV4.items() if address in network), None)
    if any(address in network for network in _TRANSLATED):
        return kind_of_inside(IPv4Address(int(address) & 0xFFFF_FFFF))
    kind = next((kind for network, kind in _IPV6.items() if address in network), None)
    return kind or (None if address in _GLOBAL_IPV6 else "a reserved")


def known_addresses(host: str) -> list[Address]:
    """Return the addresses that a host stands for without any look-up, if there are some."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        return [ip_address(host)]
    except ValueError:
        return []
