"""The small judges of a download: addresses, opt-outs, pauses, early stop, preflight."""

from __future__ import annotations

import resource
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import data_prep.preflight
from data_prep.addresses import is_public
from data_prep.optout import opted_out
from data_prep.outcomes import OK
from data_prep.politeness import Hosts, retry_after
from data_prep.preflight import look, preflight
from data_prep.watch import FIRST_ROWS, Watch, too_few
from pipeline.errors import UserError
from tests.unit.downloads_support import planned

PUBLIC = "8.8.8.8 93.184.216.34 2606:2800:220:1::1 64:ff9b::808:808 2002:808:808::1"
NOT_PUBLIC = """127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254
100.64.0.1 224.0.0.1 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254
ff02::1 fec0::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::1
2001:db8::1"""
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def headers(**values: Any) -> Message:
    message = Message()
    for name, some in values.items():
        for value in some if isinstance(some, list) else [some]:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("value", "obeyed"),
    [
        ("noai", True),
        ("NOAI", True),
        ("nofollow, noimageai", True),
        ("none", True),
        ("all", False),
        ("nofollow", False),
        ("noarchive, nosnippet", False),
        ("noaify", False),
        ("us: noai", True),
        ("US : NoAI", True),
        ("otherbot: noai", False),
        ("otherbot: nofollow, noai", False),
        ("otherbot: noai, us: noindex", True),
        ("*: noai", True),
        ("max-snippet: 20, noai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        (["nofollow", "noai"], True),
        ("", False),
        (",,:,", False),
    ],
)
def test_robots_tags(value: str | list[str], obeyed: bool) -> None:
    assert opted_out(headers(X_Robots_Tag=value), DIRECTIVES, "us") is obeyed
    assert not opted_out(headers(X_Robots_Tag=value), (), "us"), "the user may switch it off"


def test_text_and_data_mining_reservations() -> None:
    assert opted_out(headers(tdm_reservation=" 1 "), DIRECTIVES)
    assert not opted_out(headers(tdm_reservation="0"), DIRECTIVES)
    assert not opted_out(headers(tdm_reservation="1"), ())


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(" 120 ") == 120
    assert retry_after("0") == 0
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert 85 < (retry_after(format_datetime(soon, usegmt=True)) or 0) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nothing in (None, "", "soon", "-5", "9" * 4000 + "x"):
        assert retry_after(nothing) is None


def test_pauses_add_up_to_the_hosts_patience() -> None:
    hosts = Hosts(connections=4, patience_seconds=2)
    for _ in range(20):  # answers to requests that were on their way already
        hosts.pause("h", 0.2, "HTTP Error 429: slow down")
    began = time.monotonic()
    with hosts.turn("h") as refused:
        assert refused is None
    assert 0.15 < time.monotonic() - began < 1
    hosts.pause("h", 1e9, "HTTP Error 429: slow down")
    began = time.monotonic()
    with hosts.turn("h") as refused, hosts.turn("other") as welcome:
        assert str(refused).startswith("HTTP Error 429: slow down (not asked again")
        assert welcome is None
    assert time.monotonic() - began < 0.5


def test_a_host_waits_for_its_own_connections_only() -> None:
    hosts, entered = Hosts(connections=1, patience_seconds=2), threading.Event()

    def wait() -> None:
        with hosts.turn("h"):
            entered.set()

    with hosts.turn("h"):
        thread = threading.Thread(target=wait)
        thread.start()
        with hosts.turn("other"):
            assert not entered.wait(0.1)
    thread.join(5)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("counts", "expected", "stops"),
    [
        ({OK: 200, "http_404": 800}, 0.8, False),
        ({OK: 199, "http_404": 801}, 0.8, True),
        ({OK: 199, "http_404": 801}, 0.0, False),
        ({OK: 9, "dns": 991}, 0.04, True),
        ({OK: 10, "dns": 990}, 0.04, False),
        ({"http_404": 999}, 0.8, False),  # an item of dead URLs can be done
        ({"http_404": 998, "dns": 1}, 0.8, False),
        ({"dns": 5, "timeout": 3}, 0.8, True),  # no server ever answered
        ({"dns": 5, "timeout": 3}, 0.0, False),
        ({OK: 1, "dns": 900}, 0.8, False),
        ({}, 0.8, False),
    ],
)
def test_too_few_images(counts: dict[str, int], expected: float, stops: bool) -> None:
    assert (too_few(counts, expected) is not None) is stops


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        ("dns", "Names do not resolve"),
        ("http_403", "refuse this machine"),
        ("tls", "certificates and the clock"),
        ("http_407", "proxy wants a login"),
        ("not_an_image", "portal's page"),
        ("private_address", "--allow-private"),
        ("http_404", "--expected-yield 0"),
    ],
)
def test_a_diagnosis_names_the_likely_reason(cause: str, hint: str) -> None:
    watch = Watch(0.8)
    for number in range(FIRST_ROWS):
        assert watch.stopped is None
        watch.count(OK if number < 100 else cause)
    assert watch.stopped is not None
    assert f"100 of 1,000 rows are images, where 80% were expected (900 {cause})" in watch.stopped
    assert hint in watch.stopped


def test_a_network_that_dies_later_stops_it_too() -> None:
    watch, easy = Watch(0.8), Watch(0.0)
    for cause in [OK] * 5000 + ["timeout"] * FIRST_ROWS:
        assert watch.stopped is None
        watch.count(cause)
        easy.count(cause)
    assert "without any answer" in str(watch.stopped)
    assert easy.stopped is None


def test_preflight_of_a_fit_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = planned(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    facts = look(corpus, corpus.definition.fetch, expected_yield=0)
    assert (facts["items"], facts["rows"], facts["hosts_tried"], facts["hosts_resolved"]) == (1, 20, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert plan.items[0]["rows"] == 20


def test_preflight_tells_a_dead_resolver_from_dead_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = planned(tmp_path)

    def fail(code: int) -> Any:
        def look_up(*_: Any) -> Any:
            raise socket.gaierror(code, "no")

        return look_up

    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_NONAME))
    assert preflight(corpus, plan, [0], corpus.definition.fetch)["hosts_resolved"] == 0
    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_AGAIN))
    with pytest.raises(UserError, match=r"DNS: this machine's resolver answers for none of 1 hosts, h for one"):
        preflight(corpus, plan, [0], corpus.definition.fetch)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert preflight(corpus, plan, [0], corpus.definition.fetch)["hosts_tried"] == 0


def test_preflight_looks_at_disk_and_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = planned(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.preflight, "free_bytes", lambda _: 1000)
        with pytest.raises(UserError, match=r"0\.00 GB free.*Make room first"):
            preflight(corpus, plan, [0], corpus.definition.fetch)
    limits: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (100, 400))
        patch.setattr(resource, "setrlimit", lambda _, values: limits.append(values))
        fetch = corpus.definition.fetch.model_copy(update={"threads": 64})
        assert preflight(corpus, plan, [0], fetch)["open_files"] == 320
        assert limits == [(320, 400)]
        fetch = fetch.model_copy(update={"threads": 128})
        with pytest.raises(UserError, match=r"128 threads need about 512 open files.*--threads 90 at most"):
            preflight(corpus, plan, [0], fetch)
