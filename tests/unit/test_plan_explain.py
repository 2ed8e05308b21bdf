"""`plan --explain` says of any row what became of it; `plan --estimate` does its arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.corpus import Columns, Corpus, CorpusDefinition
from data_prep.estimate import Assumed, as_text, estimate
from data_prep.explain import explain
from data_prep.plan import make_plan
from data_prep.screen import REASONS
from pipeline.errors import UserError

# url, caption, image hash, score; the fate of each row, where rows of the same fate tell what they repeat
ROWS = [
    ("http://a.org/1", "one", "h1", 1.0, "planned"),
    ("http://a.org/1", "one", "h1", 1.0, "planned"),
    ("http://a.org/2", "", "h2", 1.0, "no_caption"),
    ("http://10.0.0.1/3", "three", "h3", 1.0, "private_host"),
    ("http://b.org/4", "four", "h4", 0.1, "where"),
    ("http://b.org/5", "five", "h5", 1.0, ("5", "6")),
    ("http://b.org/5", "fünf", "h6", 1.0, ("5", "6")),
    ("http://b.org/7", "seven", "h7", 1.0, ("7", "8")),
    ("http://b.org/8", "eight", "h7", 1.0, ("7", "8")),
    ("http://b.org/9", "nine", None, 1.0, "planned"),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "toy/metadata").mkdir(parents=True)
    for number, rows in enumerate((ROWS[:6], ROWS[6:])):
        urls, captions, hashes, scores, _ = zip(*rows, strict=True)
        table = pa.table({"url": urls, "caption": captions, "hash": hashes, "score": scores})
        pq.write_table(table, tmp_path / f"toy/metadata/{number}.parquet", row_group_size=2)
    definition = CorpusDefinition(
        name="toy",
        title="Toy",
        licence="x",
        where="score > 0.5",
        columns=Columns(image_hash="hash"),
        screen={"distinct": ["url", "url_caption"]},
    )
    corpus = Corpus(tmp_path / "toy", definition)
    corpus.save_definition()
    return corpus


def test_every_row_has_its_fate(corpus: Corpus) -> None:
    plan, _ = make_plan(corpus, tasks=2, samples_per_shard=10)
    fates = [explain(corpus, str(number))[0] for number in range(len(ROWS))]
    for number, (row, explained) in enumerate(zip(ROWS, fates, strict=True)):
        assert (explained.number, explained.values["url"], explained.values["caption"]) == (number, *row[:2])
        assert explained.file.endswith(f"{number // 6}.parquet")
        if isinstance(row[4], str):
            assert explained.fate == row[4]
    for one, other, reason in ((5, 6, "duplicate_url"), (7, 8, "duplicate_image")):
        gone, stays = sorted((fates[one], fates[other]), key=lambda fate: fate.fate == "planned")
        assert (gone.fate, stays.fate) == (reason, "planned")
        assert f"row {stays.number} of the metadata (uid {stays.uid}) is planned in its place" in gone.because
    assert sum(fate.fate == "planned" for fate in fates) - 1 == plan.rows_planned  # rows 0 and 1 are equal


def test_a_row_is_found_by_number_uid_and_url(corpus: Corpus) -> None:
    assert explain(corpus, "0")[0].fate == "kept"
    make_plan(corpus, tasks=2, samples_per_shard=10)
    uid = explain(corpus, "9")[0].uid
    assert explain(corpus, str(uid).upper()) == explain(corpus, "9") == explain(corpus, " http://b.org/9")
    assert [row.number for row in explain(corpus, "http://b.org/5")] == [5, 6]
    for nothing in ("10", "http://nowhere.org", "f" * 32):
        with pytest.raises(UserError, match=r"has no row .* a row number below 10, a uid or a URL"):
            explain(corpus, nothing)


@pytest.mark.parametrize("header", [True, False])
def test_lines_that_are_no_rows_have_their_number_too(tmp_path: Path, header: bool) -> None:
    (tmp_path / "toy/metadata").mkdir(parents=True)
    lines = [f"http://h/{n},c {n}" + ",more" * (n % 4 == 1) for n in range(12)]
    for file, start in enumerate((0, 6)):
        content = ["url,caption"] * header + lines[start : start + 6]
        (tmp_path / f"toy/metadata/{file}.csv").write_text("\n".join(content))
    facts = {"name": "toy", "title": "Toy", "licence": "x", "metadata": "metadata/*.csv"}
    definition = CorpusDefinition(**facts, header=() if header else ("url", "caption"))
    corpus = Corpus(tmp_path / "toy", definition)
    for number in range(12):
        found = explain(corpus, str(number))[0]
        assert (found.number, found.file[-5:]) == (number, f"{number // 6}.csv")
        assert found.fate == ("malformed" if number % 4 == 1 else "kept")
        assert found.values.get("url") == (None if number % 4 == 1 else f"http://h/{number}")


def test_every_reason_of_the_screening_is_put_into_words(corpus: Corpus) -> None:
    from data_prep.explain import _BECAUSE

    assert list(_BECAUSE) == [reason for reason in REASONS if "duplicate" not in reason]


def test_explain_on_the_command_line(corpus: Corpus) -> None:
    run = ["--root", str(corpus.folder.parent), "plan", "toy", "--explain", "4"]
    text = CliRunner().invoke(main, run).output
    assert "row 4 of " in text
    assert "0.parquet: where: the condition `score > 0.5` does not hold" in text
    assert "score: 0.1" in text
    assert json.loads(CliRunner().invoke(main, [*run, "--json"]).output)["rows"][0]["fate"] == "where"
    assert not corpus.plan_file.exists()


def test_the_arithmetic_of_an_estimate(corpus: Corpus) -> None:
    found = estimate(corpus, Assumed(images_per_second=2, bytes_per_image=1000, success=0.5, nodes=2))
    # Sampled: the middle row group of each file, rows 2, 3 and 8, 9; of them 8 and 9 are kept.
    assert (found.rows, found.sampled, found.kept, found.planned) == (10, 4, 5, False)
    assert found.dropped == {"no_caption": 1, "private_host": 1}
    make_plan(corpus, tasks=2, samples_per_shard=10)
    found = estimate(corpus, Assumed(images_per_second=2, bytes_per_image=1000, success=0.5, nodes=2))
    assert (found.kept, found.planned) == (4, True)
    assert found.images == 2
    assert found.disk_bytes == 2000
    assert found.retries == 2 * 2  # two rows fail, two further attempts each
    assert found.requests == 4 + 4
    assert found.seconds_on_failures == 2 * 3 * 10
    assert found.hours == pytest.approx(4 / 2 / 2 / 3600)
    assert found.downloads_per_second == pytest.approx(4)
    assert found.hosts == [{"host": "b.org", "requests": 8, "per_second": pytest.approx(4)}]


def test_a_deadline_decides_the_nodes(corpus: Corpus) -> None:
    make_plan(corpus, tasks=2, samples_per_shard=10)
    assumed = Assumed(images_per_second=1, bytes_per_image=1, success=1, hours=1.5 / 3600)
    found = estimate(corpus, assumed)
    assert (found.nodes, found.requests, found.retries) == (3, 4, 0)
    assert found.downloads_per_second == pytest.approx(4 / 1.5)
    assert "on 3 nodes of 1" in as_text(found)
    assert estimate(corpus, replace(assumed, hours=1)).nodes == 1


def test_estimate_on_the_command_line(corpus: Corpus) -> None:
    run = ["--root", str(corpus.folder.parent), "plan", "toy", "--estimate", "--nodes", "3"]
    text = CliRunner().invoke(main, run).output
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "rows",
        "images",
        "speed",
        "disk",
        "requests",
        "failures",
        "per host",
    ]
    assert json.loads(CliRunner().invoke(main, [*run, "--json"]).output)["nodes"] == 3
    assert not corpus.plan_file.exists()
