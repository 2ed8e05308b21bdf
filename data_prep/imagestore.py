"""Images by path: files of a folder at `/<relative path>`, rows of Parquet files at `/<file>.parquet/<n>`."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

_CACHE_BYTES = 256 * 2**20  # of decoded row groups, per Parquet file; at least one is kept
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def content_type(head: bytes) -> str | None:
    """The media type of an image, from its first bytes; None for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), None)


class ParquetImages:
    """Random access to the images of one Parquet file: the first column of type binary or struct{bytes}.

    Thread-safe. Raises ValueError when the file has no such column or is not Parquet.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        column = next((entry.name for entry in self._file.schema_arrow if _holds_bytes(entry.type)), None)
        if column is None:
            raise ValueError("no column of type binary or struct{bytes}")
        self._column = column
        metadata = self._file.metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._first_rows = [0, *accumulate(group.num_rows for group in groups)]
        largest = max((group.total_byte_size for group in groups), default=1)
        self._lock = threading.Lock()
        self._row_group = lru_cache(max(1, _CACHE_BYTES // max(1, largest)))(self._read_row_group)

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __getitem__(self, row: int) -> bytes | None:
        """The bytes of row `row`; None where the table has none. Raises IndexError past the end."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        group = bisect_right(self._first_rows, row) - 1
        with self._lock:
            column = self._row_group(group)
        value = column[row - self._first_rows[group]].as_py()
        return value["bytes"] if isinstance(value, dict) else value

    def _read_row_group(self, group: int) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=[self._column]).column(0)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(entry.name == "bytes" and _holds_bytes(entry.type) for entry in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class ImageStore:
    """The images of a folder, or of one Parquet file. Raises UserError when there are none."""

    def __init__(self, source: Path) -> None:
        if not source.exists():
            raise UserError(f"nothing to serve: {source} does not exist")
        self.is_folder = source.is_dir()
        self._root = source.resolve() if self.is_folder else source.resolve().parent
        self._parquet = lru_cache(maxsize=None)(_open_parquet)
        files = _walk(self._root) if self.is_folder else iter([source.resolve()])
        if not any(self._has_images(path) for path in files):
            raise UserError(
                f"nothing to serve: {source} holds no image files and no Parquet file with a column of bytes"
            )
        self._only = None if self.is_folder else source.resolve()

    def read(self, path: str) -> bytes | None:
        """The image at a URL path (decoded, from its slash on); None if there is none inside the source."""
        try:
            target = (self._root / path.lstrip("/")).resolve()
            if not target.is_relative_to(self._root):
                return None
            image = self._read_row(target) if target.parent.suffix == ".parquet" else self._read_file(target)
        except (OSError, ValueError, IndexError):
            return None
        return image if image and content_type(image) else None

    def _read_row(self, target: Path) -> bytes | None:
        if self._only not in (None, target.parent):
            return None
        table = self._parquet(target.parent)
        return table[int(target.name)] if table and target.name.isdecimal() else None

    def _read_file(self, target: Path) -> bytes | None:
        return target.read_bytes() if self._only is None and _is_image(target) else None

    def _has_images(self, path: Path) -> bool:
        if path.suffix == ".parquet":
            return bool(self._parquet(path))
        return self.is_folder and _is_image(path)


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in sorted(names))


def _is_image(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return content_type(stream.read(12)) is not None
    except OSError:
        return False


def _open_parquet(path: Path) -> ParquetImages | None:
    try:
        return ParquetImages(path)
    except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
        return None
