"""img2dataset's output folder of one work item: which shards are finished, and the record that says done.

img2dataset opens `NNNNN.tar` under its final name, so a killed run leaves torn tars; and it writes
`NNNNN_stats.json`, the last file of a shard, without a rename, so that one can be torn too.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus
from data_prep.outcomes import LOST, OK, classify, describe, tally
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json

LOG = "img2dataset.log"
_RECORD_COLUMNS = ["uid", "status", "error_message"]


@dataclass(frozen=True)
class Done:
    """`done.json`: the item is downloaded, by the plan with this fingerprint.

    outcomes: cause to rows, as img2dataset saw them. shards: its tars {name, samples, bytes, sha256}.
    """

    item: int
    fingerprint: str
    rows: int
    outcomes: dict[str, int]
    shards: list[dict[str, Any]]

    @property
    def ok(self) -> int:
        return self.outcomes.get(OK, 0)


def shard_files(folder: Path, shard: int) -> tuple[Path, Path, Path]:
    """Tar, record of its rows (Parquet) and statistics of one of img2dataset's shards."""
    return folder / f"{shard:05d}.tar", folder / f"{shard:05d}.parquet", folder / f"{shard:05d}_stats.json"


def is_finished(folder: Path, shard: int) -> bool:
    """Whether img2dataset came to the end of a shard, and its files reached the disk."""
    tar, records, stats = shard_files(folder, shard)
    try:
        json.loads(stats.read_bytes())["successes"]
        pq.read_metadata(records)  # empty after a power cut, though the statistics are there
    except (FileNotFoundError, ValueError, KeyError):  # pyarrow's own errors are ValueErrors
        return False
    return tar.is_file()


def remove_unfinished(folder: Path, shards: int) -> list[int]:
    """Delete all that a killed run left half-written; returns the shards still to do."""
    finished = [shard for shard in range(shards) if is_finished(folder, shard)]
    keep = {path for shard in finished for path in shard_files(folder, shard)}
    keep |= {folder / LOG, folder / "input.json"}
    for path in set(folder.iterdir()) - keep:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return sorted(set(range(shards)) - set(finished))


def claim(folder: Path, plan_fingerprint: str) -> None:
    """Tie a folder to its plan before the first download; raises UserError when it belongs to another."""
    claimed = folder / "input.json"
    if claimed.is_file() and read_json(claimed) != {"plan": plan_fingerprint}:
        raise UserError(f"{folder} holds downloads of another plan: remove it, or plan into another folder (--root)")
    write_json(claimed, {"plan": plan_fingerprint})


def read_done(corpus: Corpus, item: int, plan_fingerprint: str) -> Done | None:
    """The item's record, or None when it is not downloaded by this plan."""
    try:
        done = Done(**read_json(corpus.done_file(item)))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return done if done.fingerprint == plan_fingerprint else None


def read_records(folder: Path, shard: int) -> pa.Table:
    """img2dataset's rows of a shard: uid, status, error_message."""
    return pq.read_table(shard_files(folder, shard)[1], columns=_RECORD_COLUMNS)


def write_done(corpus: Corpus, item: int, plan_fingerprint: str, rows: int, shards: int) -> Done:
    """Take stock of a finished folder and mark the item done.

    Raises UserError, and clears the folder so that the next run tries again, when not one row was downloaded.
    """
    folder = corpus.download(item)
    causes: list[str] = []
    tars = []
    for shard in range(shards):
        tar, _, stats = shard_files(folder, shard)
        records = read_records(folder, shard)
        pairs = zip(records["status"].to_pylist(), records["error_message"].to_pylist(), strict=True)
        causes += [classify(*pair) for pair in pairs]
        size, digest = tar.stat().st_size, sha256_file(tar)
        tars.append({"name": tar.name, "samples": read_json(stats)["successes"], "bytes": size, "sha256": digest})
    causes += [LOST] * (rows - len(causes))
    done = Done(item, plan_fingerprint, rows, tally(causes), tars)
    if rows and not done.ok:
        for shard in range(shards):
            shard_files(folder, shard)[2].unlink()
        raise UserError(_all_failed(done, folder))
    write_json(corpus.done_file(item), asdict(done))
    return done


def _all_failed(done: Done, folder: Path) -> str:
    hints = {
        "connection": "Is the server running, and reachable from here?",
        "dns": "Names do not resolve from here: check the network and DNS of this machine.",
        "timeout": "Nothing answered in time: check the network, or raise --timeout.",
        "tls": "Check the certificates and the clock of this machine.",
    }
    main = max(done.outcomes, key=lambda cause: done.outcomes[cause])
    return (
        f"work item {done.item} failed as a whole: 0 of {done.rows:,} rows ({describe(done.outcomes)}). "
        f"{hints.get(main, 'If all of its URLs are really dead, plan with fewer, larger items.')} "
        f"Nothing is marked done; log: {folder / LOG}"
    )
