"""Metadata of any format gives the same rows, and what cannot be read is named: the file, the place, the column."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_prep.tables
from data_prep.tables import MetadataFile
from pipeline.errors import UserError

Row = tuple[str | None, str | None, float | None]
WANTED = {"url": "text", "caption": "text", "similarity": "number"}
ROWS: list[Row] = [
    ("http://h/1", "plain", 0.25),
    ("http://h/2", 'with "quotes", commas and\nnew lines', 1.0),
    ("http://h/3", "tab\there", None),
    ("http://h/4", "größe 🙂 \u2028", -3e-5),
    (None, "NA", 7.0),
    ("http://h/6", None, 0.0),
]


def write(path: Path, rows: list[Row], header: bool = True) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    name = path.name.removesuffix(".gz")
    names = list(WANTED)
    if name.endswith(".parquet"):
        table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
        pq.write_table(table.append_column("extra", pa.array([[1]] * len(rows))), path, row_group_size=2)
        return path
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        if name.endswith(".jsonl"):
            for row in rows:
                stream.write(json.dumps({**dict(zip(names, row, strict=True)), "extra": {"a": [1]}}) + "\n")
        elif name.endswith(".csv"):
            writer = csv.writer(stream)
            writer.writerows([[*names, "extra"]] if header else [])
            writer.writerows([*row, 1] for row in rows)
        else:
            lines = [[*names, "extra"]] if header else []
            texts = [["" if value is None else str(value) for value in (*row, 1)] for row in rows]
            stream.write("".join("\t".join(line) + "\n" for line in [*lines, *texts]))
    return path


def read(file: MetadataFile) -> list[Row]:
    return [tuple(row.values()) for batch in file.batches() for row in batch.rows.to_pylist()]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.tables, "_BLOCK_BYTES", 256)  # several batches
    rows = ROWS if "tsv" not in name else [ROWS[0], ROWS[3], *ROWS[4:]]
    path = write(tmp_path / name.replace("ndjson", "jsonl"), rows * 20)
    if name.endswith(".ndjson"):
        path = path.rename(tmp_path / name)
    file = MetadataFile(path, WANTED)
    assert read(file) == rows * 20
    assert file.rows == len(rows) * 20 if name.endswith("parquet") else 0.3 < file.rows / len(rows) / 20 < 3
    assert next(file.batches()).rows.schema.types == [pa.string(), pa.string(), pa.float64()]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(TEXT, TEXT, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=20))
def test_a_csv_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", rows)
    assert read(MetadataFile(path, WANTED)) == rows


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "url,caption\nhttp://h/1,one\nhttp://h/2,two\n", 2),
        ("a.csv", "url,caption\nhttp://h/1,one\nhttp://h/2,two", 2),
        ("a.tsv", "url\tcaption\n", 0),
        ("a.jsonl", '{"url": "http://h/1", "caption": "one"}', 1),
    ],
)
def test_rows_of_a_short_file_are_its_lines_but_the_header(tmp_path: Path, name: str, content: str, rows: int) -> None:
    (tmp_path / name).write_text(content)
    file = MetadataFile(tmp_path / name, {"url": "text"})
    assert file.rows == rows == len(read(file))


def test_no_line_of_a_file_without_names_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("http://h/1,one\nhttp://h/2,two\n")
    assert MetadataFile(tmp_path / "a.csv", {"url": "text"}, ("url", "caption")).rows == 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_file_without_a_header_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [ROWS[0], ROWS[3]], header=False)
    assert read(MetadataFile(path, WANTED, (*WANTED, "extra"))) == [ROWS[0], ROWS[3]]


def test_a_quote_in_a_tsv_is_a_letter(tmp_path: Path) -> None:
    """As in CC12M's: with quotes of a meaning, one of them would swallow all lines up to the next."""
    rows = [("http://h/1", 'a 5" screen', 1.0), ("http://h/2", '"quoted', 1.0), ("http://h/3", "c", 1.0)]
    assert read(MetadataFile(write(tmp_path / "a.tsv", rows), WANTED)) == rows


def test_lines_that_are_no_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.tables, "_BLOCK_BYTES", 64)
    path = tmp_path / "a.csv"
    lines = ["url,caption"] + [f"http://h/{n},c {n}" if n % 3 else f"http://h/{n},c,{n}" for n in range(30)]
    path.write_text("\n".join(lines))
    batches = list(MetadataFile(path, {"url": "text", "caption": "text"}).batches())
    assert [n for batch in batches for n in batch.malformed] == list(range(0, 30, 3))
    assert [n for batch in batches for n in batch.numbers] == [n for n in range(30) if n % 3]
    assert [batch.first for batch in batches] == [0, *(batch.stop for batch in batches[:-1])]
    urls = [url for batch in batches for url in batch.rows["url"].to_pylist()]
    assert urls == [f"http://h/{n}" for n in range(30) if n % 3]


def test_a_file_of_nothing_else_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.tables, "_BLOCK_BYTES", 64)
    (tmp_path / "a.csv").write_text("url,caption\n" + "http://h/1,c,c\n" * 100)
    batches = list(MetadataFile(tmp_path / "a.csv", {"url": "text"}).batches())
    assert sum(batch.rows.num_rows for batch in batches) == 0
    assert [n for batch in batches for n in batch.malformed] == list(range(100))


def test_a_wanted_column_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption,url\nx,y,z\n")
    with pytest.raises(UserError, match="has 2 columns 'url': rename all but one"):
        MetadataFile(tmp_path / "a.csv", {"url": "text"})
    assert read(MetadataFile(tmp_path / "a.csv", {"caption": "text"})) == [("y",)]


def test_text_that_is_not_utf8_becomes_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"url,caption\nhttp://h/1,caf\xe9 au lait\n")
    assert read(MetadataFile(path, {"url": "text", "caption": "text"})) == [("http://h/1", "caf\ufffd au lait")]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_texts_of_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["a", None, "ü"]).cast(kind) if kind != pa.binary() else pa.array([b"a", None, "ü".encode()])
    pq.write_table(pa.table({"t": column}), tmp_path / "a.parquet")
    assert read(MetadataFile(tmp_path / "a.parquet", {"t": "text"})) == [("a",), (None,), ("ü",)]


@pytest.mark.parametrize("column", [[1, 2], [1.0, 2.0], ["1", " 2.0 "]])
def test_numbers_of_every_type(tmp_path: Path, column: list[object]) -> None:
    pq.write_table(pa.table({"n": column}), tmp_path / "a.parquet")
    assert read(MetadataFile(tmp_path / "a.parquet", {"n": "number"})) == [(1,), (2,)]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_a_column_of_another_type_is_named(tmp_path: Path, name: str) -> None:
    rows = [("http://h/1", "c", 0.5), ("http://h/2", "c", 0.5)]
    path = write(tmp_path / name, rows)
    if name == "a.parquet":
        pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "similarity": [[0.5]]}), path)
    else:
        path.write_text(path.read_text().replace("0.5", "true" if name == "a.jsonl" else "many"))
    with pytest.raises(UserError, match=rf"{name}.*similarity|{name} cannot be read after its first 0 rows"):
        read(MetadataFile(path, WANTED))


def test_a_bad_row_group_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [(f"http://h/{n}", f"caption {n}", 0.5) for n in range(6)])
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    batches = MetadataFile(path, WANTED).batches()
    assert next(batches).rows["url"].to_pylist() == ["http://h/0", "http://h/1"]
    with pytest.raises(
        UserError, match=r"(?s)a\.parquet is damaged in row group 1 of 3, 2 rows: .*Fetch the file again"
    ):
        next(batches)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"url,caption\n", "a.parquet is not a Parquet file"),
        ("a.parquet", b"", "a.parquet is not a Parquet file"),
        ("a.jsonl", b"url,caption\n", "a.jsonl is not a JSON lines file"),
        ("a.jsonl", b'{"url": "x"}\n', "a.jsonl has no column 'caption': it has url"),
        ("a.jsonl", b'{"url": "x", "caption": "c"}\n{"url": \n', "a.jsonl is not a JSON lines file"),
        ("a.csv", b"", "a.csv is not a CSV file"),
        ("a.csv", b"URL,caption\nx,c\n", "a.csv has no column 'url': it has URL, caption"),
        ("a.csv.gz", b"url,caption\nx,c\n", "a.csv.gz is not a CSV file"),
        ("a.txt", b"http://h/1\n", "known by their names, which end with .parquet, .csv"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        MetadataFile(tmp_path / name, {"url": "text", "caption": "text"})
    assert message in str(refused.value)


def test_long_texts_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.tables, "_BATCH_BYTES", 100_000)
    draw = np.random.default_rng(0)
    captions = ["".join(map(chr, draw.integers(97, 123, 10_000))) for _ in range(50)]
    pq.write_table(pa.table({"caption": captions}), tmp_path / "a.parquet")
    batches = [batch.rows for batch in MetadataFile(tmp_path / "a.parquet", {"caption": "text"}).batches()]
    assert max(batch.nbytes for batch in batches) < 2 * 100_000
    assert [text for batch in batches for text in batch["caption"].to_pylist()] == captions


def test_pieces_are_the_whole(tmp_path: Path) -> None:
    rows = [(f"http://h/{n}", "c", 0.5) for n in range(7)]
    for name, number in (("a.parquet", 4), ("a.csv", 1)):
        file = MetadataFile(write(tmp_path / name, rows), WANTED)
        assert file.pieces == number
        urls = [
            url
            for part in range(2)
            for batch in file.batches(range(number)[part::2])
            for url in batch.rows["url"].to_pylist()
        ]
        assert sorted(urls) == [row[0] for row in rows]
