"""The facts of a corpus as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from data_prep.outcomes import OK
from data_prep.report.charts import Chart
from data_prep.report.facts import CorpusFacts
from pipeline.pages.contact_sheet import contact_sheet
from pipeline.pages.template import template
from pipeline.text import words


def render(facts: CorpusFacts, charts: Sequence[Chart]) -> str:
    """The page. Whatever comes from data (captions, hosts, titles) appears on it as text."""
    return template("data_prep/report/page.html").render(
        facts=facts,
        charts=[(chart, Markup(chart.svg)) for chart in charts],
        rows=_rows(facts),
        thumbnails=contact_sheet(Path(facts.folder)),
    )


def _rows(facts: CorpusFacts) -> list[tuple[str, int, float, str]]:
    """Every row that was read and what became of it: label, rows, share of those read, kind."""
    rows = [("kept as samples", facts.ok, "ok")] if facts.outcomes else []
    failed = {cause: number for cause, number in facts.outcomes.items() if cause != OK}
    rows += [(words(cause), number, "failed") for cause, number in _largest_first(failed)]
    rows += [(f"{words(reason)}, not asked for", number, "dropped") for reason, number in _largest_first(facts.dropped)]
    return [(label, number, number / max(facts.rows_read, 1), kind) for label, number, kind in rows]


def _largest_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
