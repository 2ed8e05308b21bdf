"""A plan made in parts, by as many processes or machines as wanted: `plan --part I/N` of each, then `plan --merge N`.

A part reads its share of the metadata (row groups of Parquet, other files whole) and spills the rows it keeps; the
merge gathers all spills. The plan is the one that a single process makes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.corpus import Corpus
from data_prep.corpus_files import PART
from data_prep.deal import gather, keys_of, open_files, ranges_for, scatter
from data_prep.outcomes import tally
from data_prep.plan import Dealt, Plan, digests, inputs, is_whole, read_plan, refuse_change, request, settle
from data_prep.progress import Report, silent
from data_prep.screen import Screen
from data_prep.spill import Spill
from pipeline.errors import UserError
from pipeline.files import fsync_folder, write_json
from pipeline.locks import exclusive
from pipeline.typed_files import filled


@dataclass(frozen=True)
class Part:
    """`part.json`. request: as of the plan, its inputs as sizes. inputs: files whose digests this part took."""

    request: dict[str, Any]
    ranges: int
    inputs: dict[str, str]
    rows_read: int
    dropped: dict[str, int]


def make_part(
    corpus: Corpus, *, tasks: int, samples_per_shard: int, part: int, parts: int, report: Report = silent
) -> tuple[Part | None, bool]:
    """Read and spill part `part` of `parts`; returns it and whether it is new. None: the plan is made already.

    Raises UserError where another plan is in force, or parts of another request lie there.
    """
    if not 0 <= part < parts:
        raise UserError(f"no part {part} of {parts}: parts are 0 to {parts - 1}")
    wanted = _request(corpus, tasks, samples_per_shard)
    if corpus.plan_file.exists():
        _same_as_plan(corpus, wanted)
        return None, False
    folder = _folder(corpus, part, parts)
    with exclusive(corpus.lock(f"plan-part-{part}"), f"part {part} of the plan of {corpus.folder}"):
        if (record := PART.whole(folder / "part.json")) and record["request"] == wanted:
            return filled(Part, record), False
        definition, screen = corpus.definition, Screen(corpus)
        files = open_files(list(corpus.metadata_files().values()), screen, definition)
        unfinished = folder.with_suffix(".unfinished")
        for old in (unfinished, folder):
            shutil.rmtree(old, ignore_errors=True)
        ranges = ranges_for(files)
        spill = Spill(unfinished, keys_of(definition, tasks)[0], ranges)
        read = scatter(files, screen, spill, report, part, parts)
        mine = dict(list(inputs(corpus).items())[part::parts])
        done = Part(wanted, ranges, digests(mine), read.rows_read, read.dropped)
        write_json(unfinished / "part.json", asdict(done))
        unfinished.rename(folder)
        fsync_folder(folder.parent)
        return done, True


def merge_parts(corpus: Corpus, *, tasks: int, samples_per_shard: int, parts: int) -> tuple[Plan, bool]:
    """The plan of `parts` parts, frozen; and whether it is new. Raises UserError that names what is missing."""
    wanted = _request(corpus, tasks, samples_per_shard)
    folders = [_folder(corpus, part, parts) for part in range(parts)]
    missing = [part for part, folder in enumerate(folders) if not (folder / "part.json").is_file()]
    if corpus.plan_file.exists() and (missing or is_whole(corpus, read_plan(corpus))):
        plan = _same_as_plan(corpus, wanted)
        if not is_whole(corpus, plan):
            raise UserError(f"{corpus.folder} lost work items, and the parts are gone: plan it again without --merge")
        return plan, False
    if missing:
        some = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(
            f"{len(missing)} of {parts} parts of the plan of {corpus.folder} are missing ({some}): run "
            f"`data-prep plan {corpus.definition.name} ... --part {missing[0]}/{parts}`"
        )
    done = [filled(Part, PART.needed(folder / "part.json")) for folder in folders]
    for part, record in enumerate(done):
        if (record.request, record.ranges) != (wanted, done[0].ranges):
            raise UserError(
                f"part {part} of the plan of {corpus.folder} was made of other metadata or settings: run "
                f"`data-prep plan {corpus.definition.name} ... --part {part}/{parts}` again"
            )
    taken = {name: digest for record in done for name, digest in record.inputs.items()}

    def build(scratch: Path, target: Path) -> Dealt:
        keys, captions = keys_of(corpus.definition, tasks), corpus.definition.captions
        repeated, items = gather(folders, keys, done[0].ranges, captions=captions, scratch=scratch, target=target)
        dropped = tally(*(record.dropped for record in done), repeated)
        return Dealt(sum(record.rows_read for record in done), dropped, items)

    result = settle(corpus, {**request(corpus, tasks, samples_per_shard), "inputs": taken}, build)
    shutil.rmtree(corpus.folder / "plan" / "parts")
    return result


def _request(corpus: Corpus, tasks: int, samples_per_shard: int) -> dict[str, Any]:
    sizes = {name: path.stat().st_size for name, path in inputs(corpus).items()}
    return {**request(corpus, tasks, samples_per_shard), "inputs": sizes}


def _same_as_plan(corpus: Corpus, wanted: dict[str, Any]) -> Plan:
    plan = read_plan(corpus)
    names = dict.fromkeys(plan.inputs, "")
    refuse_change(
        corpus, {**plan.request(), "inputs": names}, {**wanted, "inputs": dict.fromkeys(wanted["inputs"], "")}
    )
    return plan


def _folder(corpus: Corpus, part: int, parts: int) -> Path:
    return corpus.folder / "plan" / "parts" / f"{part:05d}-of-{parts:05d}"
