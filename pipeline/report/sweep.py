"""A sweep in numbers: what its members share, and a row for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report.facts import RunFacts
from pipeline.report.summary import summarise
from pipeline.run_files import AVERAGE, SUMMARY
from pipeline.typed_files import Json, Reader


def summarise_sweep(facts: RunFacts, page: Path, seconds: float) -> Json:
    """RUN/summary.json: `summarise` of what members share, and `members`: name to settings, train, evaluate, ..."""
    folder = facts.run.folder / "members"
    shared = summarise(facts, page, seconds, stage="compare")
    members = {m["name"]: _member(folder / m["name"], m, facts.run.read) for m in facts.plan["members"]}
    return {**shared, "members": members}


def _member(folder: Path, member: Json, read: Reader) -> dict[str, Any]:
    summary = read(SUMMARY, folder / "summary.json") or {}
    aggregate = read(AVERAGE, folder / "results" / "aggregate.json") or {}
    return {
        "settings": member["overrides"],
        "train": summary.get("train"),
        "evaluate": summary.get("evaluate"),
        "average": aggregate.get("average"),
        "report": summary.get("report"),
    }
