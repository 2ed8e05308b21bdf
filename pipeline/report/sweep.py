"""A sweep in numbers: what its members share, and a row for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import read_object
from pipeline.report.facts import Json, RunFacts
from pipeline.report.summary import summarise


def summarise_sweep(facts: RunFacts, seconds: float) -> Json:
    """RUN/summary.json: `summarise` of what members share, and `members`: name to settings, train, evaluate, ..."""
    folder = facts.run_dir / "members"
    shared = summarise(facts, folder, seconds, stage="compare")
    members = {member["name"]: _member(folder / member["name"], member) for member in facts.plan["members"]}
    return {**shared, "members": members}


def _member(folder: Path, member: Json) -> dict[str, Any]:
    summary = read_object(folder / "summary.json") or {}
    aggregate = read_object(folder / "results" / "aggregate.json") or {}
    return {
        "settings": member["overrides"],
        "train": summary.get("train"),
        "evaluate": summary.get("evaluate"),
        "average": aggregate.get("average"),
        "report": summary.get("report"),
    }
