"""Proves of a whole fabricated corpus: the same bytes twice, with one process or two, and after a kill;
uids that do not depend on the port; every kind of trouble; and behind real sockets every row answering as
announced.
"""

import collections
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.fabricate import fabricate_scenes
from data_prep.fabricate.troubles import TROUBLES, duplicate_rows, troubled_rows
from data_prep.serve import BEHAVIOURS_FILE, ImageServer, read_behaviours
from pipeline.errors import UserError
from pipeline.files import read_json

SCENES, EVALUATION = 120, 66
BASE = "http://127.0.0.1:9"


def fabricate(folder: Path, base_url: str = BASE, seed: int = 4, **options: Any) -> dict[str, Any]:
    settings = {"scenes": SCENES, "evaluation_scenes": EVALUATION, "processes": 1} | options
    return fabricate_scenes(folder / "corpus", folder / "evaldata", seed=seed, base_url=base_url, **settings)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def listing(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / "corpus" / "metadata" / "scenes.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("made")
    return folder, fabricate(folder)


def test_the_list_holds_the_promised_rows(made: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = made
    rows = listing(folder)
    assert list(rows[0]) == ["uid", "url", "caption"]
    assert summary["rows"] == len(rows) == sum(summary["behaviours"].values())
    assert summary["behaviours"]["good"] == SCENES
    assert set(summary["behaviours"]) == {"good", "duplicate", *(trouble.name for trouble in TROUBLES)}
    copies = collections.Counter((row["uid"], row["url"], row["caption"]) for row in rows)
    assert sum(count - 1 for count in copies.values()) == summary["behaviours"]["duplicate"] > 0
    assert len({row["uid"] for row in rows}) == len({row["url"] for row in rows}) == len(copies)
    assert all(len(row["uid"]) == 32 and int(row["uid"], 16) >= 0 for row in rows)
    assert read_json(Path(summary["source"]) / BEHAVIOURS_FILE).keys() < {row["url"].removeprefix(BASE) for row in rows}


def test_troubles_are_a_twentieth_of_a_large_corpus() -> None:
    troubled = troubled_rows(6400)
    assert 0.045 < (len(troubled) + duplicate_rows(6400)) / 6400 < 0.055
    assert collections.Counter(trouble.name for trouble in troubled)["too_slow"] <= 4


def test_every_file_listed_as_good_is_a_whole_image(made: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = made
    source = Path(summary["source"])
    troubled = read_json(source / BEHAVIOURS_FILE)
    good = {path for row in listing(folder) if (path := row["url"].removeprefix(BASE)) not in troubled}
    assert len(good) == SCENES
    for path in good:
        with Image.open(source / path.lstrip("/")) as image:
            image.load()


def test_two_processes_draw_the_same_bytes(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    fabricate(tmp_path, processes=2, progress=lambda done, total: calls.append((done, total)))
    assert digests(tmp_path) == digests(made[0])
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


def test_another_seed_draws_another_corpus(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    fabricate(tmp_path, seed=5)
    assert not set(digests(tmp_path).values()) & {
        value for name, value in digests(made[0]).items() if name.endswith((".jpg", ".webp", ".tar"))
    }


def test_the_port_changes_urls_only(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    fabricate(tmp_path, base_url="http://127.0.0.1:10/")
    before, after = listing(made[0]), listing(tmp_path)
    assert [(row["uid"], row["caption"]) for row in before] == [(row["uid"], row["caption"]) for row in after]
    assert [row["url"].replace(":9/", ":10/") for row in before] == [row["url"] for row in after]


def test_what_is_drawn_is_kept_and_what_is_empty_is_drawn_again(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    fabricate(tmp_path)
    first, second, *_ = sorted((tmp_path / "corpus" / "source" / "images").rglob("*.jpg"))
    kept = first.stat().st_mtime_ns
    second.write_bytes(b"")
    fabricate(tmp_path)
    assert first.stat().st_mtime_ns == kept
    assert digests(tmp_path) == digests(made[0])


def test_a_killed_run_goes_on_to_the_same_bytes(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from data_prep.fabricate import fabricate_scenes; import time\n"
        "def slowly(done, total): time.sleep(0.01)\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"fabricate_scenes(folder / 'corpus', folder / 'evaldata', scenes={SCENES}, "
        f"evaluation_scenes={EVALUATION}, seed=4, base_url={BASE!r}, processes=1, progress=slowly)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    images = tmp_path / "corpus" / "source" / "images"
    wait_for(lambda: len(list(images.rglob("*.*"))) > 20, child)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    drawn = len([path for path in images.rglob("*.*") if not path.name.endswith(".tmp")])
    assert 0 < drawn < SCENES
    assert not (tmp_path / "corpus" / "metadata").exists()
    calls: list[int] = []
    fabricate(tmp_path, progress=lambda done, total: calls.append(done))
    assert calls[0] == drawn + 1
    leftovers = {name for name in digests(tmp_path) if name.endswith(".tmp")}
    assert {k: v for k, v in digests(tmp_path).items() if k not in leftovers} == digests(made[0])


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_row_answers_as_announced(made: tuple[Path, dict[str, Any]]) -> None:
    """The outcome of each row, fetched from a real server with one retry and a short time-out."""
    folder, summary = made
    behaviours = read_behaviours(Path(summary["source"]) / BEHAVIOURS_FILE)
    outcomes: collections.Counter[str] = collections.Counter()
    with ImageServer(summary["source"]) as server:
        for row in {row["uid"]: row for row in listing(folder)}.values():
            path = row["url"].removeprefix(BASE)
            patience = 0.2 if behaviours.get(path) and behaviours[path].delay_seconds > 5 else 10
            outcomes[fetch(server.url + path, patience)] += 1
    counts = summary["behaviours"]
    recovered = sum(counts[name] for name in ("good", "error_then_ok", "slow", "redirect"))
    assert outcomes == {
        "image": recovered,
        "404": counts["not_found"],
        "410": counts["gone"],
        "500": counts["server_error"],
        "timeout": counts["too_slow"],
        "truncated": counts["truncated"],
        "not an image": counts["html"],
        "opt-out": counts["opt_out"],
    }


def fetch(url: str, timeout: float, retries: int = 1) -> str:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            content = answer.read()
            if "noai" in answer.headers.get("X-Robots-Tag", ""):
                return "opt-out"
            return "image" if content[:3] in (b"\xff\xd8\xff", b"\x89PN", b"RIF") else "not an image"
    except urllib.error.HTTPError as error:
        return fetch(url, timeout, retries - 1) if retries else str(error.code)
    except IncompleteRead:
        return "truncated"
    except TimeoutError:
        return "timeout"


def test_too_few_evaluation_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation_scenes=20 is too few.*at least 60"):
        fabricate(tmp_path, evaluation_scenes=20)
    assert not list(tmp_path.iterdir())
