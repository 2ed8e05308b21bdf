"""`data-prep new`: what it finds out of files of any format, and that what it writes can be planned."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.corpus import open_corpus
from data_prep.plan import make_plan, read_item
from data_prep.sniff import sniff
from pipeline.errors import UserError

ROWS = [
    {
        "width": 100 + n,
        "alt": f"photo {n}" if n % 3 else None,
        "link": f"https://host-{n % 4}.example.com/{n % 30}.jpg",
        "text": f"caption {n % 30}, of a thing" if n % 5 else None,
    }
    for n in range(60)
]


def write(path: Path, header: bool = True, rows: list[dict] = ROWS) -> Path:
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerows(([names] if header else []) + [[row[name] for name in names] for row in rows])
    return path


def call(root: Path, *arguments: object):
    return CliRunner().invoke(main, ["--root", str(root), *map(str, arguments)])


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "headless.csv", "headless.tsv"])
def test_every_format_is_seen_alike_and_planned_alike(tmp_path, name):
    file = write(tmp_path / name, header="headless" not in name)
    preview, header = sniff([file])
    assert preview.sampled == 60
    assert preview.rows == 60
    assert header == (["column_1", "column_2", "url", "column_4"] if "headless" in name else [])
    assert (preview.url, preview.caption) == (("url", "column_4") if header else ("link", "text"))
    assert preview.other_texts == (["column_2"] if header else ["alt"])
    assert preview.uid is None
    assert preview.distinct_hosts == 4
    assert preview.hosts == {f"host-{n}.example.com": 15 for n in range(4)}
    assert preview.repeated_urls == 0  # of /0.jpg to /29.jpg twice, but the other time on another host
    assert preview.not_http == 0
    nulls = {column.name: column.nulls for column in preview.columns}
    assert nulls[preview.caption] == pytest.approx(0.2)
    assert preview.caption_lengths == {"min": 21, "median": 22, "p95": 22, "max": 22}
    made = call(tmp_path, "new", "mine", file)
    assert made.exit_code == 0, made.output
    plan, _ = make_plan(open_corpus("mine", tmp_path), tasks=2, samples_per_shard=10, dry_run=True)
    assert (plan.rows_read, plan.rows_planned, plan.dropped) == (60, 48, {"no_caption": 12})


def test_what_repeats_and_what_is_no_url_is_counted(tmp_path):
    rows = [{"u": "https://a.example/1.jpg", "c": "one"}] * 3 + [
        {"u": "https://a.example/1.jpg", "c": "two"},
        {"u": "ftp://b.example/1.jpg", "c": "three"},
        {"u": None, "c": "four"},
        {"u": None, "c": "five"},
    ]
    preview, _ = sniff([write(tmp_path / "a.parquet", rows=rows)])
    assert (preview.repeated_urls, preview.repeated_rows, preview.not_http) == (4, 2, 3)
    assert preview.hosts == {"a.example": 4, "b.example": 1}


def test_uids_are_found_and_columns_may_be_named(tmp_path):
    rows = [{**row, "id": f"{n:032x}"} for n, row in enumerate(ROWS)]
    preview, _ = sniff([write(tmp_path / "a.parquet", rows=rows)], caption="alt")
    assert (preview.uid, preview.caption, preview.other_texts) == ("id", "alt", ["text"])
    with pytest.raises(UserError, match="no column 'width' that holds text; those that do: alt, link, text, id"):
        sniff([tmp_path / "a.parquet"], url="width")


def test_the_definition_is_written_once_and_never_over_another(tmp_path):
    file = write(tmp_path / "a.csv")
    dry = call(tmp_path, "new", "mine", file, "--dry-run")
    assert "would write" in dry.output
    assert not (tmp_path / "mine.yaml").exists()
    assert json.loads(call(tmp_path, "new", "mine", file, "--json").output)["new"] is True
    assert "already there, nothing done" in call(tmp_path, "new", "mine", file).output
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text() + "# edited\n")
    refused = call(tmp_path, "new", "mine", file)
    assert refused.exit_code == 2
    assert "is there already (mine) and says something else" in refused.output
    assert (tmp_path / "mine.yaml").read_text().endswith("# edited\n")


def test_a_definition_that_was_edited_after_the_plan_is_noticed(tmp_path):
    assert call(tmp_path, "new", "mine", write(tmp_path / "a.csv")).exit_code == 0
    first = call(tmp_path, "plan", "mine", "--allow-private")
    assert (first.exit_code, first.stderr) == (0, "")
    assert call(tmp_path, "plan", "mine").stderr == "", "a flag of the command is no edit"
    text = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("caption: text", "caption: alt"))
    again = call(tmp_path, "plan", "mine")
    assert "already planned" in again.stdout
    assert f"in force is {tmp_path / 'mine/corpus.yaml'}, not {tmp_path / 'mine.yaml'}, which says" in again.stderr
    assert "columns.caption: 'text' -> 'alt'" in again.stderr
    refused = call(tmp_path, "plan", tmp_path / "mine.yaml", "--allow-private")
    assert "settings.columns.caption: 'text' -> 'alt'" in refused.stderr


def test_several_files_of_one_kind_make_one_corpus(tmp_path):
    files = [write(tmp_path / f"[{n}].parquet", rows=ROWS[n::2]) for n in range(2)]
    assert call(tmp_path, "new", "mine", *files, "--licence", "CC0: mine").exit_code == 0
    corpus = open_corpus("mine", tmp_path)
    assert len(corpus.metadata_files()) == 2
    assert corpus.definition.licence == "CC0: mine"
    other = write(tmp_path / "b.parquet", rows=[{"u": "https://a/b", "c": "d"}])
    with pytest.raises(UserError, match="is not like"):
        sniff([*files, other])


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.parquet", [{"a": "x", "b": "y"}], "no column holds URLs"),
        ("a.parquet", [{"a": "https://x.example/1"}], "no column holds captions"),
        ("a.tsv", [{"a": "https://x.example/1", "b": "https://y.example/2", "c": "z"}], "no header line"),
        ("a.txt", [{"a": "b"}], "metadata files are known by their names"),
    ],
)
def test_what_cannot_be_made_out_is_said(tmp_path, name, rows, message):
    file = write(tmp_path / name, header=False, rows=rows)
    with pytest.raises(UserError, match=message):
        sniff([file])


LINES = b"url,caption\nhttps://a.example/1.jpg,one caf\xc3\xa9\nhttps://a.example/2.jpg,two caf\xc3\xa9s\n"


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("a.csv", LINES, ["one café", "two cafés"]),
        ("a.csv", b"\xef\xbb\xbf" + LINES, ["one café", "two cafés"]),
        ("a.csv.gz", gzip.compress(LINES, mtime=0), ["one café", "two cafés"]),
        ("a.csv", LINES.decode().encode("utf-16"), ["one café", "two cafés"]),
        ("a.csv", LINES.decode().encode("latin-1"), ["one caf\ufffd", "two caf\ufffds"]),
        ("a.csv", LINES + b"https://a.example/3.jpg,caf\xe9,too many\n", ["one café", "two cafés"]),
        ("a.jsonl", b'{"url": "https://a.example/1.jpg", "caption": "caf\xe9"}', ["caf\ufffd"]),  # and no last newline
    ],
)
def test_text_of_any_encoding_is_seen_and_planned(tmp_path, name, content, captions):
    (tmp_path / name).write_bytes(content)
    made = call(tmp_path, "new", "mine", tmp_path / name)
    assert made.exit_code == 0, made.output
    corpus = open_corpus("mine", tmp_path)
    plan, _ = make_plan(corpus, tasks=1, samples_per_shard=10)
    assert sorted(read_item(corpus, plan, 0)["caption"].to_pylist()) == captions


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"url,caption,caption\nhttps://a.example/1.jpg,one,two\n", "several columns called 'caption'"),
        ("a.csv", b"url;caption\nhttps://a.example/1.jpg;one, two\n", "separated by ';', a CSV file's by commas"),
        ("a.csv", b"url\tcaption\nhttps://a.example/1.jpg\tone\n", r"separated by '\\t'.* call it \.tsv"),
        ("a.csv", b"", "Empty CSV file"),
        ("a.csv", b"url,caption\n", "has no rows"),
        ("a.jsonl", b'{"url": "https://a.example/1.jpg"\n', "is no JSON object on one line"),
        ("a.jsonl", b'["https://a.example/1.jpg"]\n', "is no JSON object on one line"),
        (
            "a.jsonl",
            b'{"url": "https://a.example/1.jpg"}\n' * 1500 + b'{"caption": "late"}\n',
            "no column holds captions",
        ),
    ],
)
def test_files_that_are_not_what_they_are_called(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        sniff([tmp_path / name])


def test_a_column_of_several_types_is_shown_as_text_and_read_as_wanted(tmp_path):
    row = {"url": "https://a.example/1.jpg", "caption": "one"}
    files = [
        write(tmp_path / f"{n}.parquet", rows=[{**row, "caption": f"{n}", "score": score}])
        for n, score in enumerate((0.5, "0.25"))
    ]
    preview, _ = sniff(files)
    assert [(column.type, column.example) for column in preview.columns][2] == ("string", "0.5")
    assert call(tmp_path, "new", "mine", *files).exit_code == 0
    with open(tmp_path / "mine.yaml", "a") as stream:
        stream.write("where: score < 0.4\n")
    plan, _ = make_plan(open_corpus("mine", tmp_path), tasks=1, samples_per_shard=10, dry_run=True)
    assert (plan.rows_planned, plan.dropped) == (1, {"where": 1})


def test_a_name_that_cannot_be_is_refused(tmp_path):
    assert "the new corpus 'No Name'" in call(tmp_path, "new", "No Name", write(tmp_path / "a.csv")).output
    assert not list(tmp_path.glob("*.yaml"))
