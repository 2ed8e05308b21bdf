"""One work item against `tests/hostile.py` through the commands: the recorded outcome of every row, the rows around
them untouched, and the memory of a download worker under the ceiling that docs/corpora.md states.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_prep.manifest import read_manifest
from data_prep.speed import URLS
from tests.hostile import BODY_MIB, GOOD, TROUBLE, HostileWeb, encoded, said
from tests.real_data import DATA

ODD_FILES = sorted(path for path in DATA.glob("oddmodes/*") if path.suffix != ".csv")
CAPTIONS = {
    "/good.jpg": "line one\nline\ttwo \r\n three",
    "/gzip.jpg": "a NUL \0 in the middle",
    "/moved.jpg": "\U0001f3f3\ufe0f\u200d\U0001f308 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "/large.jpg": "w" * 100_000,
    "/animated.gif": 'quotes " and {json} <b>',
}
THREADS, MAX_PIXELS = 16, 12_000_000
SECONDS = 2.0


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWeb]:
    large = np.random.default_rng(0).integers(0, 255, (60, 80, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(large).resize((4000, 2990), Image.Resampling.NEAREST).save(stream, "PNG", compress_level=1)
    with pytest.MonkeyPatch.context() as patch, HostileWeb() as running:
        for path in ODD_FILES:
            patch.setitem(GOOD, f"/odd/{path.name}", said(200, path.read_bytes()))
        patch.setitem(GOOD, "/12-megapixels.png", said(200, stream.getvalue()))
        for number in range(40):
            patch.setitem(GOOD, f"/neighbour/{number}.jpg", said(200, encoded("JPEG", (60 + number, 50))))
        yield running


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep", "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(web: HostileWeb, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, int]:
    """The corpus, the seconds of its download, and the peak memory of the download's processes, KiB."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "web"
    (folder / "metadata").mkdir(parents=True)
    fetch = {
        "timeout_seconds": 1,
        "total_seconds": SECONDS,
        "retries": 1,
        "threads": THREADS,
        "max_body_mib": BODY_MIB,
        "patience_seconds": 5,
        "allow_private": True,
    }
    images = {"image_size": 128, "max_pixels": MAX_PIXELS, "user_agent_token": "picky"}
    screen = {"max_caption_length": 200_000}  # one of the captions has 100 kB
    facts = {"name": "web", "title": "A web", "licence": "CC0-1.0", "images": images, "fetch": fetch, "screen": screen}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(facts))
    paths = [*TROUBLE, *GOOD]
    hosts = [web.url, web.url.replace("127.0.0.1", "localhost")]  # the one that wants to be left alone is another
    rows = [
        {"url": hosts[path == "/429-for-ever.jpg"] + path, "caption": CAPTIONS.get(path, f"picture {path}")}
        for path in paths
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata/rows.parquet")
    assert run(root, "plan", "web", "--samples-per-shard", "200").returncode == 0
    command = [sys.executable, "-m", "data_prep", "--root", str(root), "download", "web"]
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for child in children.read_text().split() if children.exists() else ():
                peak = max(peak, peak_kib(int(child)))
            time.sleep(0.02)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    seconds = time.monotonic() - began
    for command_name in ("verify", "manifest"):
        done = run(root, command_name, "web")
        assert done.returncode == 0, done.stderr
    return folder, seconds, peak


def peak_kib(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]


def test_every_row_has_its_outcome(finished: tuple[Path, float, int]) -> None:
    folder = finished[0]
    rows = pq.read_table(folder / "outcomes/00000.parquet").to_pylist()
    got = {path_of(row["url"]): row["outcome"] for row in rows}
    assert got == {path: TROUBLE[path][1] if path in TROUBLE else "ok" for path in (*TROUBLE, *GOOD)}
    assert len(rows) == len(got)


def stored(folder: Path) -> dict[str, tuple[bytes, str, dict]]:
    found = {}
    for row in read_manifest(folder).table.to_pylist():
        with tarfile.open(folder / row["path"]) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, content in members.items():
            if name.endswith(".json"):
                facts, stem = json.loads(content), name.removesuffix(".json")
                image = next(
                    members[f"{stem}.{kind}"] for kind in ("jpg", "png", "webp") if f"{stem}.{kind}" in members
                )
                found[path_of(facts["url"])] = image, members[f"{stem}.txt"].decode(), facts
    return found


def test_neighbours_captions_and_orientation(finished: tuple[Path, float, int]) -> None:
    samples = stored(finished[0])
    assert samples.keys() == GOOD.keys()
    for number in range(40):
        image, caption, facts = samples[f"/neighbour/{number}.jpg"]
        assert image == encoded("JPEG", (60 + number, 50)), "a JPEG that is small enough keeps its bytes"
        assert caption == f"picture /neighbour/{number}.jpg"
        assert facts["original_sha256"] == facts["sha256"]
    for path, caption in CAPTIONS.items():
        assert samples[path][1] == " ".join(caption.replace("\0", " ").split())
    upright = Image.open(io.BytesIO(samples["/rotated.jpg"][0]))
    assert upright.size == (40, 60)
    assert upright.getexif().get(0x0112, 1) == 1


@pytest.mark.skipif(not ODD_FILES, reason=f"no pictures of odd modes at {DATA}/oddmodes (set NEUCLIP_TEST_DATA)")
def test_pictures_of_every_mode_come_through(finished: tuple[Path, float, int]) -> None:
    samples = stored(finished[0])
    for path in ODD_FILES:
        assert min(Image.open(io.BytesIO(samples[f"/odd/{path.name}"][0])).size) > 0


def test_time_and_memory_are_bounded(finished: tuple[Path, float, int]) -> None:
    """docs/corpora.md: 350 MiB, and 3 MiB per thread, and 24 bytes per pixel of images.max_pixels."""
    _, seconds, peak = finished
    troubles = len(TROUBLE)
    assert seconds < 30 + 2 * troubles * (SECONDS + 2) / THREADS * 4
    assert 50 < peak / 1024 < 350 + 3 * THREADS + 24 * MAX_PIXELS / 2**20, f"{peak / 1024:.0f} MiB"


def test_a_download_that_brings_nothing_stops_with_a_diagnosis(web: HostileWeb, tmp_path: Path) -> None:
    folder = tmp_path / "poor"
    (folder / "metadata").mkdir(parents=True)
    facts = {"name": "poor", "title": "Poor", "licence": "CC0-1.0", "published_yield": 0.8}
    facts["fetch"] = {"allow_private": True, "timeout_seconds": 2, "retries": 0}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(facts))
    urls = [f"{web.url}/403.jpg?{number}" for number in range(1500)]
    pq.write_table(pa.table({"url": urls, "caption": ["x"] * 1500}), folder / "metadata/rows.parquet")
    assert run(tmp_path, "plan", "poor", "--samples-per-shard", "1500").returncode == 0
    web.requests.clear()
    stopped = run(tmp_path, "download", "poor")
    assert stopped.returncode == 2
    assert "0 of 1,000 rows are images, where 80% were expected (1,000 http_403)" in stopped.stderr
    assert "refuse this machine" in stopped.stderr
    assert 1000 <= web.requests["/403.jpg"] - URLS < 1100  # some of them at a first look
    assert not list(folder.rglob("done.json"))
    assert run(tmp_path, "verify", "poor").returncode == 2
    accepted = run(tmp_path, "download", "poor", "--expected-yield", "0", "--json")
    assert json.loads(accepted.stdout)["outcomes"] == {"http_403": 1500}
    assert "1 work items" in run(tmp_path, "verify", "poor").stdout


def test_a_full_disk(web: HostileWeb, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    (folder / "metadata").mkdir(parents=True)
    facts = {"name": "full", "title": "Full", "licence": "CC0-1.0", "fetch": {"allow_private": True, "threads": 4}}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(facts))
    urls = [f"{web.url}/large.jpg?{number}" for number in range(60)]
    pq.write_table(pa.table({"url": urls, "caption": ["x"] * 60}), folder / "metadata/rows.parquet")
    assert run(tmp_path, "plan", "full").returncode == 0
    log = folder / "download/00000/img2dataset.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")  # it lies on the disk that is full
    limited = [sys.executable, "-m", "data_prep", "--root", str(tmp_path), "download", "full"]
    program = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    program += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", program, *limited], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as stopped:
        try:
            _, said = stopped.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(stopped.pid, signal.SIGKILL)
            raise
    assert stopped.returncode == 2, said
    assert "cannot be written" in said
    assert "File too large" in said
    assert not list(folder.rglob("done.json"))
    assert subprocess.run(limited, check=False).returncode == 0
    verified = run(tmp_path, "verify", "full")
    assert "60 ok" in verified.stdout
