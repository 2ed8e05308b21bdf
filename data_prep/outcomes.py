"""Why a row did or did not become a sample: img2dataset's statuses and messages, sorted into causes.

img2dataset keeps `str(exception)` of whatever urllib, ssl, http.client or OpenCV raised. The order of the
rules matters: the first that matches names the cause.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

OK = "ok"
LOST = "lost"  # img2dataset raised on the row and wrote nothing about it
NO_ANSWER = {"connection", "dns", "timeout", "tls", "private_address"}  # no server said anything of the image
_PASSING = {"connection", "dns", "timeout", "truncated", LOST}
_PASSING_STATUS = re.compile(r"http_(408|425|429|5..)")

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern, re.IGNORECASE))
    for cause, pattern in (
        ("bad_response", r"^BadStatusLine"),  # what follows are the server's words
        ("opt_out", r"disallowed by X-Robots-Tag"),
        ("private_address", r"not a public address"),
        ("bad_scheme", r"not a scheme that is asked for"),
        ("too_many_bytes", r"larger than [\d,]+ bytes"),
        ("too_small", r"image too small"),
        ("too_large", r"image area too large"),
        ("redirect_loop", r"redirect error that would lead to an infinite loop"),
        ("timeout", r"timed out"),
        ("tls", r"ssl|certificate|tlsv1"),
        (
            "dns",
            r"name or service not known|no address associated with hostname|nodename nor servname"
            r"|temporary failure in name resolution|name resolution|getaddrinfo failed|\[errno -[235]\]",
        ),
        ("truncated", r"IncompleteRead|retrieval incomplete|image file is truncated|truncated file read"),
        (
            "bad_url",
            r"unknown url type|no host given|nonnumeric port|invalid ipv6|url can't contain"
            r"|codec can't encode|label (empty|too long)|port (could not|out of range)|invalid url|not a valid url",
        ),
        (
            "connection",
            r"connection refused|connection reset|network is unreachable|no route to host|host is down"
            r"|remote end closed connection|broken pipe|connection aborted|cannot assign requested address"
            r"|software caused connection abort",
        ),
        ("bad_response", r"got more than \d+|invalid literal for int|while decompressing"),
        ("unsupported_format", r"unsupported pixel mode"),
        ("not_an_image", r"image decoding error"),
    )
)
_HTTP = re.compile(r"^HTTP Error (\d{3})")


def classify(status: str, message: str | None) -> str:
    """The cause of one row: `ok`, `http_404`, `timeout`, `dns`, `opt_out`, ... or `other`.

    status, message: the columns `status` and `error_message` that img2dataset wrote. `not_an_image` is what
    OpenCV could not decode: HTML, and also an image that was cut off by a server which named no length.
    """
    if status == "success":
        return OK
    message = message or ""
    http = _HTTP.match(message)
    if http and "infinite loop" not in message:
        return f"http_{http[1]}"
    return next((cause for cause, pattern in _RULES if pattern.search(message)), "other")


def may_pass(cause: str) -> bool:
    """Whether the same request may well succeed a moment later."""
    return cause in _PASSING or bool(_PASSING_STATUS.fullmatch(cause))


def matches(cause: str, wanted: Iterable[str]) -> bool:
    """Whether a cause is among those named: as it is, or as a class of statuses, `5xx` for `http_503`."""
    status = cause.removeprefix("http_")
    return any(name in (cause, status, f"{status[0]}xx") for name in wanted)


def tally(*counts: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    """How often each cause occurs in all of `counts` together, ordered by name."""
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(sorted(total.items()))


def describe(counts: Mapping[str, int], most: int = 20) -> str:
    """`412 http_404, 20 timeout, ...`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{number:,} {cause}" for cause, number in ordered[:most]) or "none"
