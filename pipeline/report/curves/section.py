"""What the templates of this folder show: the curves of a page, and how a run looks on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.report.compare.run import Run
from pipeline.report.curves.figures import clock, figures

COLOURS = 6  # --g0 to --g5 of curves.css
DASHES = ((), (9, 4), (2, 3), (10, 3, 2, 3), (16, 5))  # pixels drawn, left out, drawn ...


class Look(NamedTuple):
    """The line of a run, or of a group. colour: a variable of curves.css."""

    colour: str
    dash: tuple[int, ...]


class Drawn(NamedTuple):
    """A run of the page. name: on one line. group: its number."""

    run: Run
    name: str
    look: Look
    group: int = 0


def look(group: int, place: int = 0) -> Look:
    """Colour by group, line style by the place of a run in it; styles also tell groups beyond the colours apart."""
    return Look(f"--g{group % COLOURS}", DASHES[(group // COLOURS + place) % len(DASHES)])


def device_of(runs: Sequence[Run]) -> str:
    """Whose hours count: GPUs', unless all that trained did so without one."""
    spent = [run.spent for run in runs if run.spent]
    return "CPU" if any(s.cpu_hours for s in spent) and not any(s.gpu_hours for s in spent) else "GPU"


def section(drawn: Sequence[Drawn], groups: Sequence[str] = ()) -> dict[str, Any]:
    """The values of section.html and script.html. groups: labels, by number."""
    runs = [one.run for one in drawn]
    shown, clocks = figures(runs), [clock(run) for run in runs]
    device = device_of(runs)
    axes = {"samples": "samples", "hours": "training hours", f"{device.lower()}_hours": f"{device}-hours"}
    known = {axis: label for axis, label in axes.items() if any(at[axis] for at in clocks)}
    told = [
        {"name": one.name, "group": one.group, **one.look._asdict(), "clock": {axis: at[axis] for axis in known}}
        for one, at in zip(drawn, clocks, strict=True)
    ]
    return {
        "figures": [{**figure, "rows": [_ends(series, drawn) for series in figure["series"]]} for figure in shown],
        "axes": known,
        "runs": drawn,
        "groups": groups,
        "data": {"figures": shown, "runs": told},
    }


def _ends(series: dict[str, Any], drawn: Sequence[Drawn]) -> dict[str, Any]:
    values = [value for value in series["y"] if value is not None]
    ends = {"first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values)}
    return {"name": drawn[series["run"]].name, **ends}
