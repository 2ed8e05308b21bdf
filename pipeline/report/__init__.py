"""One run as a page that a person reads (report.html) and as numbers that a program reads (summary.json)."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.files import atomic_open, write_json
from pipeline.report.facts import read_facts
from pipeline.report.page import render
from pipeline.report.summary import summarise
from pipeline.report.sweep import summarise_sweep


def build_report(run_dir: Path) -> Path:
    """Write RUN/report.html, one self-contained file, and RUN/summary.json; returns the page's path.

    run_dir: a run, or one member of a sweep. Of a whole sweep the summary alone is written, and its path returned.

    Stages that have not run, or left nothing that can be read, are said to be missing on the page and are
    null in the summary. Raises UserError if `run_dir` has no plan.
    """
    started = time.monotonic()
    facts = read_facts(run_dir.resolve())
    if facts.plan.get("members"):
        summary = facts.run_dir / "summary.json"
        write_json(summary, summarise_sweep(facts, time.monotonic() - started))
        return summary
    page = facts.run_dir / "report.html"
    html = render(facts)
    with atomic_open(page, "w") as stream:
        stream.write(html)
    write_json(facts.run_dir / "summary.json", summarise(facts, page, time.monotonic() - started))
    return page
