"""What MLflow should have of a run directory, from its files alone: the mirror's picture of how it should be.

the run ─┬─ ingest                  the run ─┬─ ingest
         ├─ train                            ├─ a member of the sweep ─┬─ train
         └─ evaluate                         │                         └─ evaluate
                                             └─ ...

An evaluation is of the weights that were exported last; what the server has of earlier ones stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.corpus_name import corpus_name
from pipeline.config.loader import parse
from pipeline.config.schema import TrackingConfig
from pipeline.errors import UserError
from pipeline.locks import is_held
from pipeline.run_files import AVERAGE, COMPLETE, EXPORTED, OUTCOMES, PLAN, RECIPE, SCORED, TRAINED, TRAINER_STATE
from pipeline.tracking.accepted import MetricPoint
from pipeline.tracking.names import FINAL
from pipeline.tracking.record import Model, RunRecord, datasets_of, mtime, points_of, small_files, told_of
from pipeline.tracking.states import Piece, Progress, beginnings, latest, of_stages, of_training
from pipeline.typed_files import Json, Reader

METRICS = "metrics.jsonl"
_INGEST = ("fabricate", "plan", "download", "verify", "manifest")
_EVALUATE = ("evaluate", "aggregate")


def tracking_of(root: Path) -> TrackingConfig:
    """The section `tracking` of a run directory's recipe. Raises UserError where there is none yet, or a wrong one."""
    config = _config(root)
    if not config:
        raise UserError(f"{root} is no run directory: it has neither plan.json nor train/recipe.yaml")
    return parse(TrackingConfig, config.get("tracking", {}), where=f"{root}: tracking")


def records(root: Path, read: Reader) -> list[RunRecord]:
    """The runs of a run directory that have begun, parents first.

    What damaged files would have told is not in them. Raises UserError where its plan or recipe is damaged.
    """
    plan, config = PLAN.read(root / "plan.json") or {}, _config(root)
    stages = [_Stage(entry) for entry in plan.get("stages", ())]
    members = [member["name"] for member in plan.get("members", ())]
    name = f"{config.get('name', 'run')} {root.name}"
    ingest = _ingest(read, root, config, of_stages(root, _pieces(stages, _INGEST)))
    if members:
        homes = [
            _home(read, root, root / "members" / member, f"members/{member}/", member, [*_of_member(stages, number)])
            for number, member in enumerate(members)
        ]
    else:
        homes = [_home(read, root, root, "", name, stages)]
    children = [ingest, *(record for home in homes for record in home)]
    whole = of_stages(root, _pieces(stages)) if stages else homes[0][0].progress
    if whole.state != "finished" and (is_held(root / ".lock") or any(c.progress.state == "running" for c in children)):
        whole = replace(whole, state="running")
    if members:
        top = RunRecord("", name, None, whole, config, _tags(config, whole), artifacts=_own_files(root))
    else:
        top, children = replace(homes[0][0], progress=whole), [ingest, *homes[0][1:]]
    return [top, *(child for child in children if child.progress.began_at is not None)]


@dataclass(frozen=True)
class _Stage:
    """A stage of plan.json. elements: those that count here."""

    entry: Json
    elements: range | None = None

    def pieces(self) -> Iterator[Piece]:
        for element in self.elements or range(self.entry["elements"]):
            yield self.entry["name"], element


def _of_member(stages: list[_Stage], number: int) -> Iterator[_Stage]:
    """The stages of one member of a sweep: of each its own elements."""
    for stage in stages:
        each = stage.entry.get("per_member", 0)
        if each:
            yield _Stage(stage.entry, range(number * each, (number + 1) * each))


def _pieces(stages: list[_Stage], names: tuple[str, ...] | None = None) -> Iterator[Piece]:
    for stage in stages:
        if names is None or stage.entry["name"] in names:
            yield from stage.pieces()


def _home(read: Reader, root: Path, home: Path, prefix: str, name: str, stages: list[_Stage]) -> list[RunRecord]:
    """The run of what one recipe made in a folder, its training, its evaluation."""
    key = prefix.rstrip("/")
    config = (read(RECIPE, home / "recipe.yaml") or {}) if key else _config(root)
    training = of_training(home / "train")
    if stages:
        training = latest(of_stages(root, _pieces(stages, ("train",))), training)
    whole = of_stages(root, _pieces(stages)) if stages else training
    own = RunRecord(
        key,
        name,
        None if key == "" else "",
        whole,
        config,
        _tags(config, whole, home / "train"),
        points=(*_final_points(read, home / "train"), *_scores(read, home)),
        artifacts=_own_files(home),
        model=_model(read, home),
    )
    return [own, _train(read, home, own, prefix, training), _evaluate(read, root, home, own, prefix, stages, config)]


def _ingest(read: Reader, root: Path, config: Json, progress: Progress) -> RunRecord:
    corpus = root / "corpora" / _corpus(config)
    manifest = read(OUTCOMES, corpus / "manifest.json") or {}
    at = mtime(corpus / "manifest.json")
    counts = {"data/rows": manifest.get("rows"), "data/ok": manifest.get("ok")}
    counts |= {f"data/outcome/{cause}": count for cause, count in manifest.get("outcomes", {}).items()}
    files = {name: corpus / name for name in ("corpus.yaml", "plan.json", "manifest.json")}
    report = {f"report/{path.name}": path for path in sorted((corpus / "report").glob("*"))}
    return RunRecord(
        "ingest",
        "ingest",
        "",
        progress,
        config.get("corpus", {}),
        told_of(progress),
        points=points_of(counts, 0, at),
        artifacts=small_files({**files, **report}),
        datasets=datasets_of([_of_manifest(corpus, manifest)] if manifest else [], "ingest"),
    )


def _train(read: Reader, home: Path, parent: RunRecord, prefix: str, progress: Progress) -> RunRecord:
    folder = home / "train"
    config = read(RECIPE, folder / "recipe.yaml") or {}
    files = {name: folder / name for name in ("recipe.yaml", "summary.json", "lives.jsonl")}
    begun = beginnings(folder)
    return RunRecord(
        f"{prefix}train",
        f"train {parent.name}",  # in a chart of many runs nothing shows whose child it is
        parent.key,
        progress,
        config,
        _tags(config, progress, folder),
        spools=(folder / METRICS, *sorted((folder / "system").glob("*.jsonl"))),
        artifacts={**small_files(files), **_checkpoints(read, folder / "checkpoints")},
        datasets=datasets_of(begun[-1].get("corpora", ()) if begun else (), "train"),
    )


def _evaluate(
    read: Reader, root: Path, home: Path, parent: RunRecord, prefix: str, stages: list[_Stage], config: Json
) -> RunRecord:
    """Of the weights that were exported last, each of which has a run of its own."""
    export, folder = _export(read, home), home / "results"
    aggregate = folder / "aggregate.json"
    weights = str(export.get("weights_sha256") or (read(AVERAGE, aggregate) or {}).get("checkpoint_sha256") or "")
    files = {p: read(AVERAGE if p == aggregate else SCORED, p) or {} for p in sorted(folder.glob("*.json"))}
    files = {path: result for path, result in files.items() if result.get("checkpoint_sha256") == weights}
    data = [
        {
            "name": task["task"],
            "source": config.get("evaluate", {}).get("data"),
            "fingerprint": task["data_fingerprint"],
        }
        for task in files.values()
        if {"task", "data_fingerprint"} <= task.keys()
    ]
    pieces = [*_pieces(stages, _EVALUATE)]
    progress = of_stages(root, pieces, since=mtime(home / "model" / "export.json"))
    if progress.began_at is None and files:  # by hand; or the same weights were exported again
        at = max(map(mtime, files))
        progress = replace(of_stages(root, pieces) if pieces else Progress("finished"), began_at=at, ended_at=at)
    averages = sorted(folder.glob("*.jsonl")) if aggregate in files else []
    return RunRecord(
        f"{prefix}evaluate",
        " ".join(("evaluate", parent.name, *([export["checkpoint"]] if "checkpoint" in export else []))),
        parent.key,
        progress,
        config.get("evaluate", {}),
        {**told_of(progress), **({"checkpoint_sha256": weights} if weights else {})},
        points=_scores(read, home),
        artifacts=small_files({path.name: path for path in (*files, *averages)}),
        datasets=datasets_of(data, "evaluate"),
        of=weights,
    )


def _corpus(config: Json) -> str:
    return corpus_name(str(config.get("corpus", {}).get("name", "")))


def _tags(config: Json, progress: Progress, train: Path | None = None) -> dict[str, str]:
    """What runs are told apart by."""
    begun = beginnings(train) if train else []
    last = begun[-1] if begun else {}
    tags = {
        "objective": config.get("objective"),
        "corpus": ", ".join(entry["name"] for entry in last.get("corpora", ())) or _corpus(config),
        "parent_checkpoint": config.get("model", {}).get("weights"),
        "lives": len(begun) or None,
        "mlflow.note.content": config.get("description"),
    }
    return {**{name: str(value) for name, value in tags.items() if value}, **told_of(progress)}


def _final_points(read: Reader, train: Path) -> tuple[MetricPoint, ...]:
    """What training came to, to sort runs by."""
    summary = read(TRAINED, train / "summary.json") or {}
    values = {metric: summary.get(name) for name, metric in FINAL.items()}
    return points_of(values, summary.get("samples_seen", 0), mtime(train / "summary.json"))


def _scores(read: Reader, home: Path) -> tuple[MetricPoint, ...]:
    seen = _export(read, home).get("samples_seen", 0)
    values = {f"eval/{name}": value for name, value in scores_of(_aggregate(read, home)).items()}
    return points_of(values, seen, mtime(home / "results" / "aggregate.json"))


def _export(read: Reader, home: Path) -> Json:
    return read(EXPORTED, home / "model" / "export.json") or {}


def _aggregate(read: Reader, home: Path) -> Json:
    """results/aggregate.json, unless it is still of the weights that were exported before these."""
    summary, exported = read(AVERAGE, home / "results" / "aggregate.json") or {}, _export(read, home)
    return summary if exported.get("weights_sha256") in (None, summary.get("checkpoint_sha256")) else {}


def scores_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The average, of groups and of tasks. summary: as in aggregate.json."""
    means = {name: value for name, value in summary.items() if name in ("average", "partial_mean")}
    groups = {f"group/{name}": entry["mean"] for name, entry in summary.get("groups", {}).items()}
    return {**means, **groups, **{name: entry["score"] for name, entry in summary.get("scores", {}).items()}}


def _model(read: Reader, home: Path) -> Model | None:
    weights = _export(read, home).get("weights_sha256")
    return Model(home / "model", weights, scores_of(_aggregate(read, home))) if weights else None


def _own_files(home: Path) -> dict[str, Path | bytes]:
    """Of a run as a whole: what was asked for, in which environment, and the report."""
    names = ("recipe.yaml", "plan.json", "environment.json", "summary.json", "report.html", "compare.html")
    figures = {f"figures/{p.relative_to(home / 'figures')}": p for p in sorted((home / "figures").rglob("*"))}
    return small_files({**{name: home / name for name in names}, **figures})


def _checkpoints(read: Reader, folder: Path) -> dict[str, Path | bytes]:
    """An index of the complete checkpoints: they themselves are too large."""
    index = []
    for complete in sorted(folder.glob("step-*/COMPLETE")):
        state = read(TRAINER_STATE, complete.with_name("trainer.json")) or {}
        sealed = read(COMPLETE, complete)
        if sealed is None:
            continue
        size = sum(entry["bytes"] for entry in sealed["files"].values())
        seen = {"step": state.get("step"), "samples_seen": state.get("samples_seen")}
        index.append({"path": str(complete.parent), **seen, "bytes": size, "saved_at": mtime(complete)})
    return {"checkpoints.json": json.dumps(index, indent=2).encode()} if index else {}


def _of_manifest(corpus: Path, manifest: Json) -> Json:
    known = {key: manifest.get(key) for key in ("rows", "ok", "licence")}
    return {"name": corpus.name, "source": str(corpus), "fingerprint": manifest.get("fingerprint", ""), **known}


def _config(root: Path) -> Json:
    """The resolved recipe of a run directory; {} where there is none. Raises UserError where it is damaged."""
    plan = PLAN.read(root / "plan.json") or {}
    return plan.get("config") or RECIPE.read(root / "train" / "recipe.yaml") or {}
