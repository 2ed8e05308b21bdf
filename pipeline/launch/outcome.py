"""What a run came to: numbers and files for MLflow, and the closing words on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import UserError
from pipeline.launch.run import Run
from pipeline.launch.state import run_state
from pipeline.launch.status import print_status
from pipeline.run_files import SUMMARY


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
    summary = SUMMARY.read(paths.root / "summary.json")
    if summary is None:
        raise UserError(f"no {paths.root / 'summary.json'}: neuclip report {paths.root} writes it again")
    console = Console()
    console.print(_stages_table(summary))
    if "members" in summary:
        console.print(_members_table(summary["members"]))
    if summary["evaluate"]:
        console.print(_scores_table(summary["evaluate"]))
    console.print(f"report:  {paths.root / ('compare.html' if paths.members else 'report.html')}", soft_wrap=True)
    console.print(f"summary: {paths.root / 'summary.json'}", soft_wrap=True)


def _stages_table(summary: dict[str, Any]) -> Table:
    table = Table("stage", "status")
    table.add_column("seconds", justify="right")
    for name, entry in summary["stages"].items():
        table.add_row(name, entry["status"], "" if entry.get("seconds") is None else f"{entry['seconds']:.1f}")
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
        chance = entry.get("chance")  # None, or 0, of tasks in no average
        against = (f"{chance:.4f}", f"{entry['score'] / chance:.1f}") if chance else ("", "")
        table.add_row(task, f"{entry['score']:.3f}", *against)
    return table
