"""Outcomes: the messages that Python's own network stack produces, against the cause a person would name."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import urllib.error
import urllib.request
from email.message import Message

import pytest

from data_prep.outcomes import classify, describe, tally


def http_error(code: int, reason: str) -> Exception:
    return urllib.error.HTTPError("http://x/", code, reason, Message(), io.BytesIO())


REDIRECT_LOOP = urllib.request.HTTPRedirectHandler.inf_msg + "Found"
EXCEPTIONS = [
    (http_error(404, "Not Found"), "http_404"),
    (http_error(410, "Gone"), "http_410"),
    (http_error(429, "Too Many Requests"), "http_429"),
    (http_error(500, "Connection timed out"), "http_500"),  # the code counts, whatever the server's words
    (http_error(503, "Service Unavailable"), "http_503"),
    (http_error(302, REDIRECT_LOOP), "redirect_loop"),
    (TimeoutError("timed out"), "timeout"),
    (TimeoutError("The read operation timed out"), "timeout"),
    (urllib.error.URLError(TimeoutError(110, "Connection timed out")), "timeout"),
    (urllib.error.URLError(TimeoutError("_ssl.c:989: The handshake operation timed out")), "timeout"),
    (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), "dns"),
    (urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution")), "dns"),
    (urllib.error.URLError(socket.gaierror(-5, "No address associated with hostname")), "dns"),
    (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "connection"),
    (ConnectionResetError(104, "Connection reset by peer"), "connection"),
    (urllib.error.URLError(OSError(113, "No route to host")), "connection"),
    (urllib.error.URLError(OSError(101, "Network is unreachable")), "connection"),
    (http.client.RemoteDisconnected("Remote end closed connection without response"), "connection"),
    (urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed")), "tls"),
    (urllib.error.URLError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")), "tls"),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:2406)"), "tls"),
    (http.client.IncompleteRead(b"x" * 10, 90), "truncated"),
    (http.client.LineTooLong("header line"), "bad_response"),
    (http.client.InvalidURL("nonnumeric port: 'abc'"), "bad_url"),
    (http.client.InvalidURL("URL can't contain control characters. '/a b' (found at least ' ')"), "bad_url"),
    (urllib.error.URLError("unknown url type: htp"), "bad_url"),
    (urllib.error.URLError("no host given"), "bad_url"),
    (UnicodeEncodeError("ascii", "/é", 1, 2, "ordinal not in range(128)"), "bad_url"),
    (UnicodeError("label empty or too long"), "bad_url"),
    (ZeroDivisionError("division by zero"), "other"),
]


@pytest.mark.parametrize(("error", "cause"), EXCEPTIONS, ids=lambda value: str(value)[:60])
def test_exceptions_of_the_network_stack(error: Exception | str, cause: str) -> None:
    assert classify("failed_to_download", str(error)) == cause


def test_messages_that_python_really_raises() -> None:
    """Not from memory: provoked here, so that another Python's wording is noticed."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the message is what is tested
            urllib.request.urlopen(url, timeout=1)
    assert classify("failed_to_download", str(refused.value)) == "connection"
    for bad in ("http://127.0.0.1:1/a b", "http://127.0.0.1:1/é", "http:///x"):
        with pytest.raises(Exception) as error:  # noqa: PT011 - of any kind
            urllib.request.urlopen(bad, timeout=1)
        assert classify("failed_to_download", str(error.value)) == "bad_url", bad
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        with pytest.raises(OSError) as timeout:  # noqa: PT011
            urllib.request.urlopen(url, timeout=0.05)
    assert classify("failed_to_download", str(timeout.value)) == "timeout"


@pytest.mark.parametrize(
    ("status", "message", "cause"),
    [
        ("success", None, "ok"),
        ("failed_to_download", "Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("failed_to_resize", "Image decoding error", "not_an_image"),
        ("failed_to_resize", "image too small", "too_small"),
        ("failed_to_resize", "image area too large", "too_large"),
        ("failed_to_download", None, "other"),
    ],
)
def test_img2dataset_statuses(status: str, message: str | None, cause: str) -> None:
    assert classify(status, message) == cause


def test_tally_and_describe() -> None:
    total = tally(["ok", "dns", "ok"], {"ok": 3, "tls": 1})
    assert list(total.items()) == [("dns", 1), ("ok", 5), ("tls", 1)]
    assert describe(total, most=2) == "5 ok, 1 dns"
    assert describe({}) == "none"
