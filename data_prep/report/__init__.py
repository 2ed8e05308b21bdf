"""A corpus as a page that a person reads: `report/index.html` in its folder, its charts as PNGs, and `facts.json`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.corpus import Corpus
from data_prep.progress import Report, silent
from pipeline.files import atomic_open, write_json


def build_report(corpus: Corpus, report: Report = silent, *, dry_run: bool = False) -> tuple[Path, dict[str, Any]]:
    """Write the report, or with `dry_run` nothing; returns the page's path and the facts on it.

    What is not there yet (a corpus that is only planned, or one made out of others) is said to be missing.
    report: called with (shards looked into, shards to look into). Raises UserError for a corpus without plan and
    manifest.
    """
    from data_prep.report.charts import draw  # matplotlib: half a second
    from data_prep.report.facts import read_facts
    from data_prep.report.page import render

    facts = read_facts(corpus, report)
    folder = corpus.folder / "report"
    if dry_run:
        return folder / "index.html", asdict(facts)
    charts = draw(facts)
    for chart in charts:
        with atomic_open(folder / f"{chart.key}.png") as stream:
            stream.write(chart.png)
    with atomic_open(folder / "index.html", "w") as page:
        page.write(render(facts, charts))
    write_json(folder / "facts.json", asdict(facts))
    return folder / "index.html", asdict(facts)
