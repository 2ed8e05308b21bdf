"""A comparison as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import text
from pipeline.files import atomic_open
from pipeline.pages.template import template
from pipeline.report.compare.comparison import Comparison
from pipeline.report.compare.estimates import Difference
from pipeline.report.compare.groups import Group, mean_over, mean_time, shown
from pipeline.report.compare.run import Run
from pipeline.report.compare.step_time import PARTS, shares, throughput
from pipeline.report.compare.words import summary
from pipeline.report.curves.section import Drawn, Look, device_of, look, section
from pipeline.report.summary import failed_by_cause
from pipeline.typed_files import Json

DARKEST = 0.42  # of a heat map: text on it still has contrast
FARTHEST = 3.0  # how much further than the largest difference the scale of intervals may reach


def render(comparison: Comparison) -> str:
    """The page. Whatever comes from data (names, captions, causes, paths) appears on it as text."""
    page = template("pipeline/report/compare/page.html", shade=_shade, place=_place)
    runs, overall, baseline = comparison.runs, comparison.scores.overall, comparison.baseline
    device = device_of(runs)
    gaps = [(line.section, line.title, line.differences(baseline)) for line in comparison.scores.tasks]
    if overall is not None:
        gaps.append(("", overall.title, overall.differences(baseline)))
    return page.render(
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
        runs=[_run(comparison, run) for run in runs],
        parts=_by_part([(line.section, line) for line in comparison.scores.tasks]),
        gaps=_by_part([(part, (title, _others(cells, baseline))) for part, title, cells in gaps]),
        reach=_reach([d for _, _, cells in gaps for d in cells if d is not None]),
        noise=_noise([cell.runs for line in comparison.scores.tasks for cell in line.cells if cell is not None]),
        curves=section([_drawn(comparison, run) for run in runs], [group.label for group in comparison.groups]),
        corpora=_corpora(runs),
        times=[_time(run) for run in runs if run.points],
        time_parts=PARTS,
        settings=[
            {"key": setting.key, "cells": [shown(value) for value in setting.values]} for setting in comparison.settings
        ],
        command=_command(comparison),
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """One self-contained HTML file."""
    html = render(comparison)
    with atomic_open(path, "w") as stream:
        stream.write(html)


def _title(comparison: Comparison) -> str:
    labels = [group.label for group in comparison.groups]
    if len(labels) > 3:
        return f"{len(comparison.runs)} runs"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if labels[1:] else labels)


def _drawn(comparison: Comparison, run: Run) -> Drawn:
    return Drawn(run, text.one_line(run.name), _look(comparison, run), comparison.group_of(run).number)


def _look(comparison: Comparison, run: Run) -> Look:
    group = comparison.group_of(run)
    return look(group.number, group.runs.index(run))


def _group(comparison: Comparison, group: Group, device: str) -> Json:
    overall, spent = comparison.scores.overall, mean_time(group)
    return {
        "look": look(group.number),
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


def _run(comparison: Comparison, run: Run) -> Json:
    overall = comparison.scores.overall
    return {
        "look": _look(comparison, run),
        "name": text.one_line(run.name),
        "group": comparison.group_of(run).label,
        "seed": text.MISSING if run.seed is None else run.seed,
        "state": run.state,
        "overall": overall.by_run.get(run.name) if overall else None,
        "loss": run.last_loss,
        "samples": run.samples_seen,
        "seconds": run.spent.train_seconds if run.spent else None,
        "missing": "; ".join(run.missing),
        "provenance": _provenance(run),
        "command": shlex.join(["neuclip", "run", str(run.folder / "recipe.yaml"), "--workdir", "NEW_FOLDER"]),
    }


def _provenance(run: Run) -> list[tuple[str, str]]:
    trained, export, code = run.trained or {}, run.export or {}, run.environment
    rows = [
        ("Folder", run.folder),
        ("Code", " ".join(str(code[key]) for key in ("version", "commit") if code.get(key))),
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
    return ", ".join(f"{text.one_line(text.words(name), 40)}: {text.count(rows)}" for name, rows in causes) or "–"


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


def _place(value: float, reach: float) -> float:
    """Where it lies on the scale from -reach to reach, in per cent of its width."""
    return round(50 + 50 * min(1.0, max(-1.0, value / reach)), 2)
