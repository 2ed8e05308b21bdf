"""A small web of pictures and of what goes wrong there, and which outcome each of it should have."""

from __future__ import annotations

import io
import struct
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}
TROUBLE = {  # path -> the outcome that it should have
    "/missing.jpg": "http_404",
    "/gone.jpg": "http_410",
    "/error.jpg": "http_500",
    "/cut-with-length.jpg": "truncated",
    "/cut-without-length.jpg": "not_an_image",
    "/page.jpg": "not_an_image",
    "/noai.jpg": "opt_out",
    "/slow.jpg": "timeout",
    "/bomb.png": "too_large",
    "/float.tiff": "unsupported_format",
}


def picture(number: int, kind: str, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, FORMATS[kind])
    return stream.getvalue()


def good_images() -> dict[str, bytes]:
    small = {f"/{n}.{kind}": picture(n, kind, (80, 60)) for n in range(14) for kind in ("jpg", "png", "webp")}
    pixels = np.asarray(Image.open(io.BytesIO(small["/5.png"])))
    deep = {"/grey16.png": cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)}
    deep |= {"/colour16.png": pixels[..., ::-1], "/alpha16.png": np.dstack([pixels[..., ::-1], pixels[..., 0]])}
    for path, values in deep.items():  # 16 bits: the same picture 257 times as high
        small[path] = cv2.imencode(".png", values.astype(np.uint16) * 257)[1].tobytes()
    return {**small, "/0.gif": picture(0, "gif", (64, 64)), "/large.jpg": picture(99, "jpg", (400, 300))}


def png_bomb(side: int) -> bytes:
    """A palette PNG of side*side equal pixels, of which at most a few rows are ever in memory here."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0)
    parts = {b"IHDR": header, b"PLTE": bytes(6), b"tRNS": b"\0", b"IDAT": data, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


BOMB = png_bomb(12_000)


class Web(ThreadingHTTPServer):
    """Images and trouble. After `hold_after` requests it answers nothing more until that is None again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.images = good_images()
        self.hold_after: int | None = None
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def wait_for_requests(self, number: int) -> None:
        deadline = time.monotonic() + 90
        while len(self.requests) < number:
            assert time.monotonic() < deadline, f"only {len(self.requests)} requests came"
            time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        web = self.server
        web.requests.append(self.path)
        while web.hold_after is not None and len(web.requests) > web.hold_after:
            time.sleep(0.05)
        whole = web.images["/large.jpg"]
        with suppress(ConnectionError):
            match self.path:
                case "/missing.jpg":
                    self.answer(404, b"no")
                case "/gone.jpg":
                    self.answer(410, b"no")
                case "/error.jpg":
                    self.answer(500, b"no")
                case "/flaky.jpg" if web.requests.count(self.path) == 1:
                    self.answer(500, b"later")
                case "/flaky.jpg":
                    self.answer(200, web.images["/3.jpg"])
                case "/cut-with-length.jpg":
                    self.answer(200, whole[: len(whole) // 2], length=len(whole))
                case "/cut-without-length.jpg":
                    self.answer(200, whole[: len(whole) // 2], length=None)
                case "/page.jpg":
                    self.answer(200, b"<html><body>This image has moved</body></html>")
                case "/bomb.png":  # 12,000 x 12,000 transparent pixels in a few kilobytes
                    self.answer(200, BOMB)
                case "/float.tiff":
                    self.answer(200, cv2.imencode(".tiff", np.ones((9, 9), np.float32))[1].tobytes())
                case "/noai.jpg":
                    self.answer(200, whole, headers={"X-Robots-Tag": "noai"})
                case "/slow.jpg":
                    time.sleep(30)
                case "/moved.jpg":
                    self.answer(302, b"", headers={"Location": "/4.jpg"})
                case path:
                    self.answer(200, web.images[path])

    def answer(self, status: int, body: bytes, length: int | None = -1, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
