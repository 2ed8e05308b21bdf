"""The first look at an item's URLs: what it measures, what it asks for, and whom it stops."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import data_prep.download
import data_prep.speed
from data_prep.corpus import Fetch, Images
from data_prep.download import download
from data_prep.speed import Speed, measure_speed
from pipeline.errors import UserError
from tests.hostile import JPEG, TROUBLE, HostileWeb, said
from tests.unit.downloads_support import planned

FETCH, IMAGES = Fetch(threads=4, allow_private=True, retries=2, timeout_seconds=2), Images()


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as running:
        yield running


def test_some_urls_spread_evenly_are_asked_for_once(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.speed, "URLS", 8)
    urls = [f"{web.url}/{'good' if n % 10 else '500'}.jpg?{n}" for n in range(40)]  # of every tenth, another
    speed = measure_speed(urls, FETCH, IMAGES, expected_yield=0.04)
    assert speed.outcomes == {"http_500": 4, "ok": 4}
    assert speed.bytes == 4 * len(JPEG)
    assert web.requests == {"/good.jpg": 4, "/500.jpg": 4}, "no retries"


def test_a_slow_web_is_not_waited_for(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.speed, "SECONDS", 0.3)
    monkeypatch.setitem(TROUBLE, "/wait.jpg", (said(429, b"", Retry_After="30"), "http_429"))
    speed = measure_speed([f"{web.url}/crowded.jpg", f"{web.url}/wait.jpg"] * 64, FETCH, IMAGES, expected_yield=0.04)
    assert 0 < sum(speed.outcomes.values()) <= 128
    assert speed.seconds < 5
    mute = measure_speed([f"{web.url}/mute.jpg?{n}" for n in range(128)], FETCH, IMAGES, expected_yield=0)
    assert mute.outcomes == {"timeout": 4}
    assert mute.seconds < 5


def test_nobody_who_answers_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    urls = [f"http://127.0.0.1:{port}/{n}.jpg" for n in range(3)]
    with pytest.raises(
        UserError, match=r"first look at 3 of the URLs failed: 0 of 3 .*\(3 connection\)\. Is the server"
    ):
        measure_speed(urls, FETCH, IMAGES, expected_yield=0.04)
    assert measure_speed(urls, FETCH, IMAGES, expected_yield=0).outcomes == {"connection": 3}


def test_what_it_means_for_the_item() -> None:
    speed = Speed({"http_404": 10, "ok": 30}, 6_000_000, 2.0)
    assert (speed.rows_per_second, speed.images_per_second, speed.megabytes_per_second) == (20, 15, 3)
    assert speed.hours(720_000, 2) == 5
    said = speed.describe(720_000, 2)
    assert "40 of the URLs: 15.0 images/s, 3.00 MB/s (30 ok, 10 http_404)" in said
    assert "720,000 rows take 5.0 hours with 2 processes" in said
    assert "--processes" not in said
    assert "--processes" in speed.describe(72_000_000, 2)
    assert "600 rows take 0.5 minutes with 1 process," in speed.describe(600, 1)


def test_a_download_that_goes_on_or_is_small_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def measured(urls: list[str], *_: object) -> Speed:
        looked.append(len(urls))
        return Speed({"ok": 1}, 1, 1.0)

    def nothing_else(*_: object) -> None:
        raise UserError("that is enough")

    monkeypatch.setattr(data_prep.download, "measure_speed", measured)
    monkeypatch.setattr(data_prep.download, "_download_item", nothing_else)
    for rows, begun, wanted in ((1000, False, [1000]), (999, False, []), (1000, True, [])):
        corpus, _ = planned(tmp_path / f"{rows}{begun}", rows, samples_per_shard=100)
        lines = list[str]()
        if begun:
            corpus.download(0).mkdir(parents=True)
        with pytest.raises(UserError, match="that is enough"):
            download(corpus, FETCH, say=lines.append)
        assert looked == wanted
        assert len(lines) == len(wanted)
        looked.clear()
