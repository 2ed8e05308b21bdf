"""Real images through the same chain: the recipe `emoji` on a folder given by `data=PATH`, one style held out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.real_data import DATA

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not (DATA / "emoji_images.parquet").exists(),
        reason=f"real emoji are not at {DATA} (set NEUCLIP_TEST_DATA to a folder with emoji_images.parquet)",
    ),
]
HELD_OUT = "openmoji"
SHARE = 5  # one concept of so many


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the concepts, in all of their styles."""
    folder = tmp_path_factory.mktemp("data")
    annotations = pq.read_table(DATA / "emoji_annotations.parquet")
    concepts = sorted(annotations["codepoint"].to_pylist())[::SHARE]
    for name in ("emoji_annotations.parquet", "emoji_images.parquet"):
        table = pq.read_table(DATA / name)
        pq.write_table(table.filter(pc.is_in(table["codepoint"], pa.array(concepts))), folder / name)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, trained for a few steps only."""
    workdir = tmp_path_factory.mktemp("emoji") / "run"
    short = [
        "train.epochs=null",
        "train.steps=24",
        "train.global_batch_size=64",
        "diagnostics.reference_samples=128",
        "corpus.tasks=2",
    ]
    command = [sys.executable, "-m", "pipeline", "run", "emoji", "--workdir", str(workdir), f"data={data}", *short]
    result = subprocess.run([*command, "tracking.mlflow=false"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return workdir


def test_every_row_is_downloaded_and_the_held_out_style_is_not_among_them(run: Path, data: Path) -> None:
    manifest = json.loads((run / "corpora/emoji/manifest.json").read_text())
    assert manifest["outcomes"] == {"ok": manifest["rows"]}
    styles = pq.read_table(data / "emoji_images.parquet", columns=["style"])["style"].to_pylist()
    urls = pq.read_table(run / "corpora/emoji/outcomes", columns=["url"])["url"].to_pylist()
    used = {styles[int(url.rsplit("/", 1)[1])] for url in urls}
    assert used == set(styles) - {HELD_OUT}


def test_it_is_evaluated_on_four_tasks_and_reported(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["evaluate"]) == 4
    assert summary["train"]["steps"] == 24
    assert summary["mlflow"] is None or not summary["mlflow"]["run_ids"]
    assert (run / "report.html").exists()
