"""RUN/summary.json: the run in numbers, in one shape whatever has run; what is missing is null."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.facts import RunFacts, StageFacts
from pipeline.tracking.names import FINAL
from pipeline.typed_files import Json


def summarise(facts: RunFacts, page: Path, seconds: float, stage: str = "report") -> Json:
    """The summary. page: where the report is. seconds: that it took; the marker of its own stage is not there yet."""
    run = facts.run
    return {
        "stages": {s.name: _own(seconds) if s.name == stage else _stage(s) for s in facts.stages},
        "ingest": run.manifest and _ingest(run.manifest),
        "train": run.trained and {key: run.trained.get(key) for key in ("steps", *FINAL)},
        "evaluate": {r["task"]: {"score": r["score"], "chance": r.get("chance")} for r in run.scores.results} or None,
        "mlflow": run.mlflow and _mlflow(run.mlflow),
        "report": str(page),
    }


def failed_by_cause(manifest: Json) -> dict[str, int]:
    """Planned rows that did not become samples, by cause, most frequent first."""
    failed = {cause: count for cause, count in manifest["outcomes"].items() if cause != "ok"}
    return dict(sorted(failed.items(), key=lambda item: (-item[1], item[0])))


def _own(seconds: float) -> Json:
    return {"status": "done", "seconds": seconds}


def _stage(stage: StageFacts) -> Json:
    return {"status": stage.status, "seconds": stage.seconds}


def _ingest(manifest: Json) -> Json:
    return {"rows": manifest["rows"], "ok": manifest["ok"], "failed_by_cause": failed_by_cause(manifest)}


def _mlflow(mlflow: Json) -> Json:
    run_ids = {"parent": mlflow["parent_run_id"], **mlflow["runs"]}
    return {"tracking_uri": mlflow["tracking_uri"], "run_ids": run_ids}
