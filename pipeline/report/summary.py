"""RUN/summary.json: the run in numbers, in one shape whatever has run; what is missing is null."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.facts import Json, RunFacts, StageFacts

TRAIN_KEYS = ("steps", "final_loss", "tau", "log_normalizer_mse", "samples_per_second", "npn_share")


def summarise(facts: RunFacts, page: Path, seconds: float, stage: str = "report") -> Json:
    """The summary. page: where the report is. seconds: that it took; the marker of its own stage is not there yet."""
    return {
        "stages": {s.name: _own(seconds) if s.name == stage else _stage(s) for s in facts.stages},
        "ingest": facts.manifest and _ingest(facts.manifest),
        "train": facts.train and {key: facts.train.get(key) for key in TRAIN_KEYS},
        "evaluate": {r["task"]: {"score": r["score"], "chance": r["chance"]} for r in facts.results} or None,
        "mlflow": facts.mlflow and _mlflow(facts.mlflow),
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
