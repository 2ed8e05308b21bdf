"""Prove one attempt at a work item against what it was to ask for and against the record of its download."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data_prep.downloaded import read_records, shard_files
from data_prep.outcomes import LOST, OK, classify
from data_prep.rows import ROW_SCHEMA
from data_prep.stored import BadImage, Damaged, Stored, check_image, stored_samples
from pipeline.files import sha256_file


class Proven(NamedTuple):
    """A sample that stays, without its bytes: `size` of them lie in `tar` at `offset`."""

    uid: str
    tar: Path
    offset: int
    size: int
    extension: str
    caption: str
    metadata: dict[str, Any]


class Outcome(NamedTuple):
    """What became of a planned row. detail: the message behind a failure."""

    cause: str
    detail: str | None = None


@dataclass
class Proof:
    """samples: sorted by uid. outcomes: by uid, one per row. damaged: shard to what is wrong."""

    samples: list[Proven] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)


def prove(folder: Path, shards: list[dict[str, Any]], planned: pa.Table) -> Proof:
    """Check every shard in an attempt's folder. shards: as `Done` records them; planned: the attempt's rows.

    If `damaged` is not empty, the rest of the proof is that of the other shards only.
    """
    rows = {row["uid"]: row for row in planned.to_pylist()}
    proof = Proof()
    for shard, record in enumerate(shards):
        try:
            samples, outcomes = _prove_shard(folder, shard, record, rows)
            if twice := outcomes.keys() & proof.outcomes.keys():
                raise Damaged(f"{record['name']} repeats rows of other shards, {min(twice)} for one")
        except Damaged as damage:
            proof.damaged[shard] = str(damage)
        else:
            proof.samples += samples
            proof.outcomes |= outcomes
    for uid in rows.keys() - proof.outcomes.keys():
        proof.outcomes[uid] = Outcome(LOST, "img2dataset left no record of this row")
    proof.samples.sort(key=lambda sample: sample.uid)
    return proof


def _prove_shard(
    folder: Path, shard: int, record: dict[str, Any], rows: dict[str, dict[str, str]]
) -> tuple[list[Proven], dict[str, Outcome]]:
    tar, _, _ = shard_files(folder, shard)
    if not tar.is_file():
        raise Damaged(f"{tar.name} is missing")
    if tar.stat().st_size != record["bytes"] or sha256_file(tar) != record["sha256"]:
        raise Damaged(f"{tar.name} is not the file that was downloaded (size or sha256)")
    outcomes = _recorded(folder, shard, rows)
    stored = 0
    samples: dict[str, Proven] = {}
    for sample in stored_samples(tar):
        stored += 1
        uid = sample.metadata.get("uid")
        if uid not in outcomes or outcomes[uid].cause != OK or uid in samples:
            raise Damaged(f"{tar.name} holds {uid} twice or without a record of its success")
        if (sample.metadata.get("url"), sample.caption) != (rows[uid]["url"], rows[uid]["caption"]):
            raise Damaged(f"{tar.name}: {uid} is not the row that was planned")
        try:
            samples[uid] = _decoded(sample, rows[uid])
        except BadImage as bad:
            outcomes[uid] = Outcome(bad.cause, str(bad))
    if stored != record["samples"]:
        raise Damaged(f"{tar.name} holds {stored} samples; its statistics say {record['samples']}")
    if unstored := {uid for uid, outcome in outcomes.items() if outcome.cause == OK} - samples.keys():
        raise Damaged(f"{tar.name} lacks {len(unstored)} samples that were recorded, {min(unstored)} for one")
    return list(samples.values()), outcomes


def _recorded(folder: Path, shard: int, rows: dict[str, dict[str, str]]) -> dict[str, Outcome]:
    try:
        records = read_records(folder, shard).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"the record of shard {shard} cannot be read: {error}") from error
    outcomes = {
        row["uid"]: Outcome(classify(row["status"], row["error_message"]), row["error_message"]) for row in records
    }
    if len(outcomes) != len(records) or not outcomes.keys() <= rows.keys():
        raise Damaged(f"the record of shard {shard} repeats rows or has some that were never planned")
    return outcomes


def _decoded(sample: Stored, planned: dict[str, str]) -> Proven:
    facts = check_image(sample.image)
    original = sample.metadata
    further = {name: text for name, text in planned.items() if name not in ROW_SCHEMA.names}
    metadata = {
        **further,
        "uid": planned["uid"],
        "url": original["url"],
        "width": facts.width,
        "height": facts.height,
        "sha256": facts.sha256,
        "original_width": original["original_width"],
        "original_height": original["original_height"],
        "original_sha256": original["sha256"],  # of what the server sent; equal if the bytes were kept
    }
    return Proven(
        planned["uid"], sample.tar, sample.offset, len(sample.image), facts.extension, sample.caption, metadata
    )
