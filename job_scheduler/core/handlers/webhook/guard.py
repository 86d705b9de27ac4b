"""Who may be reached: all of the internet, and of the inside what ``WEBHOOK_ALLOW`` opens."""

from collections.abc import Sequence

from job_scheduler.core.handlers.webhook.addresses import Address, kind_of_inside, known_addresses
from job_scheduler.urls import parse_url
from job_scheduler.webhook_allow import Allowed


class AddressRefused(Exception):
    """The host leads inside, where webhooks may not go; the message is for people."""

    def __init__(self, host: str, kind: str) -> None:
        super().__init__(
            f"the host {host!r} leads to {kind} address, which webhooks may not reach: "
            "WEBHOOK_ALLOW can open it"
        )


class Guard:
    """Examines the addresses of a host before one of them is dialled."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed

    def examine(self, host: str, addresses: Sequence[Address]) -> None:
        """See to it that a host may be reached at each of its addresses.

        One inside address among public ones is enough to refuse the host: such a mixture is a
        mistake or an attack, and to take only its public part would hide it now and then.

        Raises:
            AddressRefused: one of them lies inside, and is not opened.
        """
        for address in addresses:
            if (kind := self._refused_kind(host, address)) is not None:
                raise AddressRefused(host, kind)

    def refusal(self, url: str) -> str | None:
        """Return why a URL will certainly be refused, as far as no look-up is needed for that.

        None promises nothing: what counts is `examine`, at the moment of connecting.
        """
        host = parse_url(url).host
        kinds = [self._refused_kind(host, address) for address in known_addresses(host)]
        first = kinds[0] if kinds and all(kinds) else None
        return None if first is None else str(AddressRefused(host, first))

    def _refused_kind(self, host: str, address: Address) -> str | None:
        if self._allowed.names(host) or self._allowed.holds(address):
            return None
        return kind_of_inside(address)
