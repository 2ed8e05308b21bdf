"""The ingest commands on a web that misbehaves: rows to a manifest, through the real img2dataset.

Proves that every row is accounted for by its true cause; that images that need no change keep their bytes;
that a second run does nothing; that a run which was killed at any moment ends with the same manifest as an
undisturbed one; and that damage, a second process, a changed plan and a dead server are noticed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from data_prep.cli import main
from data_prep.manifest import read_manifest
from data_prep.shard import read_at, read_index
from pipeline.files import sha256_file
from tests.troubled_web import TROUBLE, Web

TASKS, SAMPLES_PER_SHARD, IMAGE_SIZE = 2, 12, 96
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def planned_paths(web: Web) -> list[str]:
    return [*web.images, *TROUBLE, "/flaky.jpg", "/moved.jpg"]


def define(root: Path, url: str, paths: list[str], **fetch: object) -> None:
    """A corpus folder `web` below root: a definition, and metadata with some unusable rows."""
    folder = root / "web"
    (folder / "metadata").mkdir(parents=True)
    definition = {
        "name": "web",
        "title": "A small web",
        "licence": "CC0-1.0",
        "source": "drawn by a test",
        "columns": {"url": "URL", "caption": "TEXT"},
        "images": {"image_size": IMAGE_SIZE},
        "fetch": {"timeout_seconds": 5, "retries": 1, "threads": 8, "allow_private": True, **fetch},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(definition))
    rows = [{"URL": url + path, "TEXT": f"the picture  at {path}\n"} for path in paths]
    rows += [rows[0], rows[-1], {"URL": None, "TEXT": "x"}, {"URL": url + "/1.jpg", "TEXT": " "}]
    rows += [{"URL": "ftp://example.org/1.jpg", "TEXT": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata" / "rows.parquet")


def run(root: Path, *arguments: str) -> Result:
    """A command in this process; for what needs no second process to be real."""
    return CliRunner().invoke(main, ["--root", str(root), *arguments], catch_exceptions=False)


def succeed(root: Path, *arguments: str) -> str:
    result = run(root, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "data_prep", "--root", str(root), *arguments]


PLAN = ("plan", "web", "--tasks", str(TASKS), "--samples-per-shard", str(SAMPLES_PER_SHARD))


def ingest(root: Path) -> None:
    """The four commands, as a user types them."""
    for arguments in (PLAN, ("download", "web"), ("verify", "web", "--processes", "2"), ("manifest", "web")):
        subprocess.run(command(root, *arguments), check=True)


@pytest.fixture(scope="module")
def finished(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    define(root, web.url, planned_paths(web))
    ingest(root)
    return root


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def samples(corpus: Path) -> Iterator[tuple[dict, bytes, str]]:
    """Metadata, image and caption of every published sample, by way of the index, and the tar's own JSON."""
    manifest = read_manifest(corpus)
    for shard in range(len(manifest.samples)):
        path = manifest.shard(shard).path
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        metadata = [json.loads(content) for name, content in members.items() if name.endswith(".json")]
        descriptor = os.open(path, os.O_RDONLY)
        for entry, facts in zip(read_index(path), metadata, strict=True):
            image = read_at(descriptor, int(entry["image_offset"]), int(entry["image_bytes"]))
            caption = read_at(descriptor, int(entry["text_offset"]), int(entry["text_bytes"])).decode()
            assert image in (members.get(f"{facts['uid']}.{kind}") for kind in ("jpg", "png", "webp"))
            yield facts, image, caption
        os.close(descriptor)


def path_of(url: str) -> str:
    return "/" + url.rsplit("/", 1)[1]


def test_every_row_is_accounted_for_by_its_cause(finished: Path, web: Web) -> None:
    corpus = finished / "web"
    rows = [row for item in range(TASKS) for row in pq.read_table(corpus / f"outcomes/{item:05d}.parquet").to_pylist()]
    expected = {path: TROUBLE.get(path, "ok") for path in planned_paths(web)}
    assert len(rows) == len(expected)
    assert {path_of(row["url"]): row["outcome"] for row in rows} == expected

    summary = json.loads((corpus / "manifest.json").read_text())
    ok = len(expected) - len(TROUBLE)
    assert (summary["rows"], summary["ok"], summary["samples"]) == (len(expected), ok, ok)
    assert summary["dropped"] == {"duplicate": 2, "no_caption": 1, "no_url": 1, "not_http": 1}
    assert summary["outcomes"] == {
        "http_404": 1, "http_410": 1, "http_500": 1, "not_an_image": 2, "ok": ok, "opt_out": 1, "timeout": 1,
        "too_large": 1,
        "truncated": 1, "unsupported_format": 1,
    }  # fmt: skip
    assert summary["licence"] == "CC0-1.0"


def eight_bit_reference(content: bytes) -> Image.Image:
    """OpenCV's own conversion to 8 bits, its alpha flattened on white by hand."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED).astype(float)
    if values.max() > 255:
        values /= 257
    if values.ndim == 2:
        values = np.dstack([values] * 3)
    alpha = values[..., 3:] / 255 if values.shape[2] == 4 else 1.0
    return Image.fromarray((values[..., 2::-1] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


def test_published_samples_are_the_pictures_of_their_rows(finished: Path, web: Web) -> None:
    seen = set()
    for facts, image, caption in samples(finished / "web"):
        path = path_of(facts["url"])
        seen.add(path)
        assert caption == f"the picture at {path}"
        decoded = Image.open(io.BytesIO(image))
        decoded = decoded.convert("RGB")
        original = web.images[{"/flaky.jpg": "/3.jpg", "/moved.jpg": "/4.jpg"}.get(path, path)]
        if path.endswith(".jpg") and path != "/large.jpg":
            assert image == original, "a JPEG that is small enough keeps its bytes"
        assert max(decoded.size) <= IMAGE_SIZE
        reference = eight_bit_reference(original).resize(decoded.size, Image.Resampling.BOX)
        error = np.abs(np.asarray(decoded.convert("RGB"), float) - np.asarray(reference, float)).mean()
        assert error < 6, f"{path} is another picture"
    assert seen == set(planned_paths(web)) - TROUBLE.keys()
    manifest = read_manifest(finished / "web")
    assert manifest.samples.max() == SAMPLES_PER_SHARD


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def test_a_second_run_does_nothing_and_says_so(finished: Path, web: Web) -> None:
    before, requests = everything(finished), len(web.requests)
    for arguments in (PLAN, ("download", "web"), ("verify", "web"), ("manifest", "web")):
        assert "nothing done" in succeed(finished, *arguments)
    assert everything(finished) == before
    assert len(web.requests) == requests
    dry = json.loads(succeed(finished, "verify", "web", "--dry-run", "--json"))
    assert dry == {"to_verify": [], "rows": 0, "already_verified": list(range(TASKS))}
    status = json.loads(succeed(finished, "status", "web", "--json"))
    assert status["downloaded"] == status["verified"] == TASKS
    assert status["published"] == read_manifest(finished / "web").total_samples


def workers_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_killed_runs_end_with_the_same_manifest(finished: Path, web: Web, tmp_path: Path) -> None:
    root = tmp_path / "root"
    define(root, web.url, planned_paths(web))
    succeed(root, *PLAN)
    # In the middle of the first shard, kill the process alone: its workers must follow. Then, a few shards
    # on, the whole group.
    for answered, whole_group in ((5, False), (40, True)):
        web.requests.clear()
        web.hold_after = answered
        process = subprocess.Popen(command(root, "download", "web"), start_new_session=True)
        web.wait_for_requests(answered + 1)
        workers = workers_of(process.pid)
        assert workers
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            refused = run(root, "download", "web")
            assert refused.exit_code == 2
            assert f"in use by process {process.pid}" in refused.output
            process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker outlived its killed parent"
            time.sleep(0.01)
        web.hold_after = None
        assert not list(root.rglob("done.json")) or answered > 5
        assert run(root, "manifest", "web").exit_code == 2
    torn = root / "web" / "download" / "00001" / "00000.tar"  # as if killed between opening and writing
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half a tar")
    (torn.parent / "00000_stats.json").write_text("")
    web.requests.clear()
    subprocess.run(command(root, "download", "web"), check=True)
    for arguments in (("verify", "web"), ("manifest", "web")):
        succeed(root, *arguments)
    assert len(web.requests) < len(planned_paths(web)), "finished shards were downloaded again"
    assert_same_corpus(root, finished)


def assert_same_corpus(root: Path, reference: Path) -> None:
    ours, theirs = read_manifest(root / "web"), read_manifest(reference / "web")
    assert (root / "web/manifest.json").read_bytes() == (reference / "web/manifest.json").read_bytes()
    assert (root / "web/manifest.parquet").read_bytes() == (reference / "web/manifest.parquet").read_bytes()
    assert ours.table["path"] == theirs.table["path"]
    for shard in range(len(ours.samples)):
        assert sha256_file(ours.shard(shard).path) == sha256_file(theirs.shard(shard).path)
    assert not list(root.rglob("*.tmp"))
    assert {p.name for p in (root / "web/shards").iterdir()} == {p.name for p in (reference / "web/shards").iterdir()}


def test_a_changed_download_is_quarantined_and_fetched_again(copy: Path, finished: Path, web: Web) -> None:
    corpus = copy / "web"
    tar = corpus / "download/00001/00001.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, the size stays
    tar.write_bytes(content)
    (corpus / "verify/00001.json").unlink()

    result = run(copy, "verify", "web")
    assert result.exit_code == 2
    assert "00001.tar is not the file that was downloaded" in result.output
    assert "data-prep download web --task 1" in result.output
    assert (corpus / "quarantine/00001/00001.tar").read_bytes() == content
    refused = run(copy, "manifest", "web")
    assert refused.exit_code == 2
    assert "1 of 2 work items still to download (1)" in refused.output

    web.requests.clear()
    subprocess.run(command(copy, "download", "web", "--task", "1"), check=True)
    # One more than the shard's rows: a redirect is two requests.
    assert 0 < len(set(web.requests)) <= SAMPLES_PER_SHARD + 1, "only the damaged shard is fetched"
    succeed(copy, "verify", "web")
    succeed(copy, "manifest", "web")
    assert_same_corpus(copy, finished)


def test_a_shard_cut_after_verification_is_refused_and_mended(copy: Path, finished: Path) -> None:
    shard = sorted((copy / "web/shards").glob("*.tar"))[-1]
    os.truncate(shard, shard.stat().st_size - 1024)
    result = run(copy, "manifest", "web")
    assert result.exit_code == 2
    assert shard.name in result.output
    assert "data-prep verify" in result.output
    succeed(copy, "verify", "web")
    succeed(copy, "manifest", "web")
    assert_same_corpus(copy, finished)


def test_the_readme_block_works_as_printed(web: Web, tmp_path: Path) -> None:
    """Only /data/birds, which a test cannot write, and the virtual environment are another."""
    section = (REPOSITORY / "README.md").read_text().split("## Your own corpus")[1].split("\n## ")[0]
    definition, shell = re.search(r"```yaml\n(.*?)```.*?```bash\n(.*?)```", section, re.DOTALL).groups()
    assert "/data/birds/" in definition
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"URL": f"{web.url}/{n}.jpg", "TEXT": f"bird {n}"} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), data / "birds.parquet")
    (tmp_path / "birds.yaml").write_text(definition.replace("/data/birds", str(data)))
    commands = [line for line in shell.splitlines() if line.startswith("data-prep ")]
    assert [shlex.split(line)[1] for line in commands] == ["plan", "plan", "download", "verify", "manifest"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DATA_PREP_ALLOW_PRIVATE": "1"}  # served from here
    for line in commands:
        arguments = shlex.split(line, comments=True)[1:]
        process = [sys.executable, "-m", "data_prep", *arguments]
        subprocess.run(process, check=True, cwd=tmp_path, env=environment)
    summary = json.loads((tmp_path / "corpora/birds/manifest.json").read_text())
    assert (summary["ok"], summary["licence"]) == (6, "see birds.org/terms")


def test_another_plan_is_refused_with_the_difference(copy: Path) -> None:
    before = everything(copy)
    result = run(copy, "plan", "web", "--tasks", "3", "--samples-per-shard", "12")
    assert result.exit_code == 2
    assert "tasks: 2 -> 3" in result.output
    assert everything(copy) == before


def test_a_dead_server_fails_the_item_and_marks_nothing(tmp_path: Path) -> None:
    define(tmp_path, "http://127.0.0.1:9", ["/a.jpg", "/b.jpg", "/c.jpg"], retries=0)
    succeed(tmp_path, "plan", "web")
    failed = subprocess.run(command(tmp_path, "download", "web"), capture_output=True, text=True)
    assert failed.returncode == 2
    assert "3 connection" in failed.stderr
    assert "Is the server running" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "web/download/00000/done.json").exists()
    assert run(tmp_path, "verify", "web").exit_code == 2
    assert json.loads(succeed(tmp_path, "status", "web", "--json"))["downloaded"] == 0
