"""Every way in which `tests/hostile.py` misbehaves, against the real fetch: the cause of each row, what was asked
how often, and how long and how much it took.
"""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import data_prep.connect
import data_prep.guarded_fetch
from data_prep.connect import PatientSocket, PatientTLSSocket, dial
from data_prep.corpus import Fetch, Images
from data_prep.guarded_fetch import SPOOL_BYTES, GuardedFetch, ascii_url, user_agent
from data_prep.incoming import GuardedResizer
from data_prep.outcomes import OK, classify
from data_prep.watch import NOT_ASKED, UNSTATED_YIELD, Watch
from tests.hostile import BODY_MIB, GOOD, JPEG, TROUBLE, HostileWeb

SECONDS = 1.5


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as running:
        yield running


def fetcher(watch: Watch | None = None, **settings: Any) -> GuardedFetch:
    fetch = Fetch(
        **{
            "timeout_seconds": 1.0,
            "total_seconds": SECONDS,
            "retries": 1,
            "max_body_mib": BODY_MIB,
            "patience_seconds": 5,
            "allow_private": True,
            **settings,
        }
    )
    return GuardedFetch(fetch, Images(user_agent_token="picky"), watch or Watch(UNSTATED_YIELD))


def outcome(fetch: GuardedFetch, url: str) -> str:
    """The cause that the row would have: of its fetch, then of its decoding."""
    key, stream, message = fetch((7, url))
    assert key == 7
    if message is not None:
        assert stream is None
        return classify("failed_to_download", message)
    resized = GuardedResizer(lambda *_: (b"", 0, 0, 0, 0, None), 10_000_000)(stream)
    return OK if resized[-1] is None else classify("failed_to_resize", resized[-1])


@pytest.mark.parametrize("path", TROUBLE)
def test_trouble_has_its_cause(web: HostileWeb, path: str) -> None:
    began = time.monotonic()
    assert outcome(fetcher(), web.url + path) == TROUBLE[path][1]
    assert time.monotonic() - began < 2 * SECONDS + 2  # one read may begin just before the end


def test_what_is_asked_again_and_what_is_not(web: HostileWeb) -> None:
    web.requests.clear()
    lasting = ("/404.jpg", "/410.jpg", "/403.jpg", "/noai.jpg", "/endless.jpg", "/page.jpg", "/to-file.jpg")
    passing = ("/500.jpg", "/503.jpg", "/reset.jpg", "/cut.jpg")
    for path in (*lasting, *passing):
        outcome(fetcher(retries=2), web.url + path)
    assert {path: web.requests[path] for path in lasting} == dict.fromkeys(lasting, 1)
    assert {path: web.requests[path] for path in passing} == dict.fromkeys(passing, 3)


@pytest.mark.parametrize("path", GOOD)
def test_what_is_good_comes_through(web: HostileWeb, path: str) -> None:
    _, stream, message = fetcher()((0, web.url + path))
    assert message is None
    assert stream is not None
    content = stream.read() if stream.seek(0) == 0 else b""
    if path in ("/good.jpg", "/gzip.jpg", "/moved.jpg", "/429-once.jpg", "/bücher und/图.jpg"):
        assert content == JPEG


def test_a_pause_that_was_asked_for_is_kept(web: HostileWeb) -> None:
    web.requests.clear()
    began = time.monotonic()
    assert outcome(fetcher(), web.url + "/429-once.jpg") == OK
    assert time.monotonic() - began >= 1.0
    assert web.requests["/429-once.jpg"] == 2


def test_a_host_that_wants_to_be_left_alone_is(web: HostileWeb) -> None:
    web.requests.clear()
    fetch = fetcher()
    assert [outcome(fetch, web.url + "/429-for-ever.jpg") for _ in range(5)] == ["http_429"] * 5
    assert web.requests["/429-for-ever.jpg"] == 1
    other = web.url.replace("127.0.0.1", "localhost")
    assert outcome(fetch, other + "/good.jpg") == OK, "another host has nothing to do with it"


def test_one_host_gets_so_many_connections_at_once(web: HostileWeb) -> None:
    fetch = fetcher(connections_per_host=3)
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(lambda _: outcome(fetch, web.url + "/crowded.jpg"), range(30))) == {OK}
    assert web.busiest == 3


def test_the_user_agent_says_who_and_where_to_complain(web: HostileWeb) -> None:
    web.user_agents.clear()
    outcome(fetcher(contact="https://example.org/bot"), web.url + "/good.jpg")
    assert web.user_agents == {"Mozilla/5.0 (compatible; picky; +https://example.org/bot)"}
    assert user_agent(None, None).startswith("Mozilla/5.0 (compatible; neuclip-data-prep/")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0x7f.1", "2130706433"]
)
def test_private_addresses_are_not_asked(web: HostileWeb, host: str) -> None:
    web.requests.clear()
    assert outcome(fetcher(allow_private=False), f"http://{host}:{web.server_port}/good.jpg") == "private_address"
    assert not web.requests


@pytest.mark.parametrize("target", ["http://127.0.0.2:{}/good.jpg", "http://169.254.169.254/latest", "//[::1]:{}/x"])
def test_redirects_to_private_addresses_are_not_followed(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(data_prep.connect, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setitem(
        TROUBLE, "/inwards.jpg", (lambda handler: handler.answer(302, b"", Location=target.format(web.server_port)), "")
    )
    fetch = fetcher(allow_private=False)
    assert outcome(fetch, web.url + "/good.jpg") == OK
    assert outcome(fetch, web.url + "/inwards.jpg") == "private_address"


def test_a_name_that_turns_private_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public at one look-up, private at the next: what is connected to is what was checked, by its number."""
    answers = iter(["93.184.216.34", "127.0.0.1"] * 2)
    looked_up: list[str] = []
    connected: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        looked_up.append(next(answers))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (looked_up[-1], port))]

    def connect(_: PatientSocket, target: tuple[str, int]) -> None:
        connected.append(target[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(PatientSocket, "connect", connect)
    fetch = fetcher(allow_private=False, retries=0)
    url = "http://rebinding.example/x.jpg"
    assert [outcome(fetch, url) for _ in range(4)] == ["connection", "private_address"] * 2
    assert connected == ["93.184.216.34"] * 2
    assert len(looked_up) == 4


def test_of_several_addresses_the_public_one_is_taken(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, web.server_port)) for name in ("10.0.0.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(data_prep.connect, "is_public", lambda address: address == "127.0.0.1")
    with dial(("x", web.server_port), 1.0, time.monotonic() + 5, False) as connection:
        assert connection.getpeername() == ("127.0.0.1", web.server_port)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.jpg",
        "gopher://127.0.0.1/",
        "data:image/png;base64,AAAA",
        "//127.0.0.1/x",
        "http:///x.jpg",
        "http://user:secret@127.0.0.1/x.jpg",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:port/",
        "http://[::1/x",
        "http://" + "a" * 64 + "é.example/",
        "",
    ],
)
def test_urls_that_are_not_asked_for(url: str) -> None:
    assert outcome(fetcher(), url) in ("bad_scheme", "bad_url")


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("http://münchen.de/ä b?q=ü#x", "http://xn--mnchen-3ya.de/%C3%A4%20b?q=%C3%BC#x"),
        ("http://h/100%25/a%20b?x=%2F", "http://h/100%25/a%20b?x=%2F"),
        ("http://例え.jp:8080/図.jpg", "http://xn--r8jz45g.jp:8080/%E5%9B%B3.jpg"),
        ("http://h/a\x00b", "http://h/a%00b"),
        ("http://h/a\u202eb", "http://h/a%E2%80%AEb"),
    ],
)
def test_urls_go_over_the_wire_in_ascii(url: str, wire: str) -> None:
    assert ascii_url(url) == wire
    assert ascii_url(wire) == wire


def test_bodies_wait_on_disk_not_in_memory(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    big = JPEG + bytes(SPOOL_BYTES)
    monkeypatch.setitem(GOOD, "/big.jpg", lambda handler: handler.answer(body=big))
    _, stream, _ = fetcher()((0, web.url + "/big.jpg"))
    assert stream.fileno() > 0  # of a file; what lies in memory has none
    stream.seek(0)
    assert stream.read() == big


def test_tls_that_cannot_be_trusted(web: HostileWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(fetcher(), web.url.replace("http:", "https:") + "/good.jpg") == "tls"
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HostileWeb() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        url = f"https://localhost:{secure.server_port}"
        assert outcome(fetcher(), url + "/good.jpg") == "tls"
        trusting, context = fetcher(), ssl.create_default_context(cafile=str(certificate))
        context.sslsocket_class = PatientTLSSocket
        monkeypatch.setattr(data_prep.guarded_fetch, "tls_context", lambda: context)
        assert outcome(trusting, url + "/good.jpg") == OK
        began = time.monotonic()
        assert outcome(trusting, url + "/drip.jpg") == "timeout"
        assert time.monotonic() - began < SECONDS + 2


def test_a_handshake_that_never_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        assert outcome(fetcher(retries=0), f"https://127.0.0.1:{mute.getsockname()[1]}/x.jpg") == "timeout"
        assert time.monotonic() - began < SECONDS + 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_what_this_machine_lacks_is_not_held_against_a_row(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, "this machine is full")

    watch = Watch(UNSTATED_YIELD)
    fetch = fetcher(watch)
    monkeypatch.setattr(data_prep.guarded_fetch, "SPOOL_BYTES", 0)
    monkeypatch.setattr(data_prep.guarded_fetch, "dial" if code == errno.EMFILE else "TemporaryFile", fail)
    assert fetch((1, web.url + "/good.jpg")) == (1, None, NOT_ASKED)
    assert "this machine is full" in str(watch.stopped)
    web.requests.clear()
    assert fetch((2, web.url + "/good.jpg")) == (2, None, NOT_ASKED)
    assert not web.requests


def test_a_proxy_is_asked_for_the_whole_url(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.delenv("no_proxy", raising=False)
    fetch = fetcher(allow_private=False)
    assert outcome(fetch, "http://pictures.example/good.jpg") == OK  # resolved by the proxy, which may be private
    assert outcome(fetch, "http://169.254.169.254/good.jpg") == "private_address"


def test_threads_share_one_fetch(web: HostileWeb) -> None:
    fetch, paths = fetcher(), [path for path in (*TROUBLE, *GOOD) if not path.startswith(("/429", "/503-", "/reset-"))]

    def ask(path: str) -> tuple[str, str]:
        return path, outcome(fetch, web.url + path)

    with ThreadPoolExecutor(24) as threads:
        got = dict(threads.map(ask, paths * 2))
    assert got == {path: TROUBLE[path][1] if path in TROUBLE else OK for path in paths}
