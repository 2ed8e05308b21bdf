"""`data-prep manifest`: publish the shards of a corpus once every work item is proven."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import Corpus
from data_prep.downloaded import read_done
from data_prep.manifest import read_manifest, summarise, write_manifest
from data_prep.outcomes import OK, tally
from data_prep.plan import Plan, read_plan
from data_prep.progress import Report, silent
from data_prep.rows import work_item
from data_prep.verify import Verified, read_verified, shard_problem
from pipeline.errors import UserError
from pipeline.files import remove_torn
from pipeline.locks import exclusive


def publish(corpus: Corpus, report: Report = silent, *, dry_run: bool = False) -> tuple[dict[str, Any], bool]:
    """Write `manifest.parquet` and `manifest.json`; returns the latter's content and whether it changed.

    report: called with (work items checked, work items). dry_run: check everything, write nothing.
    Raises UserError that names the items which are not verified, a shard that is not as verified, or a corpus
    of which no sample is left.
    """
    plan = read_plan(corpus)
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(exclusive(corpus.lock("manifest"), f"the manifest of {corpus.folder}"))
            remove_torn(corpus.folder, "manifest.*")
        records = _all_verified(corpus, plan)
        for number, record in enumerate(records, start=1):
            _check_accounting(corpus, plan, record)
            report(number, len(records))
        rows = [row for record in records for row in record.shards]
        rows.sort(key=lambda row: row["attempt"])  # a retry adds samples after those that are there
        if not rows:
            raise UserError(f"{corpus.folder} has no usable rows: not one of {plan.rows_planned:,} became a sample")
        totals = _totals(corpus, plan, records)
        summary = summarise(rows, totals)
        if _is_published(corpus, summary):
            return summary, False
        if not dry_run:
            write_manifest(corpus.folder, rows, totals)
        return summary, True


def _all_verified(corpus: Corpus, plan: Plan) -> list[Verified]:
    records: list[Verified] = []
    missing: dict[str, list[int]] = {"download": [], "verify": []}
    for item in range(plan.tasks):
        done = read_done(corpus, item, plan.fingerprint)
        record = done and read_verified(corpus, done)
        if record:
            records.append(record)
        else:
            missing["verify" if done else "download"].append(item)
    if any(missing.values()):
        parts = [
            f"{len(items)} of {plan.tasks} work items still to {verb} ({_shorten(items)})"
            for verb, items in missing.items()
            if items
        ]
        raise UserError(
            f"{corpus.folder} cannot be published: {'; '.join(parts)}. Run `data-prep download {plan.corpus}` and "
            f"`data-prep verify {plan.corpus}`; they do what is missing."
        )
    for record in records:
        for row in record.shards:
            if problem := shard_problem(corpus, row):
                raise UserError(
                    f"{problem}. Run `data-prep verify {plan.corpus} --task {record.item}`: it writes it again."
                )
    return records


def _shorten(items: list[int], most: int = 10) -> str:
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def _check_accounting(corpus: Corpus, plan: Plan, record: Verified) -> None:
    """Every planned row has one outcome, and every ok row is a sample.

    No uid can be in two shards then: within an item uids are unique, and the item is a function of the uid.
    """
    path = corpus.outcomes(record.item)
    again = f"Remove {corpus.verified_file(record.item)} and run `data-prep verify {plan.corpus}` again."
    try:
        outcomes = pq.read_table(path, columns=["uid", "outcome"])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({error}). {again}") from error
    uids = outcomes["uid"].to_pylist()
    counts = tally(outcomes["outcome"].to_pylist())
    samples = sum(row["samples"] for row in record.shards)
    planned = plan.items[record.item]["rows"]
    sound = (
        len(set(uids)) == len(uids) == planned
        and all(work_item(uid, plan.tasks) == record.item for uid in uids)
        and counts == record.outcomes
        and counts.get(OK, 0) == samples
    )
    if not sound:
        raise UserError(
            f"{path} does not account for work item {record.item}: {len(uids):,} rows, {len(set(uids)):,} of "
            f"them distinct, {counts.get(OK, 0):,} ok; planned were {planned:,} rows and the shards hold "
            f"{samples:,} samples. " + again
        )


def _totals(corpus: Corpus, plan: Plan, records: list[Verified]) -> dict[str, Any]:
    outcomes = tally(*(record.outcomes for record in records))
    return {
        **corpus.definition.imprint,
        "plan": plan.fingerprint,
        "samples_per_shard": plan.samples_per_shard,
        "rows_read": plan.rows_read,
        "dropped": plan.dropped,
        "rows": plan.rows_planned,
        "ok": outcomes.get(OK, 0),
        "outcomes": outcomes,
    }


def _is_published(corpus: Corpus, summary: dict[str, Any]) -> bool:
    try:
        return read_manifest(corpus.folder).summary == summary
    except UserError:  # absent or damaged: written again
        return False
