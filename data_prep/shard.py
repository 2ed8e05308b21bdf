"""One canonical WebDataset shard: a tar whose bytes are a function of its samples alone, and its byte index.

Members are, sample by sample in the order of uids, `<uid>.<jpg|png|webp>`, `<uid>.txt`, `<uid>.json`, with no
times, owners or modes of the machine in them, so the same samples always give the same sha256. Next to
`NAME.tar` lies `NAME.index.npy`: for each sample where its image and its caption lie, so that a reader can
seek to any sample without walking the tar. The metadata of a sample is the member after its caption.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.files import atomic_open
from pipeline.storage import Range, read_bytes, read_ranges

INDEX_DTYPE = np.dtype([("image_offset", "<u8"), ("image_bytes", "<u4"), ("text_offset", "<u8"), ("text_bytes", "<u4")])

EXTENSIONS = ("jpg", "png", "webp")
READ_AT_ONCE = 64  # samples; over a network, requested together


class Sample(NamedTuple):
    """One image and its caption. uid: 32 hex digits. extension: one of EXTENSIONS, by the image's bytes."""

    uid: str
    image: bytes
    extension: str
    caption: str
    metadata: dict[str, Any]


class StoredSample:
    """The bytes of one sample in a shard, from its image to the end of its metadata."""

    def __init__(self, content: bytes, entry: np.void) -> None:
        """content: what lies at `sample_range`. entry: the sample's row of the index."""
        self._content = memoryview(content)
        self._image_bytes, self._text_bytes = int(entry["image_bytes"]), int(entry["text_bytes"])
        self._text_start = int(entry["text_offset"]) - int(entry["image_offset"])

    @property
    def image(self) -> bytes:
        return bytes(self._content[: self._image_bytes])

    @property
    def caption(self) -> str:
        return bytes(self._content[self._text_start :][: self._text_bytes]).decode()

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON beside the image. Raises ValueError when there is none."""
        header = self._text_start + _in_blocks(self._text_bytes)
        start = header + tarfile.BLOCKSIZE
        try:
            member = tarfile.TarInfo.frombuf(bytes(self._content[header:start]), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"no metadata after the caption: {error}") from error
        value = json.loads(bytes(self._content[start : start + member.size]))
        if not isinstance(value, dict):
            raise ValueError(f"the metadata is no mapping but {type(value).__name__}")
        return value


def index_path(shard: Path | str) -> Path:
    """Where the byte index of a shard lies: `a/00000-000.tar` -> `a/00000-000.index.npy`."""
    return Path(index_name(str(shard)))


def index_name(shard: str) -> str:
    """`index_path`, for a path or a URL."""
    return f"{shard.removesuffix('.tar')}.index.npy"


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write a shard and its index, each atomically, the index first: a shard that exists has its index.

    samples: in strictly ascending order of uid. Returns how many there were.
    Raises ValueError for another order or an unknown extension.
    """
    rows: list[tuple[int, int, int, int]] = []
    last = ""
    with (
        atomic_open(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for sample in samples:
            if sample.uid <= last or sample.extension not in EXTENSIONS:
                raise ValueError(f"sample {sample.uid}.{sample.extension} after {last}: unsorted, or no image")
            last = sample.uid
            image_offset = _add(tar, f"{sample.uid}.{sample.extension}", sample.image)
            caption = sample.caption.encode()
            text_offset = _add(tar, f"{sample.uid}.txt", caption)
            metadata = json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False).encode()
            _add(tar, f"{sample.uid}.json", metadata)
            rows.append((image_offset, len(sample.image), text_offset, len(caption)))
        tar.close()
        with atomic_open(index_path(path)) as index_stream:
            np.save(index_stream, np.array(rows, dtype=INDEX_DTYPE))
    return len(rows)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append one member; returns the offset of its content in the tar (a header is one block here)."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return offset


def read_index(shard: Path | str) -> np.ndarray:
    """The shard's byte index, (samples,) of INDEX_DTYPE, memory-mapped."""
    return np.load(index_path(shard), mmap_mode="r", allow_pickle=False)


def sample_range(index: np.ndarray, row: int, shard_bytes: int) -> tuple[int, int]:
    """Where a StoredSample lies: first byte, and the one after its last. shard_bytes: size of the tar."""
    last = row + 1 == len(index)
    stop = shard_bytes if last else int(index[row + 1]["image_offset"]) - tarfile.BLOCKSIZE
    return int(index[row]["image_offset"]), stop


def read_samples(shard: str, shard_bytes: int, rows: Sequence[int]) -> Iterator[Sample]:
    """The samples of a shard, path or URL, at `rows` of its index, in the order asked for.

    shard_bytes: size of the tar. Raises ValueError for one that is no canonical sample, and OSError when the file
    is short.
    """
    index = np.load(io.BytesIO(read_bytes(index_name(shard))), allow_pickle=False)
    for first in range(0, len(rows), READ_AT_ONCE):
        some = rows[first : first + READ_AT_ONCE]
        spans = [sample_range(index, row, shard_bytes) for row in some]
        contents = read_ranges([Range(shard, start - tarfile.BLOCKSIZE, stop) for start, stop in spans])
        for row, (start, stop), content in zip(some, spans, contents, strict=True):
            if len(content) != stop - start + tarfile.BLOCKSIZE:
                raise OSError(f"{shard} is truncated: sample {row} should lie at {start} to {stop}")
            header = tarfile.TarInfo.frombuf(content[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            uid, _, extension = header.name.partition(".")
            stored = StoredSample(content[tarfile.BLOCKSIZE :], index[row])
            yield Sample(uid, stored.image, extension, stored.caption, stored.metadata)


def _in_blocks(size: int) -> int:
    """What a member of `size` bytes takes in a tar, without its header."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Exactly `size` bytes at `offset` of an open shard; raises OSError if the file is shorter."""
    content = os.pread(descriptor, size, offset)
    if len(content) != size:
        raise OSError(f"shard is truncated: wanted {size} bytes at {offset}, got {len(content)}")
    return content
