"""What the stages of a run have left behind, as far as it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config.loader import read_yaml
from pipeline.errors import UserError
from pipeline.files import read_object
from pipeline.tracking.directory import known_runs
from pipeline.tracking.jsonl import Point, read_points

Json = dict[str, Any]


@dataclass(frozen=True)
class StageFacts:
    """One stage of the plan and the markers of its elements that are done.

    seconds: of all its elements, added up. started_at: unix seconds of the first, None before it ran.
    """

    name: str
    elements: int
    markers: list[Json]

    @property
    def status(self) -> Literal["done", "incomplete", "not run"]:
        if len(self.markers) == self.elements:
            return "done"
        return "incomplete" if self.markers else "not run"

    @property
    def seconds(self) -> float | None:
        return sum(marker["seconds"] for marker in self.markers) if self.markers else None

    @property
    def started_at(self) -> float | None:
        return min((marker["started_at"] for marker in self.markers), default=None)


@dataclass(frozen=True)
class RunFacts:
    """A run directory, read. What a stage that has not run would have left is None or empty.

    plan, manifest, train, aggregate, export, mlflow: the JSON files of docs/architecture.md.
    points: of train/metrics.jsonl. results: of results/<task>.json, all of one model (`_of_one_model`).
    failures: why a task has no result, by task name.
    """

    run_dir: Path
    plan: Json
    stages: list[StageFacts]
    corpus: Path
    manifest: Json | None
    train: Json | None
    points: list[Point]
    results: list[Json] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    aggregate: Json | None = None
    export: Json | None = None
    mlflow: Json | None = None

    @property
    def config(self) -> Json:
        """The resolved recipe."""
        return self.plan["config"]


class Scores(NamedTuple):
    """results: of results/<task>.json, all of one model. failures: why a task has no result, by task name.

    aggregate: aggregate.json, None where there is none.
    """

    results: list[Json]
    failures: dict[str, str]
    aggregate: Json | None


def read_facts(run_dir: Path) -> RunFacts:
    """Read a run directory, or the folder of one member of a sweep. Raises UserError if there is no plan."""
    of_sweep = run_dir.parent.name == "members" and not (run_dir / "plan.json").exists()
    shared = run_dir.parent.parent if of_sweep else run_dir  # where a sweep keeps what its members share
    plan = read_object(shared / "plan.json")
    if plan is None or not {"recipe", "config", "stages"} <= plan.keys():
        raise UserError(f"{run_dir} is no run directory: it has no readable plan.json. Give the folder of a run.")
    if of_sweep:
        plan = _plan_of_member(plan, run_dir)
    corpus = shared / "corpora" / Path(plan["config"]["corpus"]["name"]).stem
    export = read_object(run_dir / "model" / "export.json")
    scores = read_scores(run_dir / "results", export)
    return RunFacts(
        run_dir=run_dir,
        plan=plan,
        stages=[_stage(shared, stage) for stage in plan["stages"]],
        corpus=corpus,
        manifest=read_object(corpus / "manifest.json"),
        train=read_object(run_dir / "train" / "summary.json"),
        points=read_points(run_dir / "train" / "metrics.jsonl"),
        results=scores.results,
        failures=scores.failures,
        aggregate=scores.aggregate,
        export=export,
        mlflow=known_runs(run_dir),
    )


def read_scores(folder: Path, export: Json | None) -> Scores:
    """What `folder` (RUN/results) holds. export: model/export.json."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != "aggregate.json"]
    tasks = [task for path in files if (task := read_object(path, needs=("task",))) is not None]
    aggregate = read_aggregate(folder)
    scored = [task for task in tasks if task.get("score") is not None and "checkpoint_sha256" in task]
    failures = {task["task"]: task["error"] for task in tasks if "error" in task}
    return Scores(_of_one_model(scored, aggregate, export), failures, aggregate)


def _of_one_model(scored: list[Json], aggregate: Json | None, export: Json | None) -> list[Json]:
    """The results behind the average, where there is one; else those of the exported weights.

    A run that was trained on and evaluated only in part holds results of several models.
    """
    if aggregate is not None:
        weights, tasks = aggregate["checkpoint_sha256"], aggregate["scores"]
        return [r for r in scored if r["checkpoint_sha256"] == weights and r["task"] in tasks]
    return [r for r in scored if export is not None and r["checkpoint_sha256"] == export["weights_sha256"]]


def _plan_of_member(plan: Json, folder: Path) -> Json:
    """The plan of a sweep as if there were but this member: its recipe, and of the stages its elements."""
    names = [member["name"] for member in plan.get("members", ())]
    if folder.name not in names:
        raise UserError(f"{folder} is no member of the sweep in {folder.parent.parent}: there are {', '.join(names)}")
    number, config = names.index(folder.name), read_yaml(folder / "recipe.yaml")
    stages = [
        {**stage, "elements": each or stage["elements"], "first": number * each}
        for stage in plan["stages"]
        if stage["name"] != "compare"
        for each in (stage["per_member"],)
    ]
    return {"recipe": plan["recipe"], "config": config, "stages": stages}


def _stage(run_dir: Path, stage: Json) -> StageFacts:
    first = stage.get("first", 0)
    paths = [run_dir / "stages" / f"{stage['name']}.{first + i}.json" for i in range(stage["elements"])]
    markers = [marker for marker in map(read_object, paths) if marker and marker.get("status") == "done"]
    return StageFacts(stage["name"], stage["elements"], markers)


def read_aggregate(folder: Path) -> Json | None:
    """aggregate.json of `folder` (RUN/results)."""
    return read_object(folder / "aggregate.json", needs=("checkpoint_sha256", "scores"))
