"""``WEBHOOK_ALLOW``: which inside hosts and networks webhooks may reach, as a person writes it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from job_scheduler.urls import is_host_name

_FORMS = (
    "must be host names (hooks.internal), domains (*.internal), addresses or networks "
    "(10.1.0.0/16), by comma"
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached though it lies inside; names are in small letters."""

    hosts: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def names(self, host: str) -> bool:
        """Tell whether a host may be reached at whatever address it has."""
        name = host.lower().removesuffix(".")
        return name in self.hosts or name.endswith(self.domains)

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """Tell whether an address may be reached, whoever has it."""
        return any(address in network for network in self.networks)


def parse_webhook_allow(text: str) -> Allowed:
    """Return what may be reached.

    Raises:
        ValueError: an entry is none of these.
    """
    hosts: set[str] = set()
    domains: list[str] = []
    networks: list[IPv4Network | IPv6Network] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name = entry.lower().removesuffix(".")
        if is_host_name(name):
            hosts.add(name)
        elif name.startswith("*.") and is_host_name(name[2:]):
            domains.append(name[1:])
        else:
            networks.append(_network(entry))
    return Allowed(frozenset(hosts), tuple(domains), tuple(networks))


def _network(entry: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(entry)
    except ValueError:
        hint = f"; {entry!r} is none of these{_meant(entry)}"
        raise ValueError(_FORMS + hint) from None


def _meant(entry: str) -> str:
    """Say which network an address with a prefix (10.1.2.3/16) lies in."""
    try:
        return f" (do you mean {ip_network(entry, strict=False)}?)"
    except ValueError:
        return ""
