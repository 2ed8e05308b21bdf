"""What a run came to: numbers and files for MLflow, and the closing words on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.files import read_json
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.state import run_state
from pipeline.launch.status import print_status


def stage_metrics(paths: RunPaths, stage: str) -> dict[str, float]:
    """Numbers that a finished stage left, by metric name."""
    if stage == "manifest":
        manifest = read_json(paths.corpus / "manifest.json")
        counts = {f"ingest/outcome/{cause}": float(n) for cause, n in manifest["outcomes"].items()}
        return {"ingest/rows": manifest["rows"], "ingest/ok": manifest["ok"], **counts}
    if stage in ("evaluate", "aggregate") and (paths.results / "aggregate.json").exists():
        scores = read_json(paths.results / "aggregate.json")["scores"]
        return {f"eval/{task}": float(entry["score"]) for task, entry in scores.items()}
    return {}


def stage_artifacts(paths: RunPaths, stage: str) -> list[Path]:
    """Small files that tell what a finished stage did."""
    files = {
        "plan": [paths.corpus / "plan.json", paths.recipe],
        "manifest": [paths.corpus / "manifest.json"],
        "train": [paths.train / "summary.json", paths.train / "recipe.yaml"],
        "export": [paths.model / "export.json"],
        "evaluate": sorted(paths.results.glob("*.json")),
        "aggregate": [paths.results / "aggregate.json"],
        "report": [paths.home / "report.html", paths.home / "summary.json"],
        "compare": [paths.root / "summary.json"],
    }.get(stage, [])
    return [path for path in files if path.is_file()]


def print_outcome(run: Run, did_something: bool) -> None:
    """The table of stages, the scores against chance or those of a sweep's members, and where the report is.

    Where stages are left to do, as after `--only`, the state of the run.
    """
    paths, state = run.paths, run_state(run)
    if not did_something:
        print(f"Nothing to do: every stage {f'of {paths.root} ' if state.done else 'asked for '}is done.")
    if not state.done:
        print_status(run, state)
        return
    summary = read_json(paths.root / "summary.json")
    console = Console()
    console.print(_stages_table(summary))
    if "members" in summary:
        console.print(_members_table(summary["members"]))
    if summary["evaluate"]:
        console.print(_scores_table(summary["evaluate"]))
    console.print(f"report:  {summary['report']}", soft_wrap=True)
    console.print(f"summary: {paths.root / 'summary.json'}", soft_wrap=True)


def _stages_table(summary: dict[str, Any]) -> Table:
    table = Table("stage", "status")
    table.add_column("seconds", justify="right")
    for name, entry in summary["stages"].items():
        table.add_row(name, entry["status"], "" if entry["seconds"] is None else f"{entry['seconds']:.1f}")
    return table


def _members_table(members: dict[str, Any]) -> Table:
    """One row per member: loss, and the scores of the tasks that all of them have."""
    scores = {name: entry["evaluate"] or {} for name, entry in members.items()}
    tasks = [task for task in next(iter(scores.values())) if all(task in of for of in scores.values())]
    table = Table("member")
    for heading in ("final loss", *tasks):
        table.add_column(heading, justify="right")
    for name, entry in members.items():
        loss = (entry["train"] or {}).get("final_loss")
        row = [f"{scores[name][task]['score']:.3f}" for task in tasks]
        table.add_row(name, "" if loss is None else f"{loss:.4f}", *row)
    return table


def _scores_table(scores: dict[str, Any]) -> Table:
    table = Table("task")
    for heading in ("score", "chance", "times chance"):
        table.add_column(heading, justify="right")
    for task, entry in scores.items():
        times = entry["score"] / entry["chance"] if entry["chance"] else float("nan")
        table.add_row(task, f"{entry['score']:.3f}", f"{entry['chance']:.4f}", f"{times:.1f}")
    return table
