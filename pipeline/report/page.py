"""The facts of a run as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.contact_sheet import contact_sheet
from pipeline.report.facts import Json, RunFacts, StageFacts
from pipeline.report.figures import training_figures
from pipeline.report.summary import failed_by_cause

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
    loader = PackageLoader("pipeline", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        {"count": _count, "number": _number, "percent": _percent, "duration": _duration, "words": _words}
    )

    def include_raw(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    return environment.get_template("report/page.html").render(
        facts=facts,
        config=facts.config,
        started=_date(min((s.started_at for s in facts.stages if s.started_at), default=None)),
        stages_done=sum(stage.status == "done" or stage.name == "report" for stage in facts.stages),
        total_seconds=sum(stage.seconds or 0 for stage in facts.stages) or None,
        outcomes=_outcomes(facts.manifest),
        figures=training_figures(facts.points),
        scores=_scores(facts),
        thumbnails=contact_sheet(facts.corpus),
        mlflow_ui=_mlflow_ui(facts.mlflow),
        rerun=shlex.join(["neuclip", "run", str(facts.run_dir / "recipe.yaml"), "--workdir", "NEW_FOLDER"]),
        commands=[(stage.name, commands) for stage in facts.stages if (commands := _commands(stage))],
        provenance=_provenance(facts),
        recipe=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True),
        include_raw=include_raw,
        plotly=Markup(get_plotlyjs()),
    )


def _outcomes(manifest: Json | None) -> list[Json]:
    """Every row that was read and what became of it: {label, count, share of the rows read, kind}."""
    if manifest is None:
        return []
    dropped = sorted(manifest["dropped"].items(), key=lambda item: (-item[1], item[0]))
    rows = [("kept as samples", manifest["ok"], "ok")]
    rows += [(_words(cause), count, "failed") for cause, count in failed_by_cause(manifest).items()]
    rows += [(f"{_words(reason)}, not downloaded", count, "dropped") for reason, count in dropped]
    total = sum(count for _, count, _ in rows) or 1
    return [{"label": label, "count": n, "share": n / total, "kind": kind} for label, n, kind in rows]


def _scores(facts: RunFacts) -> list[Json]:
    return [
        {
            **result,
            "title": result.get("title") or result["task"],
            "times_chance": result["score"] / result["chance"] if result["chance"] else None,
        }
        for result in facts.results
    ]


def _mlflow_ui(mlflow: Json | None) -> Json | None:
    """How to open the MLflow UI: {command} for a local store, {address} for a server."""
    if mlflow is None:
        return None
    uri = mlflow["tracking_uri"]
    if uri.startswith(("http://", "https://")):
        return {"address": uri, "command": None}
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", "5000"]
    return {"address": "http://127.0.0.1:5000", "command": shlex.join(["mlflow", "ui", *arguments])}


def _commands(stage: StageFacts) -> list[str]:
    """The stage's commands as they are typed: our own by the names of their console scripts."""
    scripts = {
        (sys.executable, "-m", "pipeline"): "neuclip",
        (sys.executable, "-m", "data_prep"): "data-prep",
    }
    commands = []
    for marker in stage.markers:
        argv = marker["command"]
        script = scripts.get(tuple(argv[:3]))
        commands.append(shlex.join([script, *argv[3:]] if script else argv))
    return commands


def _provenance(facts: RunFacts) -> list[tuple[str, str]]:
    manifest, train, export = facts.manifest or {}, facts.train or {}, facts.export or {}
    versions = [f"{name} {version}" for name in LIBRARIES if (version := _version(name))]
    rows = [
        ("Run directory", facts.run_dir),
        ("Seed", facts.config["seed"]),
        ("Plan", facts.plan.get("fingerprint")),
        ("Corpus", ", ".join(str(manifest[key]) for key in ("title", "source") if manifest.get(key))),
        ("Licence of the corpus", manifest.get("licence")),
        ("Manifest", manifest.get("fingerprint")),
        ("Order of samples", train.get("order_digest")),
        ("Processes", train.get("world_size")),
        ("Checkpoint", export.get("checkpoint")),
        ("Weights, sha256", export.get("weights_sha256")),
        ("MLflow run", facts.mlflow and facts.mlflow["parent_run_id"]),
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


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: Any) -> str:
    """Four significant digits, or a dash for what is missing."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _duration(seconds: float | None) -> str:
    """The two largest units: 2 h 5 min, 3 min 20 s, 45 s; tenths below ten seconds."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _words(name: str) -> str:
    """`http_404` -> `HTTP 404`, `opt_out` -> `opt out`."""
    return str(name).replace("http_", "HTTP ").replace("_", " ")
