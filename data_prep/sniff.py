"""`data-prep new`: look into files of URLs and captions, and write the definition of a corpus of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from data_prep.corpus import CorpusDefinition
from data_prep.hosts import host_of
from data_prep.tables import MetadataFile, texts
from pipeline.config.loader import parse, read_yaml
from pipeline.errors import UserError
from pipeline.files import atomic_open

SAMPLED_FILES = 16  # spread over those given
SAMPLED_ROWS = 10_000  # of each, its first
_URL = r"^\s*https?://"
_UID = r"^[0-9a-fA-F]{32}$"
_CAPTION_NAMES = ("caption", "text", "alt_text", "alttext", "alt", "title", "description", "prompt")
_NUMBERS = ("int64", "int32", "double", "float", "halffloat")
_SEPARATORS = (";", "\t", "|", ",")
_LENGTHS = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class ColumnPreview:
    """name: of the column. type: Arrow's. nulls: share of the sampled rows. example: the first value there is."""

    name: str
    type: str
    nulls: float
    example: str


@dataclass(frozen=True)
class Preview:
    """What a look into the files showed. rows: of all files, exact for Parquet, else by their (first) lines.

    Of the sampled rows: lengths of captions in characters, the most frequent hosts, and how many rows repeat an
    earlier one's URL, or its URL and caption.
    """

    format: str
    files: int
    rows: int
    sampled: int
    columns: list[ColumnPreview]
    url: str
    caption: str
    uid: str | None
    other_texts: list[str]
    caption_lengths: dict[str, int]
    hosts: dict[str, int]
    distinct_hosts: int
    repeated_urls: int
    repeated_rows: int
    not_http: int


def sniff(files: Sequence[Path], *, url: str | None = None, caption: str | None = None) -> tuple[Preview, list[str]]:
    """Look into the files; returns what is in them, and the header that CSV or TSV files without one need.

    url, caption: the columns, where they are known. Raises UserError when the files differ in format or columns, or
    when no column holds URLs or captions.
    """
    opened = [MetadataFile(path, {}) for path in files]
    for file in opened:
        _check_columns(file)
    for file in opened[1:]:
        if (file.format, file.columns) != (opened[0].format, opened[0].columns):
            headless = any(re.match(_URL, name) for name in file.columns)
            if file.format != opened[0].format or not headless or len(file.columns) != len(opened[0].columns):
                raise UserError(
                    f"{file.path} ({file.format}: {', '.join(file.columns)}) is not like {opened[0].path} "
                    f"({opened[0].format}: {', '.join(opened[0].columns)}): make a corpus of each, then `merge` them"
                )
    header = _header(opened[0])
    if header:
        opened = [MetadataFile(path, {}, tuple(header)) for path in files]
    chosen = [opened[int(n)] for n in np.unique(np.linspace(0, len(opened) - 1, SAMPLED_FILES).round())]
    return _preview(opened, _joined(chosen), url, caption), header


def definition_yaml(
    name: str, files: Sequence[Path], preview: Preview, header: Sequence[str], title: str | None, licence: str | None
) -> str:
    """The YAML file of the corpus, with what was seen in comments. Raises UserError for a name that cannot be."""
    tree: dict[str, Any] = {
        "name": name,
        "title": title or name,
        "licence": licence or "not stated",
        "source": f"{preview.format}: {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else ""),
        "metadata": [escape(os.path.abspath(path)) for path in files],
    }
    if header:
        tree["header"] = list(header)
    tree["columns"] = {"url": preview.url, "caption": preview.caption}
    if preview.uid:
        tree["columns"]["uid"] = preview.uid
    if preview.format == "Parquet":  # of the others the number is reckoned
        tree["expected_rows"] = preview.rows
    parse(CorpusDefinition, tree, where=f"the new corpus {name!r}")
    lines = [
        f"# Written by `data-prep new`, which saw {preview.sampled:,} rows with {preview.distinct_hosts:,} hosts.",
        "# State the licence: it is copied into the manifest. All keys: docs/corpora.md.",
        yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110).rstrip(),
    ]
    if preview.other_texts:
        lines.append("# Further captions, kept in each sample's JSON for loader.captions:")
        lines.append(f"# captions: [{', '.join(preview.other_texts)}]")
    numbers = [c.name for c in preview.columns if c.type in _NUMBERS and not c.name.startswith("_")]
    if numbers:
        lines.append("# Rows to keep, by a condition on columns:")
        lines.append(f"# where: {numbers[0]} >= 0")
    return "\n".join(lines) + "\n"


def write_definition(path: Path, content: str) -> bool:
    """Write it, or find it there; returns whether it is new. Raises UserError when another definition is there."""
    if path.is_file():
        if path.read_text(encoding="utf-8") == content:
            return False
        stated = read_yaml(path).get("title", path.stem)
        raise UserError(f"{path} is there already ({stated}) and says something else: remove it first, or edit it")
    with atomic_open(path, "w") as stream:
        stream.write(content)
    return True


def _check_columns(file: MetadataFile) -> None:
    """Raises UserError for columns that cannot be told apart."""
    if any(re.match(_URL, name) for name in file.columns):
        return  # no header line
    other = next((mark for mark in _SEPARATORS if mark in file.columns[0]), None) if len(file.columns) == 1 else None
    if other is not None:
        way = "call it .tsv" if other == "\t" else "write it with those, or with tabs as .tsv"
        wanted = "tabs" if file.format == "TSV" else "commas"
        raise UserError(
            f"{file.path}: its columns are separated by {other!r}, a {file.format} file's by {wanted}: {way}"
        )
    if several := [name for name, times in Counter(file.columns).items() if times > 1]:
        raise UserError(
            f"{file.path} has several columns called {several[0]!r}: rename them; or, where they are not wanted, write "
            "the definition by hand (docs/corpora.md)"
        )


def _joined(files: Sequence[MetadataFile]) -> pa.Table:
    """Samples of all files. A column of types that have nothing in common is shown as text."""
    tables = [file.sample(SAMPLED_ROWS) for file in files]
    for name in tables[0].column_names:
        schemas = [table.select([name]).schema for table in tables if name in table.column_names]
        try:
            pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowTypeError:
            text = pa.field(name, pa.string())
            tables = [table.set_column(table.column_names.index(name), text, _shown(table[name])) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _shown(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())


def _header(file: MetadataFile) -> list[str]:
    """Names for the columns of a file whose first line is a row, which a URL in it gives away; else none."""
    if file.format not in ("CSV", "TSV") or not any(re.match(_URL, name) for name in file.columns):
        return []
    names = ["url" if re.match(_URL, name) else f"column_{number + 1}" for number, name in enumerate(file.columns)]
    if names.count("url") != 1:
        raise UserError(
            f"{file.path} has no header line, and it cannot be told which column holds what: add one, for example "
            f"with `sed -i '1i {('	' if file.format == 'TSV' else ',').join(['url', 'caption', '...'])}'`"
        )
    return names


def _preview(files: Sequence[MetadataFile], table: pa.Table, url: str | None, caption: str | None) -> Preview:
    if not table.num_rows:
        raise UserError(f"{files[0].path} has no rows")
    strings = {field.name: _texts(table[field.name]) for field in table.schema if _is_text(field.type)}
    for wanted in (url, caption):
        if wanted is not None and wanted not in strings:
            raise UserError(f"no column {wanted!r} that holds text; those that do: {', '.join(strings) or 'none'}")
    url = url or _most_matching(strings, _URL)
    if url is None:
        raise UserError(f"no column holds URLs (of {', '.join(table.column_names)}): name it with --url, or make one")
    uid = next((n for n, share in _shares(strings, _UID).items() if share == 1 and n != url), None)
    words = {n: v for n, v in strings.items() if n not in (url, uid) and _shares({n: v}, _URL)[n] < 0.5}
    caption = caption or _caption(words)
    if caption is None:
        raise UserError(f"no column holds captions (of {', '.join(table.column_names)}): name it with --caption")
    urls, captions = strings[url], strings[caption]
    hosts = Counter(host_of(value.strip()) or "none" for value in urls.drop_null().to_pylist())
    lengths = pc.utf8_length(captions.drop_null())
    quantiles = pc.quantile(lengths, list(_LENGTHS.values()), interpolation="nearest").to_pylist()
    pairs = pc.binary_join_element_wise(urls, captions, "\0", null_handling="replace")
    return Preview(
        format=files[0].format,
        files=len(files),
        rows=sum(file.rows for file in files),
        sampled=table.num_rows,
        columns=[_column(table, name) for name in table.column_names],
        url=url,
        caption=caption,
        uid=uid,
        other_texts=[name for name in words if name != caption],
        caption_lengths={name: int(value or 0) for name, value in zip(_LENGTHS, quantiles, strict=True)},
        hosts=dict(hosts.most_common(10)),
        distinct_hosts=len(hosts),
        repeated_urls=len(urls) - pc.count_distinct(urls, mode="all").as_py(),
        repeated_rows=len(pairs) - pc.count_distinct(pairs, mode="all").as_py(),
        not_http=len(urls) - int(pc.sum(_matches(urls, _URL)).as_py() or 0),
    )


def describe(preview: Preview) -> str:
    """The preview for people."""
    about = "" if preview.format == "Parquet" else "about "
    files = f"{preview.format} file" if preview.files == 1 else f"{preview.format} files"
    lines = [
        f"{preview.files:,} {files}, {about}{preview.rows:,} rows; of {preview.sampled:,} sampled:",
        "",
    ]
    roles = {preview.url: "url", preview.caption: "caption", preview.uid: "uid"}
    width = max(len(column.name) for column in preview.columns)
    for column in preview.columns:
        role = f" <- {roles[column.name]}" if column.name in roles else ""
        lines.append(
            f"  {column.name:<{width}}  {column.type:<12}  {100 * column.nulls:5.1f} % null  {column.example}{role}"
        )
    lengths = ", ".join(f"{name} {value:,}" for name, value in preview.caption_lengths.items())
    hosts = ", ".join(f"{host} {100 * number / preview.sampled:.1f} %" for host, number in preview.hosts.items())
    lines += [
        "",
        f"  caption lengths: {lengths} characters",
        f"  hosts: {preview.distinct_hosts:,} ({hosts})",
        f"  repeated: {preview.repeated_urls:,} URLs, {preview.repeated_rows:,} URLs with the same caption",
        f"  not http or https: {preview.not_http:,}",
    ]
    return "\n".join(lines)


def as_json(preview: Preview) -> dict[str, Any]:
    """The preview for programs."""
    return asdict(preview)


def _column(table: pa.Table, name: str) -> ColumnPreview:
    column = table[name]
    first = next((value.as_py() for value in column if value.is_valid), "")
    example = " ".join(str(first).split())
    return ColumnPreview(
        name, str(column.type), column.null_count / len(column), example[:60] + ("…" if len(example) > 60 else "")
    )


def _caption(words: dict[str, pa.Array]) -> str | None:
    """The column that is called like one, or else that with the longest texts."""
    for wanted in _CAPTION_NAMES:
        if found := next((name for name in words if name.lower() == wanted), None):
            return found
    means = {name: pc.mean(pc.utf8_length(values)).as_py() or 0 for name, values in words.items()}
    return max(means, key=lambda name: means[name]) if means else None


def _most_matching(strings: dict[str, pa.Array], pattern: str) -> str | None:
    shares = _shares(strings, pattern)
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= 0.5 else None


def _shares(strings: dict[str, pa.Array], pattern: str) -> dict[str, float]:
    """Share of each column's values that match; nulls do not."""
    return {name: (pc.sum(_matches(values, pattern)).as_py() or 0) / len(values) for name, values in strings.items()}


def _matches(values: pa.Array, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(values, pattern, ignore_case=True), False)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return texts(column.combine_chunks())
