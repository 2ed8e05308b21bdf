"""`data-prep plan`: freeze which rows are downloaded, and how they are cut into work items.

The plan is a function of the set of rows and of the settings (`deal.py`). Planning the same again does
nothing; planning otherwise is refused: downloads of the old plan would be counted for the new one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus, Images
from data_prep.corpus_files import PLAN
from data_prep.deal import gather, keys_of, open_files, ranges_for, scatter
from data_prep.manifest import MANIFEST_FILES
from data_prep.outcomes import describe, tally
from data_prep.progress import Report, silent
from data_prep.screen import Screen
from data_prep.spill import Spill
from pipeline.config.tree import differences
from pipeline.errors import UserError
from pipeline.files import fingerprint, sha256_file, write_json
from pipeline.locks import exclusive
from pipeline.typed_files import filled

_LATER = ("header", "captions", "where", "uids", "screen")  # settings that early plans do not name


@dataclass(frozen=True)
class Plan:
    """A frozen plan, as `plan.json` holds it.

    settings: what decides the content (columns, screening, images). inputs: metadata file, or uid list, to sha256.
    dropped: reason to number of rows. items: {item, path, rows, sha256} in order.
    """

    corpus: str
    fingerprint: str
    tasks: int
    samples_per_shard: int
    rows_read: int
    rows_planned: int
    dropped: dict[str, int]
    settings: dict[str, Any]
    inputs: dict[str, str]
    items: list[dict[str, Any]]

    @property
    def images(self) -> Images:
        return Images(**self.settings["images"])

    def select(self, items: Sequence[int] | None) -> list[int]:
        """The work items asked for, None for all; raises UserError for one that the plan does not have."""
        chosen = list(range(self.tasks)) if items is None else list(items)
        for item in chosen:
            if not 0 <= item < self.tasks:
                raise UserError(f"no work item {item}: the plan of {self.corpus} has items 0 to {self.tasks - 1}")
        return chosen

    def request(self) -> dict[str, Any]:
        """What was asked for: equal requests give equal plans."""
        return {key: getattr(self, key) for key in ("corpus", "tasks", "samples_per_shard", "settings", "inputs")}


@dataclass(frozen=True)
class Dealt:
    """What making a plan finds out; the fields are Plan's."""

    rows_read: int
    dropped: dict[str, int]
    items: list[dict[str, Any]]


def read_plan(corpus: Corpus) -> Plan:
    """The corpus's plan; raises UserError when there is none or it is not as it was made."""
    record = PLAN.read(corpus.plan_file)
    if record is None:
        raise UserError(f"no plan at {corpus.plan_file}: run `data-prep plan {corpus.definition.name} --tasks N` first")
    plan = filled(Plan, record)
    if plan.fingerprint != _fingerprint(plan.request(), plan.items):
        raise PLAN.damaged(corpus.plan_file, "is not as it was made (fingerprint)")
    return plan


def read_item(corpus: Corpus, plan: Plan, item: int) -> pa.Table:
    """The rows of one work item (ROW_SCHEMA and the corpus's further captions), proven to be those that were planned.

    Raises UserError when its file is not what the plan says.
    """
    path = corpus.plan_item(item)
    if not _intact(corpus.folder, plan.items[item]):
        raise UserError(
            f"{path} is missing or not what was planned: run `data-prep plan {plan.corpus} ...` "
            "as before, it mends that"
        )
    return pq.ParquetFile(path).read()


def make_plan(
    corpus: Corpus, *, tasks: int, samples_per_shard: int, dry_run: bool = False, report: Report = silent
) -> tuple[Plan, bool]:
    """Plan the corpus; returns the plan and whether it is new (False: an equal one was there already).

    dry_run: find out everything, write nothing into the corpus. report: called with (rows read, rows in all).
    A definition that differs only in what it says of the corpus, or in how it fetches, is stored and changes nothing
    else. Raises UserError when another plan is in force (with the differences) or no row is usable.
    """
    definition, screen = corpus.definition, Screen(corpus)
    files = open_files(list(corpus.metadata_files().values()), screen, definition)
    wanted = {**request(corpus, tasks, samples_per_shard), "inputs": digests(inputs(corpus))}

    def build(scratch: Path, target: Path) -> Dealt:
        keys, ranges = keys_of(definition, tasks), ranges_for(files)
        spill = Spill(scratch / "rows", keys[0], ranges)
        read = scatter(files, screen, spill, report)
        repeated, items = gather(
            [spill.folder], keys, ranges, captions=definition.captions, scratch=scratch, target=target
        )
        return Dealt(read.rows_read, tally(read.dropped, repeated), items)

    return settle(corpus, wanted, build, dry_run)


def settle(
    corpus: Corpus, wanted: dict[str, Any], build: Callable[[Path, Path], Dealt], dry_run: bool = False
) -> tuple[Plan, bool]:
    """The plan in force if it is what is wanted and whole, else the one that `build` makes, frozen; and if it is new.

    wanted: as `Plan.request`. build: called with a folder for scratch and the folder for `plan/`.
    """
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(exclusive(corpus.lock("plan"), f"the plan of {corpus.folder}"))
        if corpus.plan_file.exists():
            plan = read_plan(corpus)
            refuse_change(corpus, plan.request(), wanted)
            if is_whole(corpus, plan):
                if not dry_run and corpus.described_differently():
                    corpus.save_definition()
                return plan, False
        elif not dry_run:
            for name in MANIFEST_FILES:  # of an earlier plan: nothing may be trained on what this one does not hold
                (corpus.folder / name).unlink(missing_ok=True)
        scratch = Path(stack.enter_context(_scratch(None if dry_run else corpus.folder)))
        dealt = build(scratch, scratch if dry_run else corpus.folder)
        plan = _assemble(corpus, wanted, dealt)
        if not dry_run:
            corpus.save_definition()
            write_json(corpus.plan_file, asdict(plan))
        return plan, True


def _assemble(corpus: Corpus, wanted: dict[str, Any], dealt: Dealt) -> Plan:
    planned = sum(entry["rows"] for entry in dealt.items)
    if not planned:
        raise UserError(
            f"corpus {corpus.definition.name!r} has no usable rows: {dealt.rows_read:,} read from {corpus.folder}, "
            f"dropped: {describe(dealt.dropped)}"
        )
    return Plan(fingerprint=_fingerprint(wanted, dealt.items), rows_planned=planned, **vars(dealt), **wanted)


def _fingerprint(wanted: dict[str, Any], items: list[dict[str, Any]]) -> str:
    return fingerprint([wanted, items])


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """A temporary folder on the corpus's own disk (one that a killed run left is removed), or anywhere."""
    if folder is not None:
        shutil.rmtree(folder / "plan" / "scratch", ignore_errors=True)
        (folder / "plan" / "scratch").mkdir(parents=True)
        try:
            yield folder / "plan" / "scratch"
        finally:
            shutil.rmtree(folder / "plan" / "scratch", ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="data-prep-") as name:
        yield Path(name)


def request(corpus: Corpus, tasks: int, samples_per_shard: int) -> dict[str, Any]:
    """What decides a plan, but for its inputs. Settings that came later are named only where they differ from none."""
    definition = corpus.definition
    settings = definition.model_dump(mode="json", include=set(_LATER), exclude_defaults=True)
    columns = definition.columns.model_dump(mode="json")
    if columns["image_hash"] is None:
        del columns["image_hash"]
    if definition.fetch.allow_private:  # the one key of `fetch` that decides which rows are planned
        settings["allow_private"] = True
    settings |= {"columns": columns, "images": definition.images.model_dump(mode="json")}
    return {
        "corpus": definition.name,
        "tasks": tasks,
        "samples_per_shard": samples_per_shard,
        "settings": settings,
    }


def inputs(corpus: Corpus) -> dict[str, Path]:
    """The files that decide a plan, by the names under which it records them."""
    uids = corpus.uid_list
    return corpus.metadata_files() | ({} if uids is None else {str(corpus.definition.uids): uids})


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """sha256 of each file, under its name."""
    return {name: sha256_file(path) for name, path in files.items()}


def is_whole(corpus: Corpus, plan: Plan) -> bool:
    """Whether every work item is what was planned."""
    return all(_intact(corpus.folder, entry) for entry in plan.items)


def _intact(folder: Path, entry: dict[str, Any]) -> bool:
    path = folder / entry["path"]
    return path.is_file() and sha256_file(path) == entry["sha256"]


def refuse_change(corpus: Corpus, frozen: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError with the difference between the request of the plan in force and another one."""
    changes = differences(frozen, wanted)
    if changes:
        raise UserError(
            f"{corpus.folder} was planned differently (planned -> asked for):\n  "
            + "\n  ".join(changes)
            + "\nA plan is never changed under its downloads. Ask for the same again; or plan into another "
            "folder (--root); or, to start over, remove plan.json, manifest.*, plan/, download/, verify/, outcomes/ "
            "and shards/ there."
        )
