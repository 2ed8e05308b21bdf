"""A small HTTP server for images: the files of a folder, and the rows of Parquet files.

    with ImageServer(Path("photos")) as server:
        ...                                     # server.url + "/holiday/1.jpg", "/table.parquet/17"

A file `behaviours.json` directly in the served folder maps URL paths to a `Behaviour`: how the answer goes
wrong, as answers do on the web.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from data_prep.corpus_files import BEHAVIOURS
from data_prep.imagestore import ImageStore, content_type
from pipeline.errors import UserError

BEHAVIOURS_FILE = "behaviours.json"
_PAGE = b"<!DOCTYPE html><html><body><h1>This picture has moved</h1></body></html>\n"


@dataclass(frozen=True)
class Behaviour:
    """How the server answers for one URL path; the defaults are a plain, prompt, whole answer.

    status: of the answer; with `location` a redirect. failures: answer with `status` only the first so many
    times, then well; 0: always. delay_seconds: before the body. truncated: close the connection after half of
    the promised bytes. html: a web page under the content type of an image. headers: sent as they are.
    """

    status: int = 200
    failures: int = 0
    location: str | None = None
    delay_seconds: float = 0.0
    truncated: bool = False
    html: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = asdict(Behaviour())
        return {key: value for key, value in asdict(self).items() if value != default[key]}


def read_behaviours(path: Path) -> dict[str, Behaviour]:
    """URL path to behaviour; none if there is no such file. Raises UserError when the file is not valid."""
    return {url_path: Behaviour(**value) for url_path, value in (BEHAVIOURS.read(path) or {}).items()}


class ImageServer(ThreadingHTTPServer):
    """Serves the images of `source`, one thread per request; on localhost unless told otherwise.

    As a context manager it serves in the background; `serve_forever` serves until it is interrupted.
    source: a folder of image files and Parquet files, or one Parquet file. port 0: any free one.
    Raises UserError when the source is missing or holds no images, or when the address cannot be had.
    """

    daemon_threads = True  # a slow answer never holds up the end of the program
    request_queue_size = 512

    def __init__(self, source: Path | str, host: str = "127.0.0.1", port: int = 0) -> None:
        if not 0 <= port < 65536:
            raise UserError(f"port {port} does not exist; give one from 1 to 65535, or 0 for any free port")
        self.store = ImageStore(Path(source))
        self.behaviours = read_behaviours(Path(source) / BEHAVIOURS_FILE) if self.store.is_folder else {}
        self._answered: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(_explain(error, host, port)) from error

    @property
    def url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def behaviour(self, path: str) -> Behaviour:
        """How to answer this request for `path`; counts it."""
        behaviour = self.behaviours.get(path, Behaviour())
        if not behaviour.failures:
            return behaviour
        with self._lock:
            self._answered[path] += 1
            recovered = self._answered[path] > behaviour.failures
        return Behaviour() if recovered else behaviour

    def end_without_users(self, lock: Path) -> None:
        """End this process once nobody holds the lock file any more. Whoever wants it then waits for that end."""

        def watch() -> None:
            with open(lock, "a") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                os._exit(0)

        threading.Thread(target=watch, name="users", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up (time-outs, kills) are the normal case here: nothing to say of those."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def __enter__(self) -> ImageServer:
        self._thread = threading.Thread(target=self.serve_forever, name="image-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use by another process; give another one, or 0 for any free port"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for the system; give one above 1023, or 0 for any free port"
    return f"cannot serve on {host}:{port}: {error.strerror or error}"


class _Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: the connection ends with the answer, so that a truncated one is seen as such."""

    server: ImageServer
    timeout = 60

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        behaviour = self.server.behaviour(path)
        if behaviour.location is not None:
            return self._send(behaviour.status, {"Location": behaviour.location}, b"")
        if behaviour.status != 200:
            return self.send_error(behaviour.status)
        image = self.server.store.read(path)
        if image is None and not behaviour.html:
            return self.send_error(404)
        body = _PAGE if image is None or behaviour.html else image
        headers = {
            "Content-Type": "image/jpeg" if behaviour.html else str(content_type(body)),
            "Content-Length": str(len(body)),
            **behaviour.headers,
        }
        shown = body[: len(body) // 2] if behaviour.truncated else body
        return self._send(200, headers, shown if with_body else b"", behaviour.delay_seconds)

    def _send(self, status: int, headers: dict[str, str], body: bytes, delay_seconds: float = 0.0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        time.sleep(delay_seconds)
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request: a corpus has millions."""
