"""`data-prep verify`: prove what was downloaded, and write it again as canonical shards.

Proven (`prove.py`): every tar has the size and sha256 that it had when its download ended; every sample is
complete, planned, there once, and carries its planned URL and caption; every image decodes to the last pixel;
and each planned row has exactly one outcome. A tar that fails is moved to `quarantine/`; the next download of
its item makes that shard again. The canonical shards depend on the samples alone (`shard.py`); whether they are
still what was written is asked with `again`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus
from data_prep.corpus_files import VERIFIED
from data_prep.downloaded import Done, attempt_rows, read_done, shard_files
from data_prep.manifest import SCHEMA, shard_row
from data_prep.outcomes import OK, tally
from data_prep.plan import Plan, read_item, read_plan
from data_prep.progress import Report, silent
from data_prep.prove import Outcome, Proof, Proven, prove
from data_prep.shard import Sample, index_path, read_at, write_shard
from data_prep.workers import worker_pool
from pipeline.errors import UserError
from pipeline.files import atomic_open, fingerprint, remove_torn, sha256_file, write_json
from pipeline.locks import exclusive
from pipeline.typed_files import filled

OUTCOME_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),  # the message behind a failure
        ("attempt", pa.int32()),  # the one that had this outcome
    ]
)
Outcomes = dict[str, tuple[Outcome, int]]  # by uid, with the attempt


@dataclass(frozen=True)
class Verified:
    """`verify/<item>.json`: the item is proven.

    attempts: fingerprint of each download that it was made from, and of what is recorded of a shard. shards: rows
    for the manifest. outcomes: cause to number of planned rows, `rows` in all.
    """

    item: int
    attempts: list[str]
    rows: int
    shards: list[dict[str, Any]]
    outcomes: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """What `verify` says of an item.

    record: None if `damage` was found. new: whether verified just now. mended_by: the command that makes again
    what was damaged, `download` for tars of img2dataset and `verify` for canonical shards.
    """

    item: int
    record: Verified | None
    new: bool
    damage: list[str]
    mended_by: Literal["download", "verify"] | None = None


def verify(
    corpus: Corpus,
    items: Sequence[int] | None = None,
    processes: int = 1,
    report: Report = silent,
    *,
    again: bool = False,
) -> list[Verdict]:
    """Verify items, by default all that are downloaded; one that is verified already is left alone.

    again: read the shards of those too; one that is not what was written goes to quarantine, and its item counts
    as not verified, so that the next call makes it again. processes: items at once. report: called with
    (rows done, rows to do).
    Raises UserError for an item that is not downloaded, and when nothing is.
    """
    plan = read_plan(corpus)
    downloaded = list(_downloaded(corpus, plan, items))
    total, rows_done, verdicts = sum(plan.items[item]["rows"] for item in downloaded), 0, []
    for verdict in _verdicts(corpus, plan, downloaded, processes, again):
        verdicts.append(verdict)
        rows_done += plan.items[verdict.item]["rows"]
        report(rows_done, total)
    return sorted(verdicts, key=lambda verdict: verdict.item)


def outlook(corpus: Corpus, items: Sequence[int] | None = None) -> dict[str, Any]:
    """What `verify` would do, writing nothing: {to_verify: items, rows: of these, already_verified: items}.

    Raises UserError as it does.
    """
    plan = read_plan(corpus)
    records = {item: read_verified(corpus, done) for item, done in _downloaded(corpus, plan, items).items()}
    to_do = [item for item, record in records.items() if not (record and _is_there(corpus, record))]
    rows = sum(plan.items[item]["rows"] for item in to_do)
    return {"to_verify": to_do, "rows": rows, "already_verified": sorted(records.keys() - set(to_do))}


def _downloaded(corpus: Corpus, plan: Plan, items: Sequence[int] | None) -> dict[int, Done]:
    """The downloaded ones of `items` (None: of all). Raises UserError when one that is asked for is not, or none is."""
    found = ((item, read_done(corpus, item, plan.fingerprint)) for item in plan.select(items))
    downloaded = {item: done for item, done in found if done}
    if absent := sorted(set(items or ()) - downloaded.keys()):
        raise UserError(
            f"work item {absent[0]} is not downloaded: run `data-prep download {plan.corpus} --task {absent[0]}`"
        )
    if not downloaded:
        raise UserError(f"nothing is downloaded at {corpus.folder}: run `data-prep download {plan.corpus}` first")
    return downloaded


def read_verified(corpus: Corpus, done: Done) -> Verified | None:
    """The item's record, or None when it was not verified since that download."""
    record = _stored_record(corpus, done.item)
    return record if record and record.attempts == _stamps(done) else None


def _stored_record(corpus: Corpus, item: int) -> Verified | None:
    record = VERIFIED.whole(corpus.verified_file(item))
    return filled(Verified, record) if record and record["item"] == item else None


def _stamps(done: Done) -> list[str]:
    """One per attempt; an attempt's depends on those before it, which decide what it was to ask for."""
    head = [done.item, done.fingerprint, SCHEMA.names]
    shards = [done.shards_of(attempt) for attempt in range(done.attempts)]
    return [fingerprint([head, shards[: attempt + 1]]) for attempt in range(done.attempts)]


def shard_problem(corpus: Corpus, row: dict[str, Any]) -> str | None:
    """What is wrong with a recorded shard at first sight (presence and size; its index too), or None."""
    path = corpus.folder / row["path"]
    if not path.is_file() or not index_path(path).is_file():
        return f"{path} or its index is missing"
    if path.stat().st_size != row["bytes"]:
        return f"{path} has {path.stat().st_size:,} bytes, not the {row['bytes']:,} that were verified"
    return None


def _is_there(corpus: Corpus, record: Verified) -> bool:
    return not any(shard_problem(corpus, row) for row in record.shards)


def _verdicts(corpus: Corpus, plan: Plan, items: list[int], processes: int, again: bool) -> Iterator[Verdict]:
    if min(processes, len(items)) == 1:
        yield from (_verify_item(corpus, plan, item, again) for item in items)
        return
    with worker_pool(min(processes, len(items))) as pool:
        for future in as_completed([pool.submit(_verify_item, corpus, plan, item, again) for item in items]):
            yield future.result()


def _verify_item(corpus: Corpus, plan: Plan, item: int, again: bool) -> Verdict:
    with exclusive(corpus.lock(f"item-{item:05d}"), f"work item {item} of {corpus.folder}"):
        done = read_done(corpus, item, plan.fingerprint)
        if done is None:
            raise UserError(f"work item {item} is being downloaded again: verify it afterwards")
        record = read_verified(corpus, done)
        if record and again and (changed := _changed_shards(corpus, record)):
            return Verdict(item, None, True, _forget(corpus, item, changed), mended_by="verify")
        if record and _is_there(corpus, record):
            return Verdict(item, record, False, [])
        return _prove_item(corpus, plan, done)


def _prove_item(corpus: Corpus, plan: Plan, done: Done) -> Verdict:
    """Prove the attempts that are not proven yet, and write their samples: the first that has a row keeps it."""
    item = done.item
    outcomes, shards, proven = _proven_before(corpus, done)
    proofs = {}
    for attempt in range(proven, done.attempts):
        rows = attempt_rows(corpus, plan, item, attempt)
        proof = prove(corpus.download(item, attempt), done.shards_of(attempt), rows)
        if proof.damaged:
            return Verdict(item, None, True, _quarantine(corpus, item, attempt, proof), mended_by="download")
        proofs[attempt] = proof
    _remove_leftovers(corpus, item, shards)
    for attempt, proof in proofs.items():
        got = {uid for uid, (outcome, _) in outcomes.items() if outcome.cause == OK}
        samples = [sample for sample in proof.samples if sample.uid not in got]
        shards += _write_shards(corpus, item, attempt, samples, plan.samples_per_shard)
        outcomes |= {uid: (outcome, attempt) for uid, outcome in proof.outcomes.items() if uid not in got}
    _write_outcomes(corpus, item, outcomes, read_item(corpus, plan, item))
    counts = tally(outcome.cause for outcome, _ in outcomes.values())
    record = Verified(item, _stamps(done), len(outcomes), shards, counts)
    write_json(corpus.verified_file(item), asdict(record))
    return Verdict(item, record, True, [])


def _proven_before(corpus: Corpus, done: Done) -> tuple[Outcomes, list[dict[str, Any]], int]:
    """What the last verification found of the attempts that are still as they were: outcomes, shards, how many."""
    record, stamps = _stored_record(corpus, done.item), _stamps(done)
    if record is None or record.attempts != stamps[: len(record.attempts)]:
        return {}, [], 0
    if any(shard_problem(corpus, row) for row in record.shards):
        return {}, [], 0
    proven = len(record.attempts)
    try:
        rows = pq.read_table(corpus.outcomes(done.item), schema=OUTCOME_SCHEMA).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return {}, [], 0
    # A kill may have left what a later attempt found already: those rows are not settled.
    settled = {row["uid"]: row for row in rows if row["attempt"] < proven}
    outcomes = {uid: (Outcome(row["outcome"], row["detail"]), row["attempt"]) for uid, row in settled.items()}
    return outcomes, record.shards, proven


def _changed_shards(corpus: Corpus, record: Verified) -> list[Path]:
    """Canonical shards of which a byte, or one of their index, differs from what was written."""
    paths = [(corpus.folder / row["path"], row) for row in record.shards]
    return [
        path
        for path, row in paths
        if path.is_file()
        and index_path(path).is_file()
        and (sha256_file(path), sha256_file(index_path(path))) != (row["sha256"], row["index_sha256"])
    ]


def _forget(corpus: Corpus, item: int, changed: list[Path]) -> list[str]:
    """Move changed shards aside, then the item's claim to be verified: a missing shard is noticed without it."""
    for path in changed:
        _set_aside(corpus, item, (path, index_path(path)))
    corpus.verified_file(item).unlink()
    return [f"item {item}: {path.name} or its index is not what was verified (sha256)" for path in changed]


def _quarantine(corpus: Corpus, item: int, attempt: int, proof: Proof) -> list[str]:
    """Move damaged shards aside, then take back the item's claim to be done.

    In this order: until the last file is gone the claim stands, and with it the record that the files fail, so
    after a kill in between they are found out again. Without the claim they would be recorded anew, as sound.
    """
    for shard in proof.damaged:
        # Statistics first: they say "finished".
        _set_aside(corpus, item, reversed(shard_files(corpus.download(item, attempt), shard)))
    corpus.done_file(item).unlink()
    return [f"item {item}: {reason}" for reason in proof.damaged.values()]


def _set_aside(corpus: Corpus, item: int, paths: Iterable[Path]) -> None:
    """Move those of `paths` that exist to the item's quarantine."""
    aside = corpus.folder / "quarantine" / f"{item:05d}"
    aside.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if path.exists():
            shutil.move(path, aside / path.name)


def _remove_leftovers(corpus: Corpus, item: int, proven: list[dict[str, Any]]) -> None:
    """Shards of earlier verifications but the `proven` ones, and temporary files of killed ones."""
    if not proven:
        corpus.verified_file(item).unlink(missing_ok=True)
    kept = {corpus.folder / row["path"] for row in proven}
    kept |= {index_path(path) for path in kept}
    left = set((corpus.folder / "shards").glob(f"{item:05d}-*")) - kept
    for path in left:
        path.unlink()
    for folder in ("shards", "outcomes", "verify"):
        remove_torn(corpus.folder / folder, f"{item:05d}*")


def _write_shards(
    corpus: Corpus, item: int, attempt: int, samples: list[Proven], capacity: int
) -> Iterator[dict[str, Any]]:
    for number, start in enumerate(range(0, len(samples), capacity)):
        part = samples[start : start + capacity]
        path = corpus.shard(item, number, attempt)
        write_shard(path, _read_back(part))
        yield shard_row(corpus.folder, path, len(part), item, attempt)


def _read_back(samples: list[Proven]) -> Iterator[Sample]:
    descriptors: dict[Path, int] = {}
    try:
        for sample in samples:
            if sample.tar not in descriptors:
                descriptors[sample.tar] = os.open(sample.tar, os.O_RDONLY)
            image = read_at(descriptors[sample.tar], sample.offset, sample.size)
            yield Sample(sample.uid, image, sample.extension, sample.caption, sample.metadata)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _write_outcomes(corpus: Corpus, item: int, outcomes: Outcomes, planned: pa.Table) -> None:
    rows = []
    for row in planned.to_pylist():
        outcome, attempt = outcomes[row["uid"]]
        rows.append({**row, "outcome": outcome.cause, "detail": outcome.detail, "attempt": attempt})
    with atomic_open(corpus.outcomes(item)) as stream:
        pq.write_table(pa.Table.from_pylist(rows, OUTCOME_SCHEMA), stream, compression="zstd")
