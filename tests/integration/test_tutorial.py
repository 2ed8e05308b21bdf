"""The five commands of docs/corpora.md, as they stand there, and what can be done with the corpus that they make."""

from __future__ import annotations

import csv
import re
import shlex
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.manifest import read_manifest
from data_prep.serve import ImageServer
from tests.conftest import image_bytes

DOCUMENT = (Path(__file__).parents[2] / "docs/corpora.md").read_text(encoding="utf-8")


def call(line: str) -> str:
    result = CliRunner().invoke(main, shlex.split(line))
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
    return result.output


def test_five_commands_make_a_corpus_of_a_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(10):
        (pictures / f"{number}.jpg").write_bytes(image_bytes(number, form="JPEG"))
    server = ImageServer(pictures, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.chdir(tmp_path)
    with open("birds.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["photo", "legend"])
        writer.writerows([f"{server.url}/{number}.jpg", f"bird {number}, with a comma"] for number in range(12))
    try:
        section = DOCUMENT.split("## From a CSV in five commands")[1]
        lines = re.search(r"```\n(.*?)```", section, re.DOTALL)[1].splitlines()
        assert len(lines) == 5
        for line in lines:
            private = " --allow-private" if line.startswith("data-prep plan") else ""  # the server is this machine
            call(line.removeprefix("data-prep ") + private)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    manifest = read_manifest("corpora/birds")
    assert manifest.total_samples == 10
    assert "10 ok" in call("manifest birds")
    assert "kept 4 of 10 samples" in call("subset birds --where 'original_width >= 27' --out wide")
    assert "kept 10 of 14 samples" in call("merge birds wide --out both")
