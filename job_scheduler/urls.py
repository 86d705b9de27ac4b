"""Web addresses as the service takes them: only those that everybody reads in the same way."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

URL_MAX_LENGTH = 2_048
_HOST_MAX_LENGTH = 253

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# A name whose last part begins with a digit would be taken for an address by some: 127.1, 0x7f.
_LAST_LABEL = "[A-Za-z_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = rf"(?:{_LABEL}\.)*{_LAST_LABEL}\.?"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_IPV6 = r"\[[0-9A-Fa-f:.]{2,45}\]"
_HOST = rf"(?:{_NAME}|{_IPV4}|{_IPV6})"
_PORT = "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
# What is printed in ASCII, without the backslash, which some read as a slash.
_CHARACTER = r"[!-\[\]-~]"

URL_PATTERN = rf"^[Hh][Tt][Tt][Pp][Ss]?://{_HOST}(?::{_PORT})?(?:[/?#]{_CHARACTER}*)?$"
"""The form of a URL, for documents; an IPv6 address is examined more closely."""

_CHARACTERS = re.compile(f"{_CHARACTER}*")
_BEGINNING = re.compile("(?P<scheme>https?)://(?P<authority>[^/?#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")


@dataclass(frozen=True, slots=True)
class Url:
    """What a URL says of where it leads; `host` is in small letters, and has no brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_secure(self) -> bool:
        """Whether what is sent there is encrypted."""
        return self.scheme == "https"


def parse_url(text: str) -> Url:
    """Return where a URL leads.

    Raises:
        ValueError: it cannot be used; the message says what to do.
    """
    if len(text) > URL_MAX_LENGTH:
        raise ValueError(f"Must have at most {URL_MAX_LENGTH} characters.")
    if not _CHARACTERS.fullmatch(text):
        raise ValueError(
            "Must hold no white space, no backslash and only ASCII. Write other characters "
            "percent-encoded, and an international host name in its form that begins with xn--."
        )
    beginning = _BEGINNING.match(text)
    if beginning is None:
        raise ValueError("Must begin with http:// or https://.")
    scheme, authority = beginning["scheme"].lower(), beginning["authority"]
    if "@" in authority:
        raise ValueError(
            "Must hold no user name or password. Send them in a header, such as Authorization."
        )
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or not _is_host(parts["host"]):
        raise ValueError(
            "The host must be a name, such as hooks.example.com, an IPv4 address in its usual "
            "form (four numbers from 0 to 255), or an IPv6 address in brackets."
        )
    port = parts["port"]
    if port is not None and not re.fullmatch(_PORT, port):
        raise ValueError("The port must be a number from 1 to 65535.")
    usual = 443 if scheme == "https" else 80
    return Url(scheme, parts["host"].strip("[]").lower(), int(port or usual))


def is_host_name(text: str) -> bool:
    """Tell whether a text is a host's name, and no address."""
    return len(text) <= _HOST_MAX_LENGTH and re.fullmatch(_NAME, text) is not None


def shown(url: str) -> str:
    """Return a URL fit for logs and messages: what follows the path may hold secrets."""
    return re.split("[?#]", url, maxsplit=1)[0]


def _is_host(text: str) -> bool:
    if text.startswith("["):
        return re.fullmatch(_IPV6, text) is not None and _is_ipv6(text[1:-1])
    return is_host_name(text) or re.fullmatch(_IPV4, text) is not None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
