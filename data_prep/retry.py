"""`data-prep retry`: ask again for the rows that failed, by cause, in one more attempt at each work item.

Which rows they are is frozen before the first is asked for, so a killed retry goes on where it was; images that are
there stay as they are, in their shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.corpus import Corpus, Fetch
from data_prep.download import download
from data_prep.downloaded import Done, begin_attempt, count_attempts, read_done
from data_prep.outcomes import OK, matches, may_pass
from data_prep.plan import Plan, read_item, read_plan
from data_prep.progress import Report, silent
from data_prep.verify import read_verified
from pipeline.errors import UserError
from pipeline.locks import exclusive


@dataclass(frozen=True)
class Retry:
    """done: the items that were tried again. rows: cause to rows that were frozen for it just now.

    continued: items whose last retry had not ended, and was ended. unverified: items that `verify` has to see first.
    """

    done: list[Done]
    rows: dict[str, int]
    continued: list[int]
    unverified: list[int]


def retry(
    corpus: Corpus,
    fetch: Fetch,
    causes: Sequence[str] | None = None,
    items: Sequence[int] | None = None,
    report: Report = silent,
    *,
    dry_run: bool = False,
) -> Retry:
    """Try the rows again whose outcome is among `causes`, by default those that may pass (time-outs, 5xx, ...).

    causes: outcomes, or classes of them such as `5xx`. dry_run: count, and ask for nothing.
    Raises UserError when an item was never downloaded or never verified, for `ok` among the causes, and as
    `download` does.
    """
    if causes and OK in causes:
        raise UserError("rows that are ok are there: nothing is downloaded twice")
    plan = read_plan(corpus)
    chosen = plan.select(items)
    counts: dict[str, int] = {}
    continued, unverified, to_do = [], [], []
    for item in chosen:
        with exclusive(corpus.lock(f"item-{item:05d}"), f"work item {item} of {corpus.folder}"):
            done = read_done(corpus, item, plan.fingerprint)
            if done is None and count_attempts(corpus, item) > 1:
                continued.append(item)
            elif done is None:
                raise UserError(f"work item {item} is not downloaded: run `data-prep download {plan.corpus}` first")
            elif read_verified(corpus, done) is None:
                unverified.append(item)
            elif _begin(corpus, plan, item, causes, counts, dry_run):
                to_do.append(item)
    if unverified and not (continued or to_do) and all(count_attempts(corpus, item) == 1 for item in unverified):
        raise UserError(
            f"why rows failed is known after `data-prep verify {plan.corpus}`: run it first "
            f"(work items {', '.join(map(str, unverified[:10]))})"
        )
    again = sorted(continued + to_do)
    finished = [] if dry_run or not again else [done for done, _ in download(corpus, fetch, again, report)]
    return Retry(finished, counts, continued, unverified)


def _begin(
    corpus: Corpus, plan: Plan, item: int, causes: Sequence[str] | None, counts: dict[str, int], dry_run: bool
) -> bool:
    """Freeze the item's rows that are to be tried again, and count them; False where there are none."""
    failed: dict[str, str] = {}
    for row in pq.read_table(corpus.outcomes(item), columns=["uid", "outcome"]).to_pylist():
        cause = row["outcome"]
        if matches(cause, causes) if causes else may_pass(cause):
            failed[row["uid"]] = cause
            counts[cause] = counts.get(cause, 0) + 1
    if failed and not dry_run:
        planned = read_item(corpus, plan, item)
        begin_attempt(corpus, plan, item, planned.filter(pc.is_in(planned["uid"], pa.array(list(failed), pa.string()))))
    return bool(failed)
