"""A plan made in parts is the plan that one process makes, whatever the parts and whoever was killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.corpus import Columns, Corpus, CorpusDefinition
from data_prep.parts import make_part, merge_parts
from data_prep.plan import make_plan
from pipeline.errors import UserError

CUT = {"tasks": 3, "samples_per_shard": 10}


def corpus_at(folder: Path, **settings: object) -> Corpus:
    """Three files: two Parquet files of several row groups and a CSV, with repeated and unusable rows in all."""
    (folder / "metadata").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(2):
        picked = draw.integers(0, 150, 200)
        urls = [f"http://h/{n}" if n % 20 else "ftp://h/1" for n in picked]
        table = pa.table(
            {"url": urls, "caption": [f"c {n % 40}" for n in picked], "hash": [str(n % 60) for n in picked]}
        )
        pq.write_table(table, folder / f"metadata/{number}.parquet", row_group_size=30)
    lines = [f"http://h/{n},c {n % 40},{n % 60}" for n in range(100, 180)]
    (folder / "metadata/2.csv").write_text("\n".join(["url,caption,hash", *lines, "torn"]))
    definition = CorpusDefinition(name="toy", title="Toy", licence="x", metadata="metadata/*", **settings)
    return Corpus(folder, definition)


SETTINGS: list[dict[str, object]] = [
    {},
    {"screen": {"distinct": ["url"]}},
    {"columns": Columns(image_hash="hash"), "screen": {"distinct": ["url", "url_caption"]}},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("parts", [1, 4, 40])  # 40: more than there are pieces
def test_parts_make_the_same_plan(tmp_path: Path, parts: int, settings: dict[str, object]) -> None:
    whole, _ = make_plan(corpus_at(tmp_path / "whole", **settings), **CUT)
    corpus = corpus_at(tmp_path / "parts", **settings)
    for part in reversed(range(parts)):
        assert make_part(corpus, **CUT, part=part, parts=parts)[1]
    assert not corpus.plan_file.exists()
    assert not make_part(corpus, **CUT, part=0, parts=parts)[1]
    merged, new = merge_parts(corpus, **CUT, parts=parts)
    assert new
    assert merged == whole
    assert not (corpus.folder / "plan/parts").exists()
    assert merge_parts(corpus, **CUT, parts=parts) == (merged, False)
    assert make_plan(corpus, **CUT) == (merged, False)
    assert make_part(corpus, **CUT, part=0, parts=parts) == (None, False)


def test_a_plan_accounts_for_every_row(tmp_path: Path) -> None:
    plan, _ = make_plan(corpus_at(tmp_path, **SETTINGS[2]), **CUT)
    assert plan.rows_read == 481
    assert plan.rows_planned + sum(plan.dropped.values()) == 481
    assert plan.dropped["malformed"] == 1
    assert {"duplicate_url", "duplicate_image", "not_http"} <= plan.dropped.keys()


def test_what_is_missing_or_other_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_at(tmp_path)
    make_part(corpus, **CUT, part=0, parts=3)
    with monkeypatch.context() as patch:  # killed before its last move
        patch.setattr(Path, "rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_part(corpus, **CUT, part=1, parts=3)
    with pytest.raises(UserError, match=r"2 of 3 parts .* are missing \(1, 2\): run `data-prep plan toy .* --part 1/3"):
        merge_parts(corpus, **CUT, parts=3)
    make_part(corpus, **CUT, part=1, parts=3)
    make_part(corpus, tasks=4, samples_per_shard=10, part=2, parts=3)
    with pytest.raises(UserError, match=r"part 2 of .* was made of other metadata or settings: .* --part 2/3"):
        merge_parts(corpus, **CUT, parts=3)
    assert not corpus.plan_file.exists()
    assert make_part(corpus, **CUT, part=2, parts=3)[1]
    assert merge_parts(corpus, **CUT, parts=3)[1]
    with pytest.raises(UserError, match="tasks: 3 -> 4"):
        make_part(corpus, tasks=4, samples_per_shard=10, part=2, parts=3)
    corpus.plan_item(0).unlink()
    with pytest.raises(UserError, match="the parts are gone"):
        merge_parts(corpus, **CUT, parts=3)
    assert make_plan(corpus, **CUT)[1], "mended"


def test_the_commands(tmp_path: Path) -> None:
    corpus_at(tmp_path / "toy").save_definition()
    run = ["--root", str(tmp_path), "plan", "toy", "--tasks", "3"]
    assert "read part 1 of 2: " in CliRunner().invoke(main, [*run, "--part", "1/2"]).output
    assert "nothing done: part 1 of 2" in CliRunner().invoke(main, [*run, "--part", "1/2"]).output
    refused = CliRunner().invoke(main, [*run, "--merge", "2"])
    assert refused.exit_code == 2
    assert "--part 0/2" in refused.stderr
    CliRunner().invoke(main, [*run, "--part", "0/2"])
    draw = np.random.default_rng(0)
    usable = {int(n) for _ in range(2) for n in draw.integers(0, 150, 200) if n % 20} | set(range(100, 180))
    merged = CliRunner().invoke(main, [*run, "--merge", "2"]).output
    assert f"planned {len(usable)} of 481 rows in 3 work items" in merged
    for wrong in ("2/2", "x/2", "1", "-1/2", "/"):
        assert "is not I/N" in CliRunner().invoke(main, [*run, f"--part={wrong}"]).stderr
    both = CliRunner().invoke(main, [*run, "--merge", "2", "--estimate"])
    assert "give one of them" in both.stderr
