"""The figures of a comparison as files, for whoever keeps them: PNGs of the curves and the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from pipeline.report.compare.comparison import compare
from pipeline.report.compare.curves import MOST_POINTS, curve, thin
from pipeline.report.compare.curves import figures as page_figures
from pipeline.report.compare.page import DASHES, write_page
from pipeline.report.compare.run import Run
from pipeline.report.compare.text import one_line

HUES = ("#1f6fd0", "#c9540a", "#58026f", "#128a70", "#98276a", "#33302a")  # --g0 to --g5 of page.css on paper
MOST_NAMES = 12  # in a legend


def write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write FOLDER/curve-<metric>.png for every curve that some run has, and FOLDER/compare.html; returns the paths."""
    comparison = compare(runs)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in page_figures(runs):
        canvas = Canvas(figsize=(8, 4.5), dpi=120, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        for group in comparison.groups:
            for place, run in enumerate(group.runs):
                x, y = curve(figure["key"], run.points)
                if not len(x):
                    continue
                kept = thin(x, y, MOST_POINTS)
                dash = DASHES[(group.number // len(HUES) + place) % len(DASHES)]
                style = (0, tuple(length / 2 for length in dash)) if dash else "solid"
                axes.plot(
                    x[kept], y[kept], color=HUES[group.number % len(HUES)], linestyle=style, linewidth=1.5,
                    label=_label(run.name),
                )  # fmt: skip
        axes.set(title=figure["title"], xlabel="samples seen", ylabel=figure["unit"])
        axes.set_yscale("log" if figure["log"] else "linear")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if 1 < len(runs) <= MOST_NAMES:
            axes.legend(frameon=False, fontsize="small")
        path = folder / f"curve-{figure['key'].replace('/', '-')}.png"
        canvas.savefig(path)
        written.append(path)
    write_page(comparison, folder / "compare.html")
    return [*written, folder / "compare.html"]


def _label(name: str) -> str:
    """As text: matplotlib takes $ for mathematics, and leaves out a name that begins with _."""
    return " " + one_line(name, 60).replace("$", r"\$")
