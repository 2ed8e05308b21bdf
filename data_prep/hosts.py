"""Is a URL fit to be asked for? Judged from its text alone; what its name resolves to is judged when it is fetched."""

from __future__ import annotations

import re
import socket
import unicodedata
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import unquote, urlsplit

PRIVATE_DOMAINS = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa")
_PRIVATE_NAMES = ("metadata", "instance-data")  # single labels that clouds answer with an instance's secrets
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DELIMITERS = re.compile(r"[/?#@:\\\s\[\]]")
_NAT64 = IPv6Address("64:ff9b::")


def url_problem(url: str, allow_private: bool = False) -> str | None:
    """Why a URL is not asked for: `not_http, bad_url, credentials, private_host`; None if it may be."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "not_http"
        host = parts.hostname
        _ = parts.port  # raises ValueError for one that is no number up to 65,535
    except ValueError:  # an IPv6 address without its bracket, for one
        return "bad_url"
    if "@" in parts.netloc:
        return "credentials"
    if not host or _CONTROL.search(url):
        return "bad_url"
    name = _as_asked_for(host)
    if not name or (":" not in host and _DELIMITERS.search(name)):
        return "bad_url"
    return "private_host" if not allow_private and is_private(name) else None


def is_private(host: str) -> bool:
    """Whether a host is, as written, a loopback, private, link-local, reserved or metadata-service address.

    Addresses count in every form that the C library reads: 127.1, 2130706433, 0x7f.0.0.1, 0177.0.0.1, ::ffff:7f00:1.
    """
    name = _as_asked_for(host)
    if name in _PRIVATE_NAMES or any(name == domain or name.endswith(f".{domain}") for domain in PRIVATE_DOMAINS):
        return True
    address: IPv4Address | IPv6Address
    try:
        address = IPv6Address(name.partition("%")[0]) if ":" in name else IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        return False
    if isinstance(address, IPv6Address):
        address = _embedded(address) or address
    return not address.is_global or address.is_multicast


def _as_asked_for(host: str) -> str:
    """urllib decodes percent signs in a host, IDNA folds full-width digits and dots."""
    return unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").lower().rstrip(".")


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address end at."""
    if int(address) >> 32 == int(_NAT64) >> 32 or int(address) >> 32 == 0:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
