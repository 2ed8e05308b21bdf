"""The facts of a run as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata

import yaml

from pipeline import text
from pipeline.pages.contact_sheet import contact_sheet
from pipeline.pages.template import template
from pipeline.report.curves.section import Drawn, look, section
from pipeline.report.facts import RunFacts, StageFacts
from pipeline.report.summary import failed_by_cause
from pipeline.typed_files import Json

LIBRARIES = (
    "neuclip-pipeline",
    "torch",
    "deepspeed",
    "open_clip_torch",
    "img2dataset",
    "webdataset",
    "mlflow",
)


def render(facts: RunFacts) -> str:
    """The page. Whatever comes from data (captions, names, causes, paths) appears on it as text."""
    page = template("pipeline/report/page.html")
    run = facts.run
    return page.render(
        facts=facts,
        run=run,
        config=facts.config,
        started=_date(min((s.started_at for s in facts.stages if s.started_at), default=None)),
        stages_done=sum(stage.status == "done" or stage.name == "report" for stage in facts.stages),
        total_seconds=sum(stage.seconds or 0 for stage in facts.stages) or None,
        outcomes=_outcomes(run.manifest),
        curves=section([Drawn(run, text.one_line(run.name), look(0))]),
        scores=_scores(facts),
        thumbnails=contact_sheet(run.corpus_folder),
        mlflow_ui=_mlflow_ui(facts),
        rerun=shlex.join(["neuclip", "run", str(run.folder / "recipe.yaml"), "--workdir", "NEW_FOLDER"]),
        commands=[(stage.name, commands) for stage in facts.stages if (commands := _commands(stage))],
        provenance=_provenance(facts),
        recipe=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True),
    )


def _outcomes(manifest: Json | None) -> list[Json]:
    """Every row that was read and what became of it: {label, count, share of the rows read, kind}."""
    if manifest is None:
        return []
    dropped = sorted(manifest.get("dropped", {}).items(), key=lambda item: (-item[1], item[0]))
    rows = [("kept as samples", manifest["ok"], "ok")]
    rows += [(text.words(cause), count, "failed") for cause, count in failed_by_cause(manifest).items()]
    rows += [(f"{text.words(reason)}, not downloaded", count, "dropped") for reason, count in dropped]
    total = sum(count for _, count, _ in rows) or 1
    return [{"label": label, "count": n, "share": n / total, "kind": kind} for label, n, kind in rows]


def _scores(facts: RunFacts) -> list[Json]:
    return [
        {
            **result,
            "title": result.get("title") or result["task"],
            "times_chance": result["score"] / result["chance"] if result.get("chance") else None,
        }
        for result in facts.run.scores.results
    ]


def _mlflow_ui(facts: RunFacts) -> Json | None:
    """How to open the MLflow UI: {command} for a local store, {address} of a server; None where nothing was tracked."""
    if facts.run.mlflow is None:
        return None
    uri = facts.run.mlflow["tracking_uri"]
    if uri.startswith(("http://", "https://")):
        return {"address": uri, "command": None}
    return {"address": None, "command": shlex.join(["neuclip", "ui", str(facts.run.folder)])}


def _commands(stage: StageFacts) -> list[str]:
    """The stage's commands as they are typed: our own by the names of their console scripts."""
    scripts = {
        (sys.executable, "-m", "pipeline"): "neuclip",
        (sys.executable, "-m", "data_prep"): "data-prep",
    }
    commands = []
    for marker in stage.markers:
        argv = marker.get("command", [])
        script = scripts.get(tuple(argv[:3]))
        commands.append(shlex.join([script, *argv[3:]] if script else argv))
    return commands


def _provenance(facts: RunFacts) -> list[tuple[str, str]]:
    run = facts.run
    manifest, train, export = run.manifest or {}, run.trained or {}, run.export or {}
    versions = [f"{name} {version}" for name in LIBRARIES if (version := _version(name))]
    rows = [
        ("Run directory", run.folder),
        ("Seed", run.seed),
        ("Plan", facts.plan.get("fingerprint")),
        ("Corpus", ", ".join(str(manifest[key]) for key in ("title", "source") if manifest.get(key))),
        ("Licence of the corpus", manifest.get("licence")),
        ("Manifest", manifest.get("fingerprint")),
        ("Order of samples", train.get("order_digest")),
        ("Processes", train.get("world_size")),
        ("Checkpoint", export.get("checkpoint")),
        ("Weights, sha256", export.get("weights_sha256")),
        ("MLflow run", run.mlflow and run.mlflow["parent_run_id"]),
        (
            "Versions where this page was written",
            ", ".join([f"Python {platform.python_version()}", *versions]),
        ),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
