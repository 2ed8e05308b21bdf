"""One URL of a stranger's list, fetched as if its server meant harm; stands in for img2dataset's own fetch.

Asked for: http and https only, after redirects too; public addresses only, checked where the connection is made
(`connect.py`); one host not too often (`politeness.py`). Accepted: so many bytes, packed or not, in so much time,
unless the server opts out (`optout.py`). Asked again: only what may pass, such as a timeout.

A body of more than SPOOL_BYTES waits for its turn on disk: what a worker holds in memory does not grow with them.
"""

from __future__ import annotations

import base64
import errno
import io
import time
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead, InvalidURL
from importlib.metadata import version
from string import punctuation
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from data_prep.connect import dial, tls_context
from data_prep.corpus import Fetch, Images
from data_prep.hosts import is_private
from data_prep.optout import opted_out
from data_prep.outcomes import classify, may_pass
from data_prep.politeness import Hosts, retry_after
from data_prep.watch import NOT_ASKED, Watch

SPOOL_BYTES = 2**20
_PIECE_BYTES = 2**16
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}  # this machine fails, not the server
_UNKNOWN_NAME = "[Errno -2]"  # the resolver's definite no

Fetched = tuple[int, IO[bytes] | None, str | None]


class GuardedFetch:
    """Called in img2dataset's threads as its `download_image_with_retry`: (key, url) -> (key, stream, error)."""

    def __init__(self, fetch: Fetch, images: Images, watch: Watch) -> None:
        self._fetch, self._watch = fetch, watch
        self._hosts = Hosts(fetch.connections_per_host, fetch.patience_seconds)
        self._directives = {directive.strip().lower() for directive in images.opt_out_directives}
        self._token = images.user_agent_token
        self._headers = {
            "User-Agent": user_agent(self._token, fetch.contact),
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        self._proxies = urllib.request.getproxies()

    def __call__(self, row: tuple[int, str], **_: Any) -> Fetched:
        """_: what img2dataset was told of timeouts, retries and opt-outs; the same as here."""
        key, url = row
        stream, message = self._try(url)
        if self._watch.stopped:
            return key, None, NOT_ASKED
        if message is not None:
            self._watch.count(classify("failed_to_download", message))
        return key, stream, message

    def _try(self, url: str) -> tuple[IO[bytes] | None, str | None]:
        """All attempts at a URL: its bytes, or the message of the last failure."""
        try:
            parts = _parsed(ascii_url(url))
        except (ValueError, InvalidURL) as error:
            return None, f"invalid url: {error}"
        host, message, seconds_left = str(parts.hostname), "", self._fetch.total_seconds
        for _ in range(self._fetch.retries + 1):
            with self._hosts.turn(host) as refused:
                if refused or self._watch.stopped:
                    return None, refused or NOT_ASKED
                began = time.monotonic()
                try:
                    return self._get(parts, began + seconds_left), None
                except Exception as error:  # whatever a server can make ssl, http.client, zlib or the codecs raise
                    if isinstance(error, OSError) and error.errno in _OURS:
                        self._watch.stop(f"this machine fails, not the web: {error}. Mend that, then run it again.")
                    message = _message(error)
                seconds_left -= time.monotonic() - began
            lasting = not may_pass(classify("failed_to_download", message)) or _UNKNOWN_NAME in message
            if lasting or seconds_left <= 0:
                break
        return None, message

    def _get(self, parts: SplitResult, deadline: float) -> IO[bytes]:
        """The image's bytes. Raises OSError, ValueError or HTTPException with a message that `outcomes` knows."""
        asked = str(parts.hostname)
        for _ in range(_MAX_REDIRECTS + 1):
            connection, target, headers = self._connection(parts, deadline)
            with closing(connection):
                connection.connect()
                connection.sock.deadline = deadline  # type: ignore[union-attr]
                connection.request("GET", target, headers=headers)
                with connection.getresponse() as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        return self._accept(asked, response)
            parts = _parsed(urljoin(parts.geturl(), quote(location, safe=punctuation, encoding="iso-8859-1")))
        raise OSError("redirect error that would lead to an infinite loop")

    def _accept(self, host: str, response: HTTPResponse) -> IO[bytes]:
        if not 200 <= response.status < 300:
            message = f"HTTP Error {response.status}: {response.reason}"
            wait = retry_after(response.headers.get("Retry-After"))
            if response.status == 429 or (response.status == 503 and wait is not None):
                self._hosts.pause(host, wait, message)
            raise OSError(message)
        if opted_out(response.headers, self._directives, self._token):
            raise OSError("Use of image disallowed by X-Robots-Tag directive")
        limit = self._fetch.max_body_mib * 2**20
        if (response.length or 0) > limit:
            raise OSError(f"body of {response.length:,} bytes is larger than {limit:,} bytes")
        packed = response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate")
        return _stored(_unpacked(_pieces(response)) if packed else _pieces(response), limit)

    def _connection(self, parts: SplitResult, deadline: float) -> tuple[HTTPConnection, str, dict[str, str]]:
        """A connection that is not open yet, what to ask it for, and with which headers."""
        host, headers, private = str(parts.hostname), self._headers, self._fetch.allow_private
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = self._proxies.get(parts.scheme)
        if proxy and not urllib.request.proxy_bypass(host):
            if not private and is_private(host):
                raise OSError(f"{host} is not a public address")
            via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            login = _login(via)
            private = True  # it is the proxy that is connected to, and that resolves the name
            if parts.scheme == "https":
                connection = self._open_to(parts.scheme, str(via.hostname), via.port or 80)
                connection.set_tunnel(host, parts.port, login)
            else:
                connection = self._open_to(parts.scheme, str(via.hostname), via.port or 80)
                target, headers = parts._replace(fragment="").geturl(), {**headers, **login}
        else:
            connection = self._open_to(parts.scheme, host, parts.port)
        connection._create_connection = (  # type: ignore[attr-defined]
            lambda address, timeout, _: dial(address, timeout, deadline, private)
        )
        return connection, target, headers

    def _open_to(self, scheme: str, host: str, port: int | None) -> HTTPConnection:
        kind = partial(HTTPSConnection, context=tls_context()) if scheme == "https" else HTTPConnection
        return kind(host, port, timeout=self._fetch.timeout_seconds)


def user_agent(token: str | None, contact: str | None) -> str:
    """Who asks, and where to complain."""
    about = [token or f"neuclip-data-prep/{version('neuclip-pipeline')}", f"+{contact}" if contact else ""]
    return f"Mozilla/5.0 (compatible; {'; '.join(filter(None, about))})"


def ascii_url(url: str) -> str:
    """A URL as it goes over the wire: host in IDNA, what ASCII cannot say percent-encoded; escapes stay as they are.

    Raises ValueError (UnicodeError) for a host that has no such form.
    """
    if url.isascii() and url.isprintable() and " " not in url:
        return url
    parts = urlsplit(url)
    name = (parts.hostname or "").encode("idna").decode()
    userinfo = "@" if "@" in parts.netloc else ""  # refused by the next to read it
    netloc = userinfo + name + (f":{parts.port}" if parts.port is not None else "")
    return parts._replace(
        netloc=netloc, path=quote(parts.path, safe=punctuation), query=quote(parts.query, safe=punctuation)
    ).geturl()


def _parsed(url: str) -> SplitResult:
    """Raises InvalidURL or ValueError for what is not asked for."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InvalidURL(f"{parts.scheme or 'none'}: not a scheme that is asked for")
    if not parts.hostname or "@" in parts.netloc:
        raise InvalidURL("no host given, or credentials in the URL")
    _ = parts.port  # raises ValueError for what is no port
    return parts


def _message(error: Exception) -> str:
    """http.client leaves out what went wrong: the text of BadStatusLine is what the server sent."""
    return f"{type(error).__name__}: {error}" if isinstance(error, HTTPException) or not str(error) else str(error)


def _login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    """The body as it comes, at most _PIECE_BYTES at a time; raises IncompleteRead when it is cut off."""
    while piece := response.read1(_PIECE_BYTES):
        yield piece
    if response.length:
        raise IncompleteRead(b"", response.length)


def _unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Of gzip or deflate, at most _PIECE_BYTES at a time, however far a piece expands."""
    packer = zlib.decompressobj(zlib.MAX_WBITS | 32)
    for piece in pieces:
        while piece:
            yield packer.decompress(piece, _PIECE_BYTES)
            piece = packer.unconsumed_tail
    yield packer.flush()
    if not packer.eof:
        raise IncompleteRead(b"")


def _stored(pieces: Iterable[bytes], limit: int) -> IO[bytes]:
    """What came, in memory or on disk; raises OSError for more than `limit` bytes."""
    stream: IO[bytes] = io.BytesIO()
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            if size > limit:
                raise OSError(f"body is larger than {limit:,} bytes")
            if size > SPOOL_BYTES and isinstance(stream, io.BytesIO):
                stream = _on_disk(stream)
            stream.write(piece)
    except BaseException:
        stream.close()
        raise
    return stream


def _on_disk(stream: io.BytesIO) -> IO[bytes]:
    file = TemporaryFile()  # noqa: SIM115 - img2dataset closes it
    with stream:
        file.write(stream.getbuffer())
    return file
