"""What `neuclip report` writes: a page that a person reads, numbers that a program reads, figures for MLflow."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pipeline.files import atomic_open, write_json
from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.page import write_page
from pipeline.report.compare.pictures import write_figures
from pipeline.report.facts import RunFacts, read_facts
from pipeline.report.page import render
from pipeline.report.summary import summarise
from pipeline.report.sweep import summarise_sweep

_log = logging.getLogger(__name__)
FIGURES = "figures"  # RUN/figures, which MLflow is sent


def build_report(run_dir: Path) -> Path:
    """Write RUN/report.html, one self-contained file, RUN/figures and RUN/summary.json; returns the page's path.

    run_dir: a run, or one member of a sweep. Of a whole sweep the page is RUN/compare.html, its members side by side.

    Stages that have not run, or left nothing that can be read, are said to be missing on the page and are
    null in the summary. Raises UserError if `run_dir` has no plan.
    """
    started = time.monotonic()
    facts = read_facts(run_dir.resolve())
    page = _of_sweep(facts, started) if facts.plan.get("members") else _of_run(facts, started)
    for problem in facts.run.damaged:
        _log.warning("%s", problem)
    return page


def _of_run(facts: RunFacts, started: float) -> Path:
    folder = facts.run.folder
    page = folder / "report.html"
    html = render(facts)
    with atomic_open(page, "w") as stream:
        stream.write(html)
    write_figures(compare([facts.run]), folder / FIGURES)
    write_json(folder / "summary.json", summarise(facts, page, time.monotonic() - started))
    return page


def _of_sweep(facts: RunFacts, started: float) -> Path:
    folder = facts.run.folder
    page = folder / "compare.html"
    comparison = compare(find_runs([folder]))
    write_page(comparison, page)
    write_figures(comparison, folder / FIGURES)
    write_json(folder / "summary.json", summarise_sweep(facts, page, time.monotonic() - started))
    return page
