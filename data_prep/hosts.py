"""Is a URL fit to be asked for, and whose is it? By its text; where its name leads is judged when it is fetched."""

from __future__ import annotations

import re
import socket
import unicodedata
from urllib.parse import unquote, urlsplit

from data_prep.addresses import is_public

PRIVATE_DOMAINS = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa")
_PRIVATE_NAMES = ("metadata", "instance-data")  # single labels that clouds answer with an instance's secrets
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DELIMITERS = re.compile(r"[/?#@:\\\s\[\]]")


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
    try:
        return not is_public(name if ":" in name else socket.inet_ntoa(socket.inet_aton(name)))
    except (OSError, ValueError):  # a name
        return False


def host_of(url: str) -> str | None:
    """The host of a URL, in lower case; None where there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _as_asked_for(host: str) -> str:
    """urllib decodes percent signs in a host, IDNA folds full-width digits and dots."""
    return unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").lower().rstrip(".")
