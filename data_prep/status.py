"""`data-prep status`: how far a corpus has come."""

from __future__ import annotations

from typing import Any

from data_prep.corpus import Corpus
from data_prep.corpus_files import PUBLISHED
from data_prep.downloaded import read_done
from data_prep.plan import read_plan
from data_prep.verify import read_verified


def how_far(corpus: Corpus) -> dict[str, Any]:
    """{rows, work_items, downloaded, verified, published}: counts of rows, items, items, items, samples.

    Of a corpus that was made of others, which has no plan: {published}. Raises UserError when there is neither.
    """
    published = (PUBLISHED.read(corpus.folder / "manifest.json") or {"samples": 0})["samples"]
    if corpus.derived_file.is_file():
        return {"published": published}
    plan = read_plan(corpus)
    done = [record for item in range(plan.tasks) if (record := read_done(corpus, item, plan.fingerprint))]
    return {
        "rows": plan.rows_planned,
        "work_items": plan.tasks,
        "downloaded": len(done),
        "verified": sum(read_verified(corpus, record) is not None for record in done),
        "published": published,
    }
