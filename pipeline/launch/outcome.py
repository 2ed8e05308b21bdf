"""What a run came to: numbers and files for MLflow, and the closing words on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.files import read_json
from pipeline.launch.paths import RunPaths
from pipeline.tracking.evaluation import evaluation_artifacts, evaluation_metrics, evaluation_tags


def stage_metrics(paths: RunPaths, stage: str) -> dict[str, float]:
    """Numbers that a finished stage left, by metric name."""
    if stage == "manifest":
        manifest = read_json(paths.corpus / "manifest.json")
        counts = {f"ingest/outcome/{cause}": float(n) for cause, n in manifest["outcomes"].items()}
        return {"ingest/rows": manifest["rows"], "ingest/ok": manifest["ok"], **counts}
    if stage == "evaluate":
        return evaluation_metrics(read_json(paths.results / "aggregate.json"))
    return {}


def stage_tags(paths: RunPaths, stage: str) -> dict[str, str]:
    """What identifies what a finished stage made."""
    return evaluation_tags(read_json(paths.results / "aggregate.json")) if stage == "evaluate" else {}


def stage_artifacts(paths: RunPaths, stage: str) -> list[Path]:
    """Small files that tell what a finished stage did."""
    return {
        "plan": [paths.corpus / "plan.json", paths.recipe],
        "manifest": [paths.corpus / "manifest.json"],
        "train": [paths.train / "summary.json", paths.train / "recipe.yaml"],
        "export": [paths.model / "export.json"],
        "evaluate": evaluation_artifacts(paths.results),
        "report": [paths.root / "report.html", paths.root / "summary.json"],
    }.get(stage, [])


def print_outcome(paths: RunPaths) -> None:
    """The table of stages, the scores against chance, and where the report is."""
    summary = read_json(paths.root / "summary.json")
    console = Console()
    console.print(_stages_table(summary))
    if summary["evaluate"]:
        console.print(_scores_table(summary["evaluate"]))
    console.print(f"report:  {summary['report']}", soft_wrap=True)
    console.print(f"summary: {paths.root / 'summary.json'}", soft_wrap=True)


def _stages_table(summary: dict[str, Any]) -> Table:
    table = Table("stage", "status")
    table.add_column("seconds", justify="right")
    for name, entry in summary["stages"].items():
        table.add_row(name, entry["status"], f"{entry['seconds']:.1f}")
    return table


def _scores_table(scores: dict[str, Any]) -> Table:
    table = Table("task")
    for heading in ("score", "chance", "times chance"):
        table.add_column(heading, justify="right")
    for task, entry in scores.items():
        times = entry["score"] / entry["chance"] if entry["chance"] else float("nan")
        table.add_row(task, f"{entry['score']:.3f}", f"{entry['chance']:.4f}", f"{times:.1f}")
    return table
