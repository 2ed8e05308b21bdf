"""A corpus that may only be read: what writes says so in one line and changes nothing, what reads goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.serve import ImageServer
from pipeline.files import sha256_file
from tests.conftest import image_bytes

COMMANDS = """
import json, sys
from click.testing import CliRunner
from data_prep.cli import main
results = [CliRunner().invoke(main, arguments) for arguments in json.load(sys.stdin)]
print(json.dumps([(result.exit_code, result.output, repr(result.exception)) for result in results]))
"""
# Without root's leave to write anywhere (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE): in force from exec on.
PROGRAM = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1); "
    f"os.execv(sys.executable, [sys.executable, '-c', {COMMANDS!r}])"
)
DEFINITION = "name: fixed\ntitle: Fixed\nlicence: CC0-1.0\nfetch: {allow_private: true, threads: 2}\n"


@pytest.fixture
def fixed(tmp_path: Path) -> Iterator[Path]:
    """The root, which may not be written to, of two corpora: `fixed` is published, `begun` is planned."""
    pictures, root = tmp_path / "pictures", tmp_path / "root"
    pictures.mkdir()
    for number in range(4):
        (pictures / f"{number}.jpg").write_bytes(image_bytes(number, form="JPEG"))
    with ImageServer(pictures) as server:
        for name in ("fixed", "begun"):
            (root / name / "metadata").mkdir(parents=True)
            (root / name / "corpus.yaml").write_text(DEFINITION.replace("fixed", name))
            urls = [f"{server.url}/{number}.jpg" for number in range(5)]
            pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * 5}), root / name / "metadata/rows.parquet")
            for command in ("plan", "download", "verify", "manifest") if name == "fixed" else ("plan",):
                assert CliRunner().invoke(main, ["--root", str(root), command, name]).exit_code == 0
        everything = [root, *root.rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield root
        for path in everything:
            path.chmod(0o755)


def run_all(root: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Exit status, output and exception of each."""
    given = json.dumps([["--root", str(root), *arguments] for arguments in commands])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def test_what_writes_is_one_message_and_what_reads_goes_on(fixed: Path) -> None:
    before = {path: sha256_file(path) for path in fixed.rglob("*") if path.is_file()}
    writing = [
        ["plan", "begun"],
        ["download", "begun"],
        ["retry", "fixed", "--causes", "404"],
        ["manifest", "fixed"],
        ["verify", "fixed", "--again"],
        ["report", "fixed"],
        ["subset", str(fixed / "fixed"), "--where", "width > 0", "--out", "part"],
        ["new", "more", str(fixed / "fixed/metadata/rows.parquet")],
    ]
    for arguments, (status, said, error) in zip(writing, run_all(fixed, writing), strict=True):
        assert (status, error) == (2, "SystemExit(2)"), f"{arguments}: {said}"
        assert said.startswith("error: "), said
        assert "Permission denied" in said, said
        assert str(fixed) in said, said
        assert "another folder (--root)" in said, said
    reading = [["status", "fixed"], ["plan", "fixed", "--explain", "4"]]
    reading += [[command, "fixed", "--dry-run"] for command in ("plan", "download", "verify", "manifest", "report")]
    for arguments, (status, said, _) in zip(reading, run_all(fixed, reading), strict=True):
        assert status == 0, f"{arguments}: {said}"
    assert {path: sha256_file(path) for path in fixed.rglob("*") if path.is_file()} == before
