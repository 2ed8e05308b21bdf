"""The facts of a corpus as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from data_prep.outcomes import OK
from data_prep.report.charts import Chart
from data_prep.report.facts import CorpusFacts
from pipeline.contact_sheet import contact_sheet


def render(facts: CorpusFacts, charts: Sequence[Chart]) -> str:
    """The page. Whatever comes from data (captions, hosts, titles) appears on it as text."""
    loader = ChoiceLoader([PackageLoader("data_prep", "report"), PackageLoader("pipeline", "")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=lambda n: f"{n:,.0f}", percent=lambda n: f"{100 * n:.1f} %", words=_words, size=_size
    )
    return environment.get_template("page.html").render(
        facts=facts,
        charts=[(chart, Markup(chart.svg)) for chart in charts],
        rows=_rows(facts),
        thumbnails=contact_sheet(Path(facts.folder)),
        style=Markup(loader.get_source(environment, "page.css")[0]),
    )


def _rows(facts: CorpusFacts) -> list[tuple[str, int, float, str]]:
    """Every row that was read and what became of it: label, rows, share of those read, kind."""
    rows = [("kept as samples", facts.ok, "ok")] if facts.outcomes else []
    failed = {cause: number for cause, number in facts.outcomes.items() if cause != OK}
    rows += [(_words(cause), number, "failed") for cause, number in _largest_first(failed)]
    rows += [
        (f"{_words(reason)}, not asked for", number, "dropped") for reason, number in _largest_first(facts.dropped)
    ]
    return [(label, number, number / max(facts.rows_read, 1), kind) for label, number, kind in rows]


def _largest_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _words(name: str) -> str:
    """`http_404` -> `HTTP 404`, `opt_out` -> `opt out`."""
    return name.replace("http_", "HTTP ").replace("_", " ")


def _size(number: float) -> str:
    """Bytes as 512 MB or 3.1 TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
