"""A comparison as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.files import atomic_open
from pipeline.report.compare import text
from pipeline.report.compare.comparison import Comparison
from pipeline.report.compare.curves import clock, figures
from pipeline.report.compare.estimates import Difference
from pipeline.report.compare.groups import Group, mean_over, mean_time, shown
from pipeline.report.compare.run import Run
from pipeline.report.compare.step_time import PARTS, shares, throughput
from pipeline.report.compare.words import summary
from pipeline.report.facts import Json
from pipeline.report.summary import failed_by_cause

COLOURS = 6  # --g0 to --g5 of page.css
DASHES = ((), (9, 4), (2, 3), (10, 3, 2, 3), (16, 5))  # pixels drawn, left out, drawn ...
DARKEST = 0.42  # of a heat map: text on it still has contrast
FOR_CURVES = ("name", "colour", "dash", "number", "clock")  # what the script is told of a run
FARTHEST = 3.0  # how much further than the largest difference the scale of intervals may reach


def render(comparison: Comparison) -> str:
    """The page. Whatever comes from data (names, captions, causes, paths) appears on it as text."""
    loader = PackageLoader("pipeline", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=text.count, short_count=text.short_count, number=text.number, percent=text.percent, points=text.points,
        hours=text.hours, duration=text.duration, shade=_shade, place=_place, breakable=_breakable,
    )  # fmt: skip
    runs, overall, baseline = comparison.runs, comparison.scores.overall, comparison.baseline
    drawn = figures(runs)
    device = _device(runs)
    gaps = [(line.section, line.title, line.differences(baseline)) for line in comparison.scores.tasks]
    if overall is not None:
        gaps.append(("", overall.title, overall.differences(baseline)))
    shown_runs = [_run(comparison, run, f"{device.lower()}_hours") for run in runs]

    def include_raw(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    return environment.get_template("report/compare/page.html").render(
        include_raw=include_raw,
        title=_title(comparison),
        written=datetime.now(tz=UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        summary=[text.one_line(sentence, 1000) for sentence in summary(comparison)],
        notes=[text.one_line(note, 1000) for note in comparison.notes],
        baseline=baseline,
        device=device,
        overall=overall,
        overall_title=overall.title if overall else "Average",
        tasks=len(comparison.scores.tasks),
        groups=[_group(comparison, group, device) for group in comparison.groups],
        runs=shown_runs,
        parts=_by_part([(line.section, line) for line in comparison.scores.tasks]),
        gaps=_by_part([(part, (title, _others(cells, baseline))) for part, title, cells in gaps]),
        reach=_reach([d for _, _, cells in gaps for d in cells if d is not None]),
        noise=_noise([cell.runs for line in comparison.scores.tasks for cell in line.cells if cell is not None]),
        figures=[{**figure, "rows": _ends(figure, runs)} for figure in drawn],
        axes=[("samples", "samples"), ("hours", "training hours"), (f"{device.lower()}_hours", f"{device}-hours")],
        corpora=_corpora(runs),
        times=[_time(run) for run in runs if run.points],
        time_parts=PARTS,
        settings=[
            {"key": setting.key, "cells": [shown(value) for value in setting.values]} for setting in comparison.settings
        ],
        command=_command(comparison),
        data={"figures": drawn, "runs": [{key: run[key] for key in FOR_CURVES} for run in shown_runs]},
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """One self-contained HTML file."""
    html = render(comparison)
    with atomic_open(path, "w") as stream:
        stream.write(html)


def _device(runs: Sequence[Run]) -> str:
    """Whose hours count: GPUs', unless all that trained did so without one."""
    spent = [run.spent for run in runs if run.spent]
    return "CPU" if any(s.cpu_hours for s in spent) and not any(s.gpu_hours for s in spent) else "GPU"


def _title(comparison: Comparison) -> str:
    labels = [group.label for group in comparison.groups]
    if len(labels) > 3:
        return f"{len(comparison.runs)} runs"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if labels[1:] else labels)


def _look(group: Group, place: int = 0) -> Json:
    """Colour by group, line style by the place of a run in it; styles also tell groups beyond the colours apart."""
    style = DASHES[(group.number // COLOURS + place) % len(DASHES)]
    return {"colour": f"--g{group.number % COLOURS}", "dash": list(style)}


def _group(comparison: Comparison, group: Group, device: str) -> Json:
    overall, spent = comparison.scores.overall, mean_time(group)
    return {
        **_look(group),
        "number": group.number,
        "label": group.label,
        "runs": len(group.runs),
        "overall": overall.cells[group.number] if overall else None,
        "best": overall is not None and overall.best == group.number,
        "difference": overall.differences(comparison.baseline)[group.number] if overall else None,
        "wins": sum(line.best == group.number for line in comparison.scores.tasks),
        "samples": mean_over(group, lambda run: run.samples_seen),
        "seconds": spent.train_seconds,
        "device_hours": spent.cpu_hours if device == "CPU" else spent.gpu_hours,
        "rate": mean_over(group, lambda run: throughput(run).samples_per_second),
    }


def _run(comparison: Comparison, run: Run, device_hours: str) -> Json:
    group = comparison.group_of(run)
    overall = comparison.scores.overall
    axes = clock(run)
    return {
        **_look(group, group.runs.index(run)),
        "name": text.one_line(run.name),
        "group": group.label,
        "number": group.number,
        "seed": text.MISSING if run.seed is None else run.seed,
        "state": run.state,
        "overall": overall.by_run.get(run.name) if overall else None,
        "loss": next((p.metrics["train/loss"] for p in reversed(run.points) if "train/loss" in p.metrics), None),
        "samples": run.samples_seen,
        "seconds": run.spent.train_seconds if run.spent else None,
        "missing": "; ".join(run.missing),
        "clock": {axis: axes[axis] for axis in ("samples", "hours", device_hours)},
        "provenance": _provenance(run),
        "command": shlex.join(["neuclip", "run", str(run.folder / "recipe.yaml"), "--workdir", "NEW_FOLDER"]),
    }


def _provenance(run: Run) -> list[tuple[str, str]]:
    trained, export, code = run.trained or {}, run.export or {}, run.environment
    version = (
        f"{code.get('version', '')} {code.get('commit') or ''}{' with changes' if code.get('uncommitted') else ''}"
    )
    rows = [
        ("Folder", run.folder),
        ("Code", " ".join(word for word in version if word)),
        ("Written on", code.get("host")),
        ("Evaluation code", ", ".join(sorted({str(result.get("code_version")) for result in run.scores.results}))),
        ("Checkpoint", export.get("checkpoint")),
        ("Weights, sha256", export.get("weights_sha256")),
        ("Manifest", trained.get("manifest_fingerprint") or (run.manifest or {}).get("fingerprint")),
        ("Order of samples", trained.get("order_digest")),
        ("Ranks", trained.get("world_size")),
        ("MLflow run", (run.mlflow or {}).get("parent_run_id")),
        ("Why it failed", run.failure),
    ]
    return [(name, text.one_line(value, 400)) for name, value in rows if value not in (None, "")]


def _by_part(entries: Sequence[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Entries by the part of the benchmark that they count in, with the part in words; parts as they first come."""
    parts: dict[str, list[Any]] = {}
    for part, entry in entries:
        parts.setdefault(part.replace("_", " "), []).append(entry)
    return list(parts.items())


def _others(cells: list[Difference | None], baseline: int) -> list[Difference | None]:
    return [cell for number, cell in enumerate(cells) if number != baseline]


def _reach(differences: Sequence[Difference]) -> float:
    """How far the scale of differences goes to either side: wide intervals are cut before they hide the dots."""
    values = [abs(d.value) for d in differences]
    ends = [abs(end) for d in differences for end in (d.low, d.high) if end is not None]
    reach = max(min(max(ends, default=0), FARTHEST * max(values, default=0)), 0.01)
    step = 10 ** math.floor(math.log10(reach)) / 2
    return math.ceil(reach / step) * step


def _noise(runs: Sequence[int]) -> str:
    """Where the intervals come from. runs: behind each of the scores."""
    seeds = "From the standard errors over the runs of a group, by Student's t with Welch's degrees of freedom."
    images = (
        "Of a single run only the noise of a task's images is known (binomial; an approximation for other metrics than "
        "accuracy), which says nothing of another seed."
    )
    told = [seeds] if any(count > 1 for count in runs) else []
    return " ".join([*told, images] if 1 in runs else told)


def _ends(figure: Json, runs: Sequence[Run]) -> list[Json]:
    rows = []
    for series in figure["series"]:
        values = [value for value in series["y"] if value is not None]
        ends = {"first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values)}
        rows.append({"name": text.one_line(runs[series["run"]].name), **ends})
    return rows


def _corpora(runs: Sequence[Run]) -> list[Json]:
    """One row per corpus that the runs' folders hold, however many runs share it."""
    found: dict[str, tuple[Json, list[Run]]] = {}
    for run in runs:
        if run.manifest is not None:
            found.setdefault(str(run.manifest.get("fingerprint")), (run.manifest, []))[1].append(run)
    return [
        {
            "title": text.one_line(manifest.get("title") or manifest.get("corpus") or users[0].corpus),
            "runs": "all" if len(users) == len(runs) else text.one_line(", ".join(run.name for run in users), 200),
            "fingerprint": fingerprint[:16],
            "causes": _causes(manifest),
            "share": manifest["ok"] / manifest["rows"] if manifest.get("rows") else None,
            **{key: manifest.get(key) for key in ("rows_read", "rows", "ok")},
        }
        for fingerprint, (manifest, users) in found.items()
    ]


def _causes(manifest: Json) -> str:
    causes = list(failed_by_cause(manifest).items())[:3]
    return ", ".join(f"{text.one_line(name.replace('_', ' '), 40)} {text.count(rows)}" for name, rows in causes) or "–"


def _time(run: Run) -> Json:
    speed = throughput(run)
    return {
        "name": text.one_line(run.name),
        "rate": speed.samples_per_second,
        "ranks": speed.ranks,
        "per_rank": speed.per_rank,
        "shares": shares(run),
    }


def _command(comparison: Comparison) -> str:
    options = ["--group-by", comparison.group_by] if comparison.group_by else []
    options += ["--baseline", comparison.groups[comparison.baseline].label, "--html", "compare.html"]
    return shlex.join(["neuclip", "compare", *(str(run.folder) for run in comparison.runs), *options])


def _shade(mean: float, chance: float | None) -> str:
    """Opacity of a cell: none at chance, the darkest at 1."""
    low = chance or 0.0
    return f"{DARKEST * min(1.0, max(0.0, (mean - low) / (1 - low))):.3f}"


def _breakable(name: str) -> Markup:
    """A name with places where a narrow column may break it."""
    return Markup(re.sub(r"([,/=._-])", r"\1<wbr>", str(escape(name))))


def _place(value: float, reach: float) -> float:
    """Where it lies on the scale from -reach to reach, in per cent of its width."""
    return round(50 + 50 * min(1.0, max(-1.0, value / reach)), 2)
