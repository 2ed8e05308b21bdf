"""What MLflow should have of a run directory, from its files alone: the mirror's picture of how it should be.

the run ─┬─ ingest                  the run ─┬─ ingest
         ├─ train                            ├─ a member of the sweep ─┬─ train
         └─ evaluate                         │                         └─ evaluate
                                             └─ ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import TrackingConfig
from pipeline.errors import UserError
from pipeline.files import read_object
from pipeline.locks import is_held
from pipeline.tracking.mlflow import Dataset, MetricPoint, dataset_of
from pipeline.tracking.states import Piece, Progress, beginnings, latest, of_stages, of_training

Json = dict[str, Any]
ARTIFACT_BYTES = 100 * 2**20  # a larger file is no artifact: something is in the wrong place
TOLD_LENGTH = 4000
METRICS = "metrics.jsonl"
# Of RUN/train/summary.json, by the names of its curves.
FINAL = {
    "final_loss": "train/loss",
    "tau": "train/tau",
    "samples_per_second": "train/samples_per_second",
    "log_normalizer_mse": "npn/log_normalizer_mse",
    "npn_share": "npn/share",
}
_INGEST = ("fabricate", "plan", "download", "verify", "manifest")
_EVALUATE = ("evaluate", "aggregate")


@dataclass(frozen=True)
class Model:
    """An exported model. folder: its files. scores: by task, and the average."""

    folder: Path
    weights_sha256: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One MLflow run as it should be. key: which run of the directory; parent: the key of its parent.

    spools: files of points; points: what is known besides. artifacts: by their name there.
    """

    key: str
    name: str
    parent: str | None
    progress: Progress
    settings: Json = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    spools: tuple[Path, ...] = ()
    points: tuple[MetricPoint, ...] = ()
    artifacts: Mapping[str, Path | bytes] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    model: Model | None = None


def tracking_of(root: Path) -> TrackingConfig:
    """The section `tracking` of a run directory's recipe. Raises UserError where there is no recipe (yet)."""
    config = _config(root)
    if not config:
        raise UserError(f"{root} is no run directory: it has neither plan.json nor train/recipe.yaml")
    return TrackingConfig.model_validate(config.get("tracking", {}))


def records(root: Path) -> list[RunRecord]:
    """The runs of a run directory that have begun, parents first."""
    plan, config = _json(root / "plan.json"), _config(root)
    stages = [_Stage(entry) for entry in plan.get("stages", ())]
    members = [str(member["name"]) for member in plan.get("members", ())]
    name = f"{config.get('name', 'run')} {root.name}"
    ingest = _ingest(root, config, of_stages(root, _pieces(stages, _INGEST)))
    if members:
        homes = [
            _home(root, root / "members" / member, f"members/{member}/", member, [*_of_member(stages, number)])
            for number, member in enumerate(members)
        ]
    else:
        homes = [_home(root, root, "", name, stages)]
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


def _home(root: Path, home: Path, prefix: str, name: str, stages: list[_Stage]) -> list[RunRecord]:
    """The run of what one recipe made in a folder, its training, its evaluation."""
    key = prefix.rstrip("/")
    config = _yaml(home / "recipe.yaml") if key else _config(root)
    training = of_training(home / "train")
    if stages:
        training = latest(of_stages(root, _pieces(stages, ("train",))), training)
    evaluating = of_stages(root, _pieces(stages, _EVALUATE))
    whole = of_stages(root, _pieces(stages)) if stages else training
    own = RunRecord(
        key,
        name,
        None if key == "" else "",
        whole,
        config,
        _tags(config, whole, home / "train"),
        points=(*_final_points(home / "train"), *_scores(home)),
        artifacts=_own_files(home),
        model=_model(home),
    )
    return [own, _train(home, prefix, key, training), _evaluate(home, prefix, key, evaluating, config)]


def _ingest(root: Path, config: Json, progress: Progress) -> RunRecord:
    corpus = root / "corpora" / Path(str(config.get("corpus", {}).get("name", ""))).stem
    manifest = _json(corpus / "manifest.json")
    at = _mtime(corpus / "manifest.json")
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
        _told(progress),
        points=_points(counts, 0, at),
        artifacts=_small({**files, **report}),
        datasets=_datasets([_of_manifest(corpus, manifest)] if manifest else [], "ingest"),
    )


def _train(home: Path, prefix: str, parent: str, progress: Progress) -> RunRecord:
    folder = home / "train"
    config = _yaml(folder / "recipe.yaml")
    files = {name: folder / name for name in ("recipe.yaml", "summary.json", "lives.jsonl")}
    begun = beginnings(folder)
    return RunRecord(
        f"{prefix}train",
        "train",
        parent,
        progress,
        config,
        _tags(config, progress, folder),
        spools=(folder / METRICS, *sorted((folder / "system").glob("*.jsonl"))),
        artifacts={**_small(files), **_checkpoints(folder / "checkpoints")},
        datasets=_datasets(begun[-1].get("corpora", ()) if begun else (), "train"),
    )


def _evaluate(home: Path, prefix: str, parent: str, progress: Progress, config: Json) -> RunRecord:
    results = sorted([*(home / "results").glob("*.json"), *(home / "results").glob("*.jsonl")])
    read = [_json(path) for path in results if path.suffix == ".json"]
    data = [
        {
            "name": task["task"],
            "source": config.get("evaluate", {}).get("data"),
            "fingerprint": task["data_fingerprint"],
        }
        for task in read
        if {"task", "data_fingerprint"} <= task.keys()
    ]
    return RunRecord(
        f"{prefix}evaluate",
        "evaluate",
        parent,
        progress,
        config.get("evaluate", {}),
        _told(progress),
        points=_scores(home),
        artifacts=_small({path.name: path for path in results}),
        datasets=_datasets(data, "evaluate"),
    )


def _tags(config: Json, progress: Progress, train: Path | None = None) -> dict[str, str]:
    """What runs are told apart by."""
    begun = beginnings(train) if train else []
    last = begun[-1] if begun else {}
    tags = {
        "objective": config.get("objective"),
        "corpus": ", ".join(entry["name"] for entry in last.get("corpora", ())) or config.get("corpus", {}).get("name"),
        "parent_checkpoint": config.get("model", {}).get("weights"),
        "lives": len(begun) or None,
        "mlflow.note.content": config.get("description"),
    }
    return {**{name: str(value) for name, value in tags.items() if value}, **_told(progress)}


def _told(progress: Progress) -> dict[str, str]:
    """Hosts, nodes, jobs: all that there were, the latest ones where that is too long for a tag."""
    names = {"commit": "mlflow.source.git.commit"}
    return {names.get(name, name): ", ".join(values)[-TOLD_LENGTH:] for name, values in progress.told.items()}


def _final_points(train: Path) -> tuple[MetricPoint, ...]:
    """What training came to, to sort runs by."""
    summary = _json(train / "summary.json")
    values = {metric: summary.get(name) for name, metric in FINAL.items()}
    return _points(values, int(summary.get("samples_seen", 0)), _mtime(train / "summary.json"))


def _scores(home: Path) -> tuple[MetricPoint, ...]:
    file = home / "results" / "aggregate.json"
    seen = int(_json(home / "model" / "export.json").get("samples_seen", 0))
    return _points({f"eval/{name}": value for name, value in scores_of(_json(file)).items()}, seen, _mtime(file))


def scores_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The average, of groups and of tasks. summary: as in aggregate.json."""
    means = {name: value for name, value in summary.items() if name in ("average", "partial_mean")}
    groups = {f"group/{name}": entry["mean"] for name, entry in summary.get("groups", {}).items()}
    return {**means, **groups, **{name: entry["score"] for name, entry in summary.get("scores", {}).items()}}


def _model(home: Path) -> Model | None:
    weights = _json(home / "model" / "export.json").get("weights_sha256")
    return Model(home / "model", weights, scores_of(_json(home / "results" / "aggregate.json"))) if weights else None


def _own_files(home: Path) -> dict[str, Path | bytes]:
    """Of a run as a whole: what was asked for, in which environment, and the report."""
    names = ("recipe.yaml", "plan.json", "environment.json", "summary.json", "report.html")
    figures = {f"figures/{p.relative_to(home / 'figures')}": p for p in sorted((home / "figures").rglob("*"))}
    return _small({**{name: home / name for name in names}, **figures})


def _checkpoints(folder: Path) -> dict[str, Path | bytes]:
    """An index of the complete checkpoints: they themselves are too large."""
    index = []
    for complete in sorted(folder.glob("step-*/COMPLETE")):
        state, files = _json(complete.with_name("trainer.json")), _json(complete).get("files", {})
        size = sum(entry["bytes"] for entry in files.values())
        seen = {"step": state.get("step"), "samples_seen": state.get("samples_seen")}
        index.append({"path": str(complete.parent), **seen, "bytes": size, "saved_at": _mtime(complete)})
    return {"checkpoints.json": json.dumps(index, indent=2).encode()} if index else {}


def _datasets(entries: Iterable[Mapping[str, Any]], context: str) -> tuple[Dataset, ...]:
    """entries: name, source (folder or URL), fingerprint, and what else is known."""
    return tuple(
        dataset_of(
            Dataset(
                str(entry["name"]),
                str(entry["fingerprint"]),
                json.dumps({"uri": entry.get("source")}),
                context,
                json.dumps({key: value for key, value in entry.items() if key not in ("name", "source")}),
            )
        )
        for entry in entries
    )


def _of_manifest(corpus: Path, manifest: Json) -> Json:
    known = {key: manifest.get(key) for key in ("rows", "ok", "licence")}
    return {"name": corpus.name, "source": str(corpus), "fingerprint": manifest.get("fingerprint", ""), **known}


def _points(values: Mapping[str, Any], step: int, at: float) -> tuple[MetricPoint, ...]:
    return tuple(
        MetricPoint(name, float(value), step, at) for name, value in values.items() if isinstance(value, int | float)
    )


def _small(files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    return {name: path for name, path in files.items() if path.is_file() and path.stat().st_size <= ARTIFACT_BYTES}


def _config(root: Path) -> Json:
    """The resolved recipe of a run directory; {} where there is none."""
    return dict(_json(root / "plan.json").get("config", {})) or _yaml(root / "train" / "recipe.yaml")


def _json(file: Path) -> Json:
    """A JSON object; {} where there is no file, or not one that can be read."""
    return read_object(file) or {}


def _yaml(file: Path) -> Json:
    """The same of a YAML file."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _mtime(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0
