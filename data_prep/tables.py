"""Metadata files of any format as batches of rows, in memory that does not grow with the file.

Parquet is read by row group; CSV, TSV (tab-separated, without quotes) and JSON lines in blocks, compressed or not.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.where import Kind

BATCH_ROWS = 65_536
_BATCH_BYTES = 64 << 20
_BLOCK_BYTES = 8 << 20  # of lines
_START_BYTES = 1 << 20
_FIRST_LINES = 1_000  # of JSON lines, which name every key that is wanted
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
_TYPES = {"text": pa.string(), "number": pa.float64(), "boolean": pa.bool_(), "any": pa.string()}
_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
)
_BAD_DATA = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class Batch:
    """Some rows of a file. rows: the wanted columns, in their kinds.

    first: how many rows of the file come before. malformed: the numbers of lines among these that are no rows, int64;
    numbers count from 0, malformed lines too, the header and empty lines not.
    """

    rows: pa.RecordBatch
    first: int
    malformed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def stop(self) -> int:
        """The number of the row that comes next."""
        return self.first + self.rows.num_rows + len(self.malformed)

    @property
    def numbers(self) -> np.ndarray:
        """Of each row, int64 [rows]."""
        return np.setdiff1d(np.arange(self.first, self.stop), self.malformed, assume_unique=True)


class MetadataFile:
    """One file of metadata, opened far enough to know that it can be read.

    pieces: parts that can be read on their own, row groups of Parquet, else the whole file.

    Raises UserError when it is of no known format, damaged, or lacks a wanted column.
    """

    def __init__(self, path: Path, wanted: Mapping[str, Kind], header: tuple[str, ...] = ()) -> None:
        """wanted: column to what it holds. header: names of the columns of a CSV or TSV that has no header line."""
        self.path, self.wanted, self._header = path, dict(wanted), header
        self.format, self.pieces = _format(path), 1
        try:
            present = self._schema()
        except _BAD_DATA as error:
            raise UserError(f"{path} is not a {self.format} file: {error}") from error
        self.columns = present
        missing = [name for name in wanted if name not in present]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}: it has {', '.join(present) or 'none'}. "
                "Say in the corpus definition what the columns are called."
            )
        if several := [name for name in wanted if present.count(name) > 1]:
            raise UserError(
                f"{path} has {present.count(several[0])} columns {several[0]!r}: rename all but one of them"
            )

    @cached_property
    def rows(self) -> int:
        """Rows: of Parquet as its footer says, else the lines of a short file, of a long one by its first."""
        if self.format == "Parquet":
            return self._parquet_rows
        with pa.input_stream(str(self.path)) as stream:
            start = stream.read(_START_BYTES)
        if len(start) < _START_BYTES:
            header = self.format != "JSON lines" and not self._header
            return max(len(start.splitlines()) - header, 0)
        lines, unpacked = start.count(b"\n"), 1 if self.path.suffix not in _COMPRESSIONS else 3
        return max(int(os.path.getsize(self.path) * unpacked * lines / len(start)), 1)

    def batches(self, pieces: Sequence[int] | None = None) -> Iterator[Batch]:
        """The rows of some pieces, by default all, in order. Raises UserError that says where the file is damaged."""
        if self.format == "Parquet":
            yield from self._parquet(range(self.pieces) if pieces is None else pieces)
        elif pieces is None or 0 in pieces:
            read = 0
            try:
                for batch in self._delimited() if self.format != "JSON lines" else self._json():
                    where = f" (after its first {read:,} rows)"
                    yield Batch(self._conformed(batch.rows, where), batch.first, batch.malformed)
                    read = batch.stop
            except _BAD_DATA as error:
                raise UserError(f"{self.path} cannot be read after its first {read:,} rows: {error}") from error

    def sample(self, most: int) -> pa.Table:
        """The first rows, at most so many, of all columns in the types that are found. Raises UserError."""
        try:
            if self.format == "Parquet":
                with pq.ParquetFile(self.path) as file:
                    batches = list(itertools.islice(file.iter_batches(most), 1))
                    return pa.Table.from_batches(batches, file.schema_arrow)
            if self.format == "JSON lines":
                with pa.json.open_json(_utf8(self.path), pa.json.ReadOptions(block_size=_BLOCK_BYTES)) as reader:
                    found = pa.Table.from_batches(list(itertools.islice(reader, 1)), reader.schema).slice(0, most)
                    return found.select([name for name in found.column_names if name in self.columns])
            with self._open_delimited({}, lambda _: "skip") as reader:
                return pa.Table.from_batches(list(itertools.islice(reader, 1)), reader.schema).slice(0, most)
        except _BAD_DATA as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    def _schema(self) -> list[str]:
        if self.format == "Parquet":
            with pq.ParquetFile(self.path) as file:
                self.pieces, self._parquet_rows = file.metadata.num_row_groups, file.metadata.num_rows
                return list(file.schema_arrow.names)
        if self.format == "JSON lines":
            with _utf8(self.path) as stream:
                start = stream.read(_START_BYTES)
            lines = io.BytesIO(start).readlines()
            if len(start) == _START_BYTES and len(lines) > 1:
                del lines[-1]  # cut off
            return list(dict.fromkeys(key for line in lines[:_FIRST_LINES] if line.strip() for key in _keys(line)))
        with self._open_delimited({}, lambda _: "skip") as reader:
            return list(reader.schema.names)

    def _parquet(self, groups: Sequence[int]) -> Iterator[Batch]:
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            for group in groups:
                first, where = sum(sizes[:group]), f" (row group {group} of {len(sizes)})"
                try:
                    for rows in file.iter_batches(
                        _batch_rows(file, group), row_groups=[group], columns=list(self.wanted)
                    ):
                        yield Batch(self._conformed(rows, where), first)
                        first += rows.num_rows
                except _BAD_DATA as error:
                    raise UserError(
                        f"{self.path} is damaged in row group {group} of {len(sizes)}, {sizes[group]:,} rows: "
                        f"{error}. Fetch the file again."
                    ) from error

    def _delimited(self) -> Iterator[Batch]:
        first, found = 0, array("q")  # numbers of malformed lines not yet reached: the reader is a block ahead

        def skip(line: pa.csv.InvalidRow) -> str:
            found.append(line.number - (1 if self._header else 2))  # lines count from 1, the header among them
            return "skip"

        with self._open_delimited(dict.fromkeys(self.wanted, pa.binary()), skip) as reader:
            for rows in reader:
                malformed = np.array(found, np.int64)
                rows_before = malformed - first - np.arange(len(malformed))  # each of these lines, in this batch
                reached = int(np.count_nonzero(rows_before <= rows.num_rows))
                del found[:reached]
                batch = Batch(rows.select(list(self.wanted)), first, malformed[:reached])
                yield batch
                first = batch.stop
            if found:  # and no row after them
                nothing = pa.RecordBatch.from_pylist([], reader.schema).select(list(self.wanted))
                yield Batch(nothing, first, np.array(found, np.int64))

    def _open_delimited(
        self, types: dict[str, pa.DataType], skip: Callable[[pa.csv.InvalidRow], str]
    ) -> pa.csv.CSVStreamingReader:
        tabs = self.format == "TSV"
        return pa.csv.open_csv(
            _utf8(self.path),
            pa.csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=self._header or None, use_threads=False),
            pa.csv.ParseOptions(
                delimiter="\t" if tabs else ",",
                quote_char=False if tabs else '"',
                newlines_in_values=not tabs,
                invalid_row_handler=skip,
            ),
            pa.csv.ConvertOptions(
                check_utf8=False, column_types=types, null_values=[""], strings_can_be_null=True, true_values=["true"]
            ),
        )

    def _json(self) -> Iterator[Batch]:
        schema = pa.schema([(name, _TYPES[kind]) for name, kind in self.wanted.items()])
        parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        with pa.json.open_json(_utf8(self.path), pa.json.ReadOptions(block_size=_BLOCK_BYTES), parse) as reader:
            first = 0
            for rows in reader:
                yield Batch(rows.select(list(self.wanted)), first)
                first += rows.num_rows

    def _conformed(self, rows: pa.RecordBatch, where: str) -> pa.RecordBatch:
        """Every column in the type of its kind: texts as strings, numbers as they are or float64."""
        columns = []
        for name, kind in self.wanted.items():
            column = rows.column(rows.schema.get_field_index(name))
            try:
                columns.append(_in_kind(column, kind))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
                raise UserError(
                    f"{self.path}: column {name!r} holds {column.type}, not {kind}{where}: {error}. "
                    "Every file has to hold the same there: mend the file, or leave the column out of the definition."
                ) from error
        return pa.RecordBatch.from_arrays(columns, list(self.wanted))


def _utf8(path: Path) -> pa.NativeFile:
    """A file's text, unpacked, as UTF-8. UTF-16 is known by its mark; what is neither, as in many files from the web,
    becomes U+FFFD."""
    with pa.input_stream(str(path)) as stream:
        marked = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    decoder = codecs.getincrementaldecoder("utf-16" if marked else "utf-8")("replace")
    # Called with nothing at the end of the file.
    return pa.lib.TransformInputStream(
        pa.input_stream(str(path)), lambda piece: decoder.decode(piece, final=not piece).encode()
    )


def _keys(line: bytes) -> list[str]:
    """The keys of one of a file's lines. Raises ValueError that shows it."""
    try:
        return list(json.loads(line).keys())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{line[:100].decode(errors='replace').strip()!r} is no JSON object on one line") from error


def _batch_rows(file: pq.ParquetFile, group: int) -> int:
    """So many that a batch is of bounded size, whatever the length of the texts."""
    row_group = file.metadata.row_group(group)
    return max(min(BATCH_ROWS, _BATCH_BYTES * row_group.num_rows // max(row_group.total_byte_size, 1)), 1)


def _in_kind(column: pa.Array, kind: Kind) -> pa.Array:
    match kind:
        case "any":
            return column
        case "text":
            return texts(column)
    return _numbers(column, _TYPES[kind])


def texts(column: pa.Array) -> pa.Array:
    """A string array; what is not UTF-8 (files from the web hold such text) becomes U+FFFD. Raises TypeError."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if not any(is_text(kind) for is_text in _TEXTS):
        raise TypeError("no text")
    raw = column.cast(pa.binary())
    try:
        column = raw.cast(pa.string())
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        values = [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return pa.array(values, pa.string())


def _numbers(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    kind = column.type
    if pa.types.is_boolean(wanted) == pa.types.is_boolean(kind) and pa.types.is_primitive(kind):
        return column
    if pa.types.is_null(kind) or pa.types.is_decimal(kind):
        return column.cast(wanted)
    return pc.utf8_trim_whitespace(texts(column)).cast(wanted)


def _format(path: Path) -> str:
    name = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    formats = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}
    try:
        return formats[name.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path}: metadata files are known by their names, which end with {', '.join(formats)}, and "
            f"{', '.join(_COMPRESSIONS)} after it where they are compressed (not Parquet)"
        ) from None
