"""The plan: rows are normalised and dropped for a reason, dealt by their uid alone, and frozen.

The reference for dealing and dropping is a few lines of Python over the rows as a set.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import data_prep.deal
import data_prep.tables
from data_prep.cli import main
from data_prep.corpus import Columns, Corpus, CorpusDefinition, open_corpus, shipped_names
from data_prep.plan import Plan, make_plan, read_item, read_plan
from data_prep.rows import work_item
from pipeline.errors import UserError
from pipeline.files import sha256_file

Table = list[dict[str, str | None]]


def corpus_at(folder: Path, *tables: Table, columns: Columns = Columns()) -> Corpus:  # noqa: B008 - frozen
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(tables):
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata" / f"{number}.parquet")
    definition = CorpusDefinition(name="toy", title="Toy", licence="CC0-1.0", source="a test", columns=columns)
    return Corpus(folder, definition)


def good_rows(number: int) -> Table:
    return [{"url": f"http://h{i % 7}.org/{i}.jpg", "caption": f"caption {i}"} for i in range(number)]


def uid_of(row: dict[str, str]) -> str:
    return hashlib.sha256(f"{row['url']}\0{row['caption']}".encode()).hexdigest()[:32]


def planned_rows(corpus: Corpus, plan: Plan) -> list[list[dict[str, str]]]:
    return [read_item(corpus, plan, item).to_pylist() for item in range(plan.tasks)]


@pytest.mark.parametrize("tasks", [1, 3, 200])
def test_every_usable_row_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    monkeypatch.setattr(data_prep.tables, "BATCH_ROWS", 64)  # several batches
    rows = good_rows(500)
    bad = [{"url": None, "caption": "c"}, {"url": "x", "caption": "c"}]
    corpus = corpus_at(tmp_path, rows[:300] + bad, rows[250:], rows[:5])
    plan, new = make_plan(corpus, tasks=tasks, samples_per_shard=10)
    assert new
    items = planned_rows(corpus, plan)
    expected = {(uid_of(row), row["url"], row["caption"]) for row in rows}
    assert sorted(tuple(row.values()) for item in items for row in item) == sorted(expected)
    for number, item in enumerate(items):
        assert [row["uid"] for row in item] == sorted({row["uid"] for row in item})
        assert all(int(row["uid"], 16) % 2**64 % tasks == number for row in item)
    assert plan.rows_read == 557
    assert plan.rows_planned == 500
    assert plan.dropped == {"duplicate": 55, "no_url": 1, "not_http": 1}
    assert [item["rows"] for item in plan.items] == [len(item) for item in items]
    assert not (tmp_path / "plan/scratch").exists()


def test_the_plan_is_a_function_of_the_set_of_rows(tmp_path: Path) -> None:
    rows = [*good_rows(200), *good_rows(20)]
    shuffled = random.Random(0).sample(rows, len(rows))
    one, two = corpus_at(tmp_path / "a", rows), corpus_at(tmp_path / "b", shuffled[:90], shuffled[90:])
    items = [make_plan(corpus, tasks=4, samples_per_shard=10)[0].items for corpus in (one, two)]
    assert items[0] == items[1]
    digests = [sha256_file(corpus.plan_item(2)) for corpus in (one, two)]
    assert digests[0] == digests[1] == items[0][2]["sha256"]


def test_repeated_uids_keep_one_row_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"url": f"http://h/{i}", "caption": "c", "id": "f" * 32} for i in range(5)]
    columns = Columns(uid="id")
    for number, order in enumerate([rows, rows[::-1]]):
        corpus = corpus_at(tmp_path / str(number), order, columns=columns)
        plan, _ = make_plan(corpus, tasks=2, samples_per_shard=10)
        assert plan.dropped == {"duplicate": 4}
        kept = [row for item in planned_rows(corpus, plan) for row in item]
        assert kept == [{"uid": "f" * 32, "url": "http://h/0", "caption": "c"}]


def test_further_captions_are_planned_along_and_decide_nothing(tmp_path: Path) -> None:
    rows = [{**row, "alt": f" alt\n{n}" if n else None} for n, row in enumerate(good_rows(3))]
    corpus = corpus_at(tmp_path, rows)
    plain, _ = make_plan(corpus, tasks=1, samples_per_shard=10, dry_run=True)
    definition = corpus.definition.model_copy(update={"captions": ("alt",)})
    plan, _ = make_plan(replace(corpus, definition=definition), tasks=1, samples_per_shard=10)
    planned = planned_rows(corpus, plan)[0]
    assert {(row["url"], row["alt"]) for row in planned} == {
        (row["url"], f"alt {n}" if n else "") for n, row in enumerate(rows)
    }
    assert [row["uid"] for row in planned] == sorted(map(uid_of, rows))
    assert plain.settings.keys() == {"columns", "images"}, "what is left out names nothing"
    assert plan.settings["captions"] == ["alt"]
    clash = corpus.definition.model_copy(update={"captions": ("url",)})
    with pytest.raises(UserError, match="a further caption cannot be called 'url'"):
        make_plan(replace(corpus, definition=clash), tasks=1, samples_per_shard=10)


def test_given_uids_spread_over_items_even_when_they_count_up() -> None:
    counts = [0] * 8
    for number in range(800):
        counts[work_item(f"{number:032x}", 8)] += 1
    assert set(counts) == {100}


def test_text_that_is_not_utf8_does_not_end_the_plan(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9 au lait"], pa.binary()).view(pa.string())
    (tmp_path / "metadata").mkdir(parents=True)
    table = pa.table({"url": ["http://h/1"], "caption": broken})
    pq.write_table(table, tmp_path / "metadata/0.parquet")
    corpus = corpus_at(tmp_path)
    plan, _ = make_plan(corpus, tasks=1, samples_per_shard=10)
    assert planned_rows(corpus, plan)[0][0]["caption"] == "caf\ufffd au lait"


def test_planning_again_does_nothing_and_mends_a_lost_item(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path, good_rows(50))
    first, _ = make_plan(corpus, tasks=2, samples_per_shard=10)
    stamp = corpus.plan_file.stat().st_mtime_ns
    again, new = make_plan(corpus, tasks=2, samples_per_shard=10)
    assert (again, new) == (first, False)
    assert corpus.plan_file.stat().st_mtime_ns == stamp
    corpus.plan_item(1).write_bytes(b"damaged")
    with pytest.raises(UserError, match="not what was planned"):
        read_item(corpus, first, 1)
    mended, new = make_plan(corpus, tasks=2, samples_per_shard=10)
    assert (mended, new) == (first, True)
    assert read_item(corpus, first, 1).num_rows == first.items[1]["rows"]


def test_a_killed_plan_leaves_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_at(tmp_path, good_rows(50))
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.deal, "sha256_file", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_plan(corpus, tasks=2, samples_per_shard=10)
    with pytest.raises(UserError, match="no plan at"):
        read_plan(corpus)
    (tmp_path / "plan/scratch").mkdir()  # as a kill -9 leaves it
    (tmp_path / "plan/scratch/000.arrow").write_bytes(b"x")
    undisturbed = corpus_at(tmp_path / "other", good_rows(50))
    assert (
        make_plan(corpus, tasks=2, samples_per_shard=10)[0].fingerprint
        == make_plan(undisturbed, tasks=2, samples_per_shard=10)[0].fingerprint
    )


@pytest.mark.parametrize("change", ["tasks", "samples_per_shard", "rows", "image_size", "columns"])
def test_a_changed_plan_is_refused_with_the_difference(tmp_path: Path, change: str) -> None:
    rows = [{**row, "alt": "text"} for row in good_rows(50)]
    corpus = corpus_at(tmp_path, rows)
    wanted = {"tasks": 2, "samples_per_shard": 10}
    make_plan(corpus, **wanted)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    expected = {
        "tasks": "tasks: 2 -> 3",
        "samples_per_shard": "samples_per_shard: 10 -> 11",
        "rows": "inputs.metadata/1.parquet: absent -> ",
        "image_size": "settings.images.image_size: 512 -> 64",
        "columns": "settings.columns.caption: 'caption' -> 'alt'",
    }
    if change in wanted:
        wanted[change] += 1
    elif change == "rows":
        before[tmp_path / "metadata/1.parquet"] = b""
        corpus_at(tmp_path, rows, rows[:1])
        before[tmp_path / "metadata/1.parquet"] = (tmp_path / "metadata/1.parquet").read_bytes()
    elif change == "image_size":
        corpus = corpus.with_image_size(64)
    else:
        columns = Columns(caption="alt")
        corpus = replace(corpus, definition=corpus.definition.model_copy(update={"columns": columns}))
    for dry_run in (True, False):
        with pytest.raises(UserError) as refused:
            make_plan(corpus, **wanted, dry_run=dry_run)
        assert expected[change] in str(refused.value)
        assert str(refused.value).count("->") == 2, "only the difference is printed (and the legend)"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_a_new_licence_is_stored_and_changes_nothing_else(tmp_path: Path) -> None:
    root, given = tmp_path / "corpora", tmp_path / "toy.yaml"
    corpus_at(root / "toy", good_rows(5))
    plan = ["--root", str(root), "plan", str(given)]
    text = "name: toy\ntitle: Toy\nlicence: {}\nfetch: {{retries: 1}}\n"
    given.write_text(text.format("CC0-1.0"))
    assert CliRunner().invoke(main, plan).exit_code == 0
    frozen = (root / "toy/plan.json").read_bytes()
    given.write_text(text.format("CC-BY-4.0"))
    dry = CliRunner().invoke(main, [*plan, "--dry-run"])
    assert "corpus.yaml would change:\n  licence: 'CC0-1.0' -> 'CC-BY-4.0'" in dry.output
    assert open_corpus("toy", root).definition.licence == "CC0-1.0"
    result = CliRunner().invoke(main, plan)
    assert "licence: 'CC0-1.0' -> 'CC-BY-4.0'" in result.output
    assert open_corpus("toy", root).definition.licence == "CC-BY-4.0"
    assert (root / "toy/plan.json").read_bytes() == frozen
    assert "corpus.yaml" not in CliRunner().invoke(main, plan).output
    given.write_text(text.format("MIT") + "columns: {caption: url}\n")  # this one decides what is planned
    refused = CliRunner().invoke(main, plan)
    assert refused.exit_code == 2
    assert "settings.columns.caption: 'caption' -> 'url'" in refused.output
    assert open_corpus("toy", root).definition.licence == "CC-BY-4.0"


def test_starting_over_withdraws_the_old_manifest(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path, good_rows(50))
    make_plan(corpus, tasks=2, samples_per_shard=10)
    published = [tmp_path / name for name in ("manifest.json", "manifest.parquet")]
    for path in published:
        path.write_text("published")
    corpus.plan_item(1).unlink()
    make_plan(corpus, tasks=2, samples_per_shard=10)
    assert all(path.exists() for path in published), "a mended plan is the same plan"
    with pytest.raises(UserError, match=r"remove plan\.json, manifest\.\*, plan/"):
        make_plan(corpus, tasks=3, samples_per_shard=10)
    corpus.plan_file.unlink()
    make_plan(corpus, tasks=3, samples_per_shard=10, dry_run=True)
    assert all(path.exists() for path in published)
    make_plan(corpus, tasks=3, samples_per_shard=10)
    assert not any(path.exists() for path in published)


def test_dry_run_finds_out_everything_and_writes_nothing(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path, [*good_rows(50), {"url": None, "caption": "x"}])
    before = sorted(tmp_path.rglob("*"))
    dry, new = make_plan(corpus, tasks=3, samples_per_shard=10, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert new
    assert dry == make_plan(corpus, tasks=3, samples_per_shard=10)[0]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "metadata"), "no metadata at .*metadata"),
        (lambda folder: (folder / "metadata/0.parquet").write_text("url,caption"), "is not a Parquet file"),
        (
            lambda folder: pq.write_table(pa.table({"URL": ["x"], "n": [1]}), folder / "metadata/0.parquet"),
            r"no column 'url': it has URL, n",
        ),
        (
            lambda folder: pq.write_table(pa.table({"url": ["x"], "caption": [1]}), folder / "metadata/0.parquet"),
            "column 'caption' holds int64, not text",
        ),
        (
            lambda folder: pq.write_table(
                pa.table({"url": ["x", "y", None], "caption": ["a", "b", "c"]}), folder / "metadata/0.parquet"
            ),
            "has no usable rows: 3 read .*dropped: 2 not_http, 1 no_url",
        ),
    ],
    ids=["absent", "csv", "column", "type", "unusable"],
)
def test_bad_input_is_explained_and_plans_nothing(tmp_path: Path, prepare, message: str) -> None:
    corpus = corpus_at(tmp_path, good_rows(3))
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        make_plan(corpus, tasks=1, samples_per_shard=10)
    assert not corpus.plan_file.exists()


def test_a_damaged_plan_and_a_wrong_item_are_explained(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path, good_rows(3))
    plan, _ = make_plan(corpus, tasks=2, samples_per_shard=10)
    with pytest.raises(UserError, match=r"no work item 2: .* items 0 to 1"):
        plan.select([2])
    corpus.plan_file.write_text(json.dumps({"tasks": 1}))
    with pytest.raises(UserError, match=r"plan\.json: corpus is missing\. Remove it and plan again"):
        read_plan(corpus)


def test_shipped_corpora_and_folders_open(tmp_path: Path) -> None:
    assert {"demo", "emoji", "cc3m", "laion-400m"} <= set(shipped_names())
    for name in shipped_names():
        corpus = open_corpus(name, tmp_path)
        assert corpus.folder == tmp_path / name
        assert corpus.definition.name == name
    demo = open_corpus("demo", tmp_path).with_image_size(64)
    demo.save_definition()
    for name in ("demo", str(tmp_path / "demo")):  # the definition in force goes before the shipped one
        assert open_corpus(name, tmp_path) == demo


def test_a_pattern_is_relative_to_the_yaml_that_gives_it(tmp_path: Path) -> None:
    home, root = tmp_path / "mine [1]", tmp_path / "corpora"
    (home / "rows/deep").mkdir(parents=True)
    for number, path in enumerate((home / "rows/a.parquet", home / "rows/deep/b.parquet")):
        pq.write_table(pa.Table.from_pylist(good_rows(5 + number)[5 * number :]), path)
    yaml_file = home / "mine.yaml"
    for pattern in ("rows/**/*.parquet", "../mine [[]1]/rows/**/*.parquet", f"{tmp_path}/mine*/**/*.parquet"):
        yaml_file.write_text(f"name: mine\ntitle: Mine\nlicence: x\nmetadata: '{pattern}'\n")
        given = open_corpus(str(yaml_file), root)
        assert list(given.metadata_files().values()) == [home / "rows/a.parquet", home / "rows/deep/b.parquet"]
        plan, _ = make_plan(given, tasks=1, samples_per_shard=10)
        assert plan.rows_planned == 6
        by_name = open_corpus("mine", root)  # the stored definition means the same files
        assert by_name.metadata_files() == given.metadata_files()
        shutil.rmtree(root)


def test_a_corpus_that_moves_keeps_its_plan(tmp_path: Path) -> None:
    """Metadata inside the folder, also by an absolute pattern, is named relative to it."""
    fingerprints = []
    for place in ("here", "there"):
        corpus = corpus_at(tmp_path / place, good_rows(5))
        for pattern in ("metadata/*.parquet", f"{tmp_path / place}/metadata/*.parquet"):
            definition = corpus.definition.model_copy(update={"metadata": pattern})
            plan, _ = make_plan(replace(corpus, definition=definition), tasks=1, samples_per_shard=10)
            assert list(plan.inputs) == ["metadata/0.parquet"]
            fingerprints.append(plan.fingerprint)
    assert len(set(fingerprints)) == 1


def test_definition_errors_name_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitle: Mine\nlicence: x\nsource: y\nimages: {image_sise: 3}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key 'images\.image_sise'.*'images\.image_size'"):
        open_corpus(str(path), tmp_path)
    with pytest.raises(UserError, match=r"no corpus 'nothing': shipped are cc12m, cc3m, .*demo"):
        open_corpus("nothing", tmp_path)
