"""Which rows of published shards stay in a corpus that is derived from them (`derive.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.corpus_files import SELECTION
from data_prep.manifest import ShardFile
from data_prep.outcomes import tally
from data_prep.shard import Sample, index_name, index_path, read_samples
from data_prep.uid_list import UidList
from pipeline.errors import UserError
from pipeline.files import atomic_open, sha256_file, write_json
from pipeline.storage import download, is_url
from pipeline.where import compile_where

ROW = np.dtype([("row", "<u4"), ("uid", "S16")])  # of the source shard's index; 16 bytes that sort as the hex digits do
PART_ROWS = 2**25  # uids compared at once, about 1 GiB with what sorting them needs


@dataclass(frozen=True)
class Selection:
    """What stays of one source shard. kept: rows. dropped: reason to rows, without repeated uids."""

    number: int  # of the shard, over all sources
    kept: int
    dropped: dict[str, int]


class Selections:
    """The selections of all source shards, in files of a folder: memory does not grow with the corpus.

    `NNNNNNNN.npy` holds what the filters left of a shard (ROW), `NNNNNNNN.json` says that it is whole, and
    `NNNNNNNN.repeated.npy` holds which of its rows have a uid that came before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, number: int) -> np.ndarray:
        """(n,) ROW: what the filters left of a shard, each uid's first occurrence only."""
        left = np.load(self._file(number, ".npy"), allow_pickle=False)
        repeated = self._file(number, ".repeated.npy")
        return np.delete(left, np.load(repeated, allow_pickle=False)) if repeated.is_file() else left

    def select(self, number: int, file: ShardFile, where: str | None, uids: Path | None) -> Selection:
        """Check a shard against its manifest and filter its rows; done already, it is only read back.

        where: expression over the samples' JSON and `caption`. uids: as UidList wants them.
        Raises UserError when the shard is not what its manifest says.
        """
        if done := SELECTION.whole(self._file(number, ".json")):
            return Selection(number, done["kept"], done["dropped"])
        with _here(file, self.folder) as shard:
            _check(file, shard)
            samples = list(_without_images(shard, file.samples))
        left = np.zeros(len(samples), dtype=ROW)
        left["row"] = np.arange(len(samples))
        left["uid"] = np.frombuffer(b"".join(bytes.fromhex(sample.uid) for sample in samples), "S16")
        dropped: dict[str, int] = {}
        if where is not None:
            keep = compile_where(where)(_table(samples))
            dropped["where"], left = int((~keep).sum()), left[keep]
        if uids is not None:
            halves = np.ascontiguousarray(left["uid"]).view(">u8").reshape(-1, 2).astype("u8")
            keep = UidList(uids).holds(halves)
            dropped["not_in_uids"], left = int((~keep).sum()), left[keep]
        with atomic_open(self._file(number, ".npy")) as stream:
            np.save(stream, left)
        selection = Selection(number, len(left), dropped)
        write_json(self._file(number, ".json"), asdict(selection))
        return selection

    def drop_repeated(self, selections: Sequence[Selection]) -> dict[int, int]:
        """Keep each uid's first occurrence only, exactly; returns how many rows that drops of which shard."""
        parts = -(-sum(selection.kept for selection in selections) // PART_ROWS)
        found: dict[int, list[np.ndarray]] = {}
        for part in range(parts):
            for number, places in self._repeated(selections, part, parts):
                found.setdefault(number, []).append(places)
        for number, arrays in found.items():
            with atomic_open(self._file(number, ".repeated.npy")) as stream:
                np.save(stream, np.sort(np.concatenate(arrays)))
        return {number: sum(map(len, arrays)) for number, arrays in found.items()}

    def _repeated(self, selections: Sequence[Selection], part: int, parts: int) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, places in its file) of the repeated uids of one of `parts` equal pieces of the space of uids."""
        uids, owners, places = [], [], []
        for selection in selections:
            column = np.load(self._file(selection.number, ".npy"), mmap_mode="r", allow_pickle=False)["uid"]
            (chosen,) = np.nonzero(_leading(column) * parts >> 16 == part)
            uids.append(column[chosen])
            owners.append(np.full(len(chosen), selection.number, dtype=np.int64))
            places.append(chosen)
        uid, owner, place = np.concatenate(uids), np.concatenate(owners), np.concatenate(places)
        order = np.argsort(uid, kind="stable")
        again = np.flatnonzero(uid[order][1:] == uid[order][:-1]) + 1
        repeated = np.sort(order[again])
        for number in np.unique(owner[repeated]):
            yield int(number), place[repeated[owner[repeated] == number]]

    def _file(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:08d}{suffix}"


def dropped_in_all(selections: Sequence[Selection], repeated: dict[int, int]) -> dict[str, int]:
    """Reason to rows over all shards."""
    total = tally(*(selection.dropped for selection in selections), {"duplicate_uid": sum(repeated.values())})
    return {reason: number for reason, number in total.items() if number}


def _leading(column: np.ndarray) -> np.ndarray:
    """(n,) int64: the first 16 bits of each uid."""
    first = np.ascontiguousarray(column).view("u1").reshape(-1, 16)[:, :2].astype(np.int64)
    return first[:, 0] * 256 + first[:, 1]


@contextmanager
def _here(file: ShardFile, folder: Path) -> Iterator[Path]:
    """The shard and its index as files of this machine; those of a network are copied for as long as that."""
    if not is_url(file.path):
        yield Path(file.path)
        return
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"copy-{file.sha256}.tar"
    try:
        download(file.path, copy)
        download(index_name(file.path), index_path(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)
        index_path(copy).unlink(missing_ok=True)


def _check(file: ShardFile, shard: Path) -> None:
    wanted = {shard: file.sha256, index_path(shard): file.index_sha256}
    for path, digest in wanted.items():
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(
                f"{file.path if path == shard else index_name(file.path)} is missing or not what its manifest says "
                "(sha256): copy it again, or run `data-prep verify NAME --again` and `data-prep manifest NAME` there"
            )


def _without_images(shard: Path, samples: int) -> Iterator[Sample]:
    for sample in read_samples(str(shard), shard.stat().st_size, range(samples)):
        yield sample._replace(image=b"")


def _table(samples: Sequence[Sample]) -> pa.Table:
    """A row per sample: what its JSON says, its caption, and `caption_length` in characters."""
    rows = [{**sample.metadata, "caption": sample.caption, "caption_length": len(sample.caption)} for sample in samples]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
