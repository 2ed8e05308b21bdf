"""A web server that does to a downloader what the web does: every path of `TROUBLE` is one way of it."""

from __future__ import annotations

import gzip
import io
import itertools
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

BODY_MIB = 2  # what the tests allow


def encoded(kind: str, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, kind, **options)
    return stream.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of side*side black pixels in a few kilobytes to megabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    parts = {b"IHDR": struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), (shade, 0, 0)) for shade in (10, 120, 240)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def rotated() -> bytes:
    """Stored lying (60 x 40), to be shown upright (40 x 60)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", (60, 40), exif=exif)


JPEG = encoded("JPEG")
BOMB = png_bomb(50_000)
GZIP_BOMB = gzip.compress(bytes(200 * 2**20))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


class Handler(BaseHTTPRequestHandler):
    server: HostileWeb

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.count(path, self)
        with suppress(ConnectionError, TimeoutError):
            TROUBLE[path][0](self) if path in TROUBLE else GOOD[path](self)

    def answer(self, status: int = 200, body: bytes = JPEG, **headers: Any) -> None:
        """Headers with _ for -; Content_Length=None leaves it out."""
        self.send_response(status)
        given = {"Content-Type": "image/jpeg", "Content-Length": len(body)}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, values in given.items():
            for value in values if isinstance(values, list) else [values]:
                if value is not None:
                    self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        self.answer(body=JPEG[:20], Content_Length=len(JPEG))
        for number in range(20, len(JPEG)):
            time.sleep(0.1)
            self.wfile.write(JPEG[number : number + 1])

    def drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for number in itertools.count():
            time.sleep(0.1)
            self.wfile.write(b"x" if number % 10 else b"\r\nx:")

    def endless(self) -> None:
        self.answer(body=b"", Content_Length=None)
        while True:
            self.wfile.write(bytes(2**16))

    def endless_redirect(self) -> None:
        self.answer(302, b"", Location="/good.jpg", Content_Length=None)
        while True:
            self.wfile.write(bytes(2**16))

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def crowded(self) -> None:
        """Counts those who wait for it at once."""
        with self.server.lock:
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        time.sleep(0.05)
        with self.server.lock:
            self.server.busy -= 1
        self.answer()

    def mute(self) -> None:
        time.sleep(20)

    def log_message(self, *_: object) -> None:
        pass


def said(status: int = 200, body: bytes = JPEG, **headers: Any) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, body, **headers)


def once(trouble: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """Trouble at the first request, the picture afterwards."""

    def answer(handler: Handler) -> None:
        path = unquote(urlsplit(handler.path).path)
        trouble(handler) if handler.server.requests[path] == 1 else handler.answer()

    return answer


PAGE = b"<!DOCTYPE html><html><body>moved</body></html>"
TROUBLE: dict[str, tuple[Callable[[Handler], None], str]] = {  # path -> what it does, and the outcome of its row
    "/404.jpg": (said(404, b"no"), "http_404"),
    "/410.jpg": (said(410, b"no"), "http_410"),
    "/403.jpg": (said(403, b"no"), "http_403"),
    "/429-for-ever.jpg": (said(429, b"", Retry_After="86400"), "http_429"),
    "/500.jpg": (said(500, b"no"), "http_500"),
    "/503.jpg": (said(503, b"no"), "http_503"),
    "/reset.jpg": (Handler.reset, "connection"),
    "/drip.jpg": (Handler.drip, "timeout"),
    "/drip-headers.jpg": (Handler.drip_headers, "timeout"),
    "/mute.jpg": (Handler.mute, "timeout"),
    "/endless.jpg": (Handler.endless, "too_many_bytes"),
    "/10-gigabytes.jpg": (said(200, JPEG, Content_Length=10**10), "too_many_bytes"),
    "/gzip-bomb.jpg": (said(200, GZIP_BOMB, Content_Encoding="gzip"), "too_many_bytes"),
    "/torn-gzip.jpg": (said(200, gzip.compress(JPEG)[:-20], Content_Encoding="gzip"), "truncated"),
    "/no-gzip.jpg": (said(200, JPEG, Content_Encoding="gzip"), "bad_response"),
    "/bomb.png": (said(200, BOMB), "too_large"),
    "/page.jpg": (said(200, PAGE), "not_an_image"),
    "/drawing.jpg": (said(200, SVG), "not_an_image"),
    "/script.jpg": (said(200, b"alert(document.cookie)"), "not_an_image"),
    "/empty.jpg": (said(200, b""), "not_an_image"),
    "/cut.jpg": (said(200, JPEG[:300], Content_Length=len(JPEG)), "truncated"),
    "/cut-unannounced.jpg": (said(200, JPEG[:300], Content_Length=None), "truncated"),
    "/loop.jpg": (said(302, b"", Location="/loop.jpg"), "redirect_loop"),
    "/to-file.jpg": (said(302, b"", Location="file:///etc/passwd"), "bad_scheme"),
    "/to-ftp.jpg": (said(301, b"", Location="ftp://127.0.0.1/x.jpg"), "bad_scheme"),
    "/to-data.jpg": (said(302, b"", Location="data:image/png;base64,AAAA"), "bad_scheme"),
    "/to-credentials.jpg": (said(302, b"", Location="http://user:secret@127.0.0.1/x.jpg"), "bad_url"),
    "/no-http.jpg": (lambda handler: handler.wfile.write(b"220 ftp.example.org\r\n") and None, "bad_response"),
    "/noai.jpg": (said(X_Robots_Tag="noai"), "opt_out"),
    "/noimageai.jpg": (said(X_Robots_Tag="NoImageAI, noarchive"), "opt_out"),
    "/noindex.jpg": (said(X_Robots_Tag="  noindex"), "opt_out"),
    "/none.jpg": (said(X_Robots_Tag="none"), "opt_out"),
    "/two-headers.jpg": (said(X_Robots_Tag=["nofollow", "noai"]), "opt_out"),
    "/anyone.jpg": (said(X_Robots_Tag="*: noimageindex"), "opt_out"),
    "/us.jpg": (said(X_Robots_Tag="picky: noai"), "opt_out"),
    "/after-a-date.jpg": (said(X_Robots_Tag="unavailable_after: 25 Jun 2030 15:00:00 PST, noai"), "opt_out"),
    "/tdm.jpg": (said(TDM_Reservation="1"), "opt_out"),
}
GOOD: dict[str, Callable[[Handler], None]] = {
    "/good.jpg": said(),
    "/gzip.jpg": said(200, gzip.compress(JPEG), Content_Encoding="gzip"),
    "/moved.jpg": said(301, b"", Location="/good.jpg"),
    "/moved-endlessly.jpg": Handler.endless_redirect,
    "/others-only.jpg": said(X_Robots_Tag="googlebot: noindex, noai", TDM_Reservation="0"),
    "/429-once.jpg": once(said(429, b"", Retry_After="1")),
    "/503-once.jpg": once(said(503, b"")),
    "/reset-once.jpg": once(Handler.reset),
    "/bücher und/图.jpg": said(),
    "/a b.jpg": said(),
    "/crowded.jpg": Handler.crowded,
    "/animated.webp": said(200, animated("WEBP")),
    "/animated.gif": said(200, animated("GIF")),
    "/rotated.jpg": said(200, rotated()),
    "/large.jpg": said(200, encoded("JPEG", (900, 600))),
}


class HostileWeb(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.lock, self.busy, self.busiest = threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, path: str, handler: Handler) -> None:
        with self.lock:
            self.requests[path] += 1
            self.user_agents.add(handler.headers["User-Agent"])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are the normal case."""

    def __enter__(self) -> HostileWeb:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
