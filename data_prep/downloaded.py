"""img2dataset's output folders of one work item: which shards are finished, and the record that says done.

img2dataset opens `NNNNN.tar` under its final name, so a killed run leaves torn tars; and it writes
`NNNNN_stats.json`, the last file of a shard, without a rename, so that one can be torn too.

Attempt 0 is all rows of the item, in `download/00007/`; each further one has a folder beside it, `download/00007-1/`,
with the rows that it tries again in `rows.parquet`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus
from data_prep.corpus_files import CLAIM, DONE, STATISTICS
from data_prep.outcomes import LOST, OK, classify, tally
from data_prep.plan import Plan, read_item
from data_prep.rows import ROW_SCHEMA
from data_prep.watch import NOT_ASKED, too_few
from pipeline.errors import UserError
from pipeline.files import atomic_open, sha256_file, write_json
from pipeline.typed_files import filled

LOG = "img2dataset.log"
_ROWS = "rows.parquet"
_RECORD_COLUMNS = ["uid", "status", "error_message"]


@dataclass(frozen=True)
class Done:
    """`done.json`: every attempt at the item is downloaded, by the plan with this fingerprint.

    outcomes: cause to rows, as img2dataset saw them at last. attempts: how many. shards: its tars
    {attempt, name, samples, bytes, sha256}, attempt by attempt.
    """

    item: int
    fingerprint: str
    rows: int
    outcomes: dict[str, int]
    attempts: int
    shards: list[dict[str, Any]]

    @property
    def ok(self) -> int:
        """Rows that are images."""
        return self.outcomes.get(OK, 0)

    def shards_of(self, attempt: int) -> list[dict[str, Any]]:
        """The tars of one attempt, 0 the first."""
        return [shard for shard in self.shards if shard["attempt"] == attempt]


def shard_files(folder: Path, shard: int) -> tuple[Path, Path, Path]:
    """Tar, record of its rows (Parquet) and statistics of one of img2dataset's shards."""
    return folder / f"{shard:05d}.tar", folder / f"{shard:05d}.parquet", folder / f"{shard:05d}_stats.json"


def is_finished(folder: Path, shard: int) -> bool:
    """Whether img2dataset came to the end of a shard, asked for all of its rows, and its files reached the disk."""
    tar, records, stats = shard_files(folder, shard)
    counts = STATISTICS.whole(stats)
    if counts is None or NOT_ASKED in counts["status_dict"]:
        return False
    try:
        pq.read_metadata(records)  # empty after a power cut, though the statistics are there
    except (FileNotFoundError, ValueError):  # pyarrow's own errors are ValueErrors
        return False
    return tar.is_file()


def remove_unfinished(folder: Path, shards: int) -> list[int]:
    """Delete all that a killed run left half-written; returns the shards still to do."""
    finished = [shard for shard in range(shards) if is_finished(folder, shard)]
    keep = {path for shard in finished for path in shard_files(folder, shard)}
    keep |= {folder / name for name in (LOG, "input.json", _ROWS)}
    for path in set(folder.iterdir()) - keep:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return sorted(set(range(shards)) - set(finished))


def forget_shards(folder: Path) -> None:
    """Take back that shards are finished: the next run makes them again."""
    for stats in folder.glob("*_stats.json"):
        stats.unlink()


def claim(folder: Path, plan_fingerprint: str) -> None:
    """Tie a folder to its plan before the first download; raises UserError when it belongs to another."""
    claimed = folder / "input.json"
    before = CLAIM.read(claimed)
    if before and before["plan"] != plan_fingerprint:
        raise UserError(f"{folder} holds downloads of another plan: remove it, or plan into another folder (--root)")
    write_json(claimed, {"plan": plan_fingerprint})


def count_attempts(corpus: Corpus, item: int) -> int:
    """Attempts at an item that were begun: 1 and the retries."""
    attempts = 1
    while (corpus.download(item, attempts) / _ROWS).is_file():
        attempts += 1
    return attempts


def begin_attempt(corpus: Corpus, plan: Plan, item: int, rows: pa.Table) -> int:
    """Freeze the rows (ROW_SCHEMA) of one more attempt, which `download` then makes; returns its number."""
    attempt = count_attempts(corpus, item)
    folder = corpus.download(item, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, plan.fingerprint)
    with atomic_open(folder / _ROWS) as stream:
        pq.write_table(rows, stream, compression="zstd")
    return attempt


def attempt_rows(corpus: Corpus, plan: Plan, item: int, attempt: int) -> pa.Table:
    """What an attempt asks for (ROW_SCHEMA)."""
    if attempt == 0:
        return read_item(corpus, plan, item)
    path = corpus.download(item, attempt) / _ROWS
    try:
        return pq.read_table(path, schema=ROW_SCHEMA)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({error}): remove its folder, and verify and retry again") from error


def read_done(corpus: Corpus, item: int, plan_fingerprint: str) -> Done | None:
    """The item's record, or None when it is not downloaded by this plan, or not all attempts of it."""
    record = DONE.whole(corpus.done_file(item))
    wanted = {"item": item, "fingerprint": plan_fingerprint, "attempts": count_attempts(corpus, item)}
    return filled(Done, record) if record and record.items() >= wanted.items() else None


def read_records(folder: Path, shard: int) -> pa.Table:
    """img2dataset's rows of a shard: uid, status, error_message."""
    return pq.read_table(shard_files(folder, shard)[1], columns=_RECORD_COLUMNS)


def write_done(corpus: Corpus, plan: Plan, item: int, expected_yield: float) -> Done:
    """Take stock of an item of which all attempts are finished, and mark it done.

    Raises UserError, and clears the folder so that the next run tries again, when an item that was tried once
    brought too little (`too_few`).
    """
    attempts, rows = count_attempts(corpus, item), plan.items[item]["rows"]
    causes: dict[str, str] = {}
    tars = []
    for attempt in range(attempts):
        folder = corpus.download(item, attempt)
        for shard in range(math.ceil(attempt_rows(corpus, plan, item, attempt).num_rows / plan.samples_per_shard)):
            causes |= {uid: cause for uid, cause in read_causes(folder, shard) if causes.get(uid) != OK}
            tar, _, stats = shard_files(folder, shard)
            size, digest = tar.stat().st_size, sha256_file(tar)
            facts = {"samples": STATISTICS.needed(stats)["successes"], "bytes": size, "sha256": digest}
            tars.append({"attempt": attempt, "name": tar.name, **facts})
    outcomes = tally(causes.values(), [LOST] * (rows - len(causes)))
    if attempts == 1 and (diagnosis := too_few(outcomes, expected_yield)):
        forget_shards(corpus.download(item))
        log = corpus.download(item) / LOG
        raise UserError(f"work item {item} failed as a whole: {diagnosis} Nothing is marked done; log: {log}")
    done = Done(item, plan.fingerprint, rows, outcomes, attempts, tars)
    write_json(corpus.done_file(item), asdict(done))
    return done


def read_causes(folder: Path, shard: int) -> Iterator[tuple[str, str]]:
    """(uid, outcome) of each of a shard's rows, as img2dataset saw them."""
    for row in read_records(folder, shard).to_pylist():
        yield row["uid"], classify(row["status"], row["error_message"])
