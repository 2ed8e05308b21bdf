"""Rows of metadata: read from Parquet, normalised, named by a stable uid, or dropped with a reason."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Columns
from pipeline.errors import UserError

ROW_SCHEMA = pa.schema([("uid", pa.string()), ("url", pa.string()), ("caption", pa.string())])
BATCH_ROWS = 65_536
_UID = re.compile(r"[0-9a-f]{32}")


class Row(NamedTuple):
    """One usable row. uid: 32 hex digits (128 bits); url: http or https; caption: one line, trimmed."""

    uid: str
    url: str
    caption: str


def normalise(url: str | None, caption: str | None, uid: str | None = None) -> Row | str:
    """A usable row, or the reason why it is none: `no_url, no_caption, not_http, bad_url, bad_uid`.

    uid: as the corpus gives it, or None to take the first 128 bits of sha256(url, NUL, caption).
    """
    url = (url or "").strip()
    caption = " ".join((caption or "").split())
    if not url:
        return "no_url"
    if not caption:
        return "no_caption"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "not_http"
        if not parts.hostname:
            return "bad_url"
    except ValueError:  # an IPv6 address without its bracket, for one
        return "bad_url"
    if uid is None:
        uid = hashlib.sha256(f"{url}\0{caption}".encode()).hexdigest()[:32]
    elif not _UID.fullmatch(uid := uid.strip().lower()):
        return "bad_uid"
    return Row(uid, url, caption)


def work_item(uid: str, tasks: int) -> int:
    """Which of `tasks` work items a uid is dealt to: a function of the uid, so duplicates always meet."""
    return int(uid[16:], 16) % tasks


def read_rows(path: Path, columns: Columns) -> Iterator[list[Row | str]]:
    """Every row of a metadata file, normalised, in batches: constant memory whatever the file's size.

    Raises UserError when it is not Parquet, or a mapped column is missing or holds no text.
    """
    file = _open(path)
    mapped = {key: name for key, name in columns.model_dump().items() if name is not None}
    present = file.schema_arrow.names
    for key, name in mapped.items():
        if name not in present:
            raise UserError(
                f"{path} has no column {name!r} (for the {key}): it has {', '.join(present) or 'none'}. "
                f"Set columns.{key} in the corpus definition."
            )
    for batch in file.iter_batches(BATCH_ROWS, columns=list(mapped.values())):
        texts = {key: _texts(batch.column(name), name, path) for key, name in mapped.items()}
        uids = texts.get("uid", [None] * batch.num_rows)
        missing_uid = "" if columns.uid else None  # a corpus with uids has no row without one
        yield [
            normalise(url, caption, missing_uid if uid is None else uid)
            for url, caption, uid in zip(texts["url"], texts["caption"], uids, strict=True)
        ]


def count_rows(path: Path) -> int:
    """Rows of a metadata file, from its footer."""
    return _open(path).metadata.num_rows


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from error


def _texts(column: pa.Array, name: str, path: Path) -> list[str | None]:
    """By way of bytes, because files from the web hold text that is not UTF-8."""
    try:
        values = column.cast(pa.binary()).to_pylist()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: column {name!r} holds {column.type}, not text") from error
    return [None if value is None else value.decode("utf-8", "replace") for value in values]
