"""One run directory, read as far as it is there; each file at most once, and only if somebody asks for it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.config.corpus_name import corpus_name
from pipeline.files import parse_yaml, read_object
from pipeline.report.results import Scores, read_scores
from pipeline.run_files import AVERAGE, ENVIRONMENT, EXPORTED, OUTCOMES, PLAN, RECIPE, TRAINED
from pipeline.time_left import total_samples
from pipeline.time_spent import TimeSpent, total_time
from pipeline.tracking.directory import known_runs
from pipeline.tracking.jsonl import Point, of_steps, read_points
from pipeline.typed_files import Json, Reader

MEMBERS = "members"  # DIR/members/<name> are the runs of a sweep
ALIVE_SECONDS = 60  # heartbeats are written every 3 s; file systems of a cluster show them late


@dataclass(frozen=True)
class Run:
    """folder: absolute. name: what tells it from the other runs shown. logged: what was read of its log before.

    Damaged files count as absent; `read` tells of those that were met.
    """

    folder: Path
    name: str
    logged: list[Point] | None = field(default=None, compare=False, repr=False)
    read: Reader = field(default_factory=Reader, compare=False, repr=False)

    @cached_property
    def home(self) -> Path:
        """Where the corpus and the chain's own files are: the run, or the sweep that it belongs to."""
        return self.folder.parent.parent if self.folder.parent.name == MEMBERS else self.folder

    @cached_property
    def config(self) -> Json:
        """The resolved recipe, the run's own folder in it as RUN; empty where there is none."""
        trees = (self._recipe(self.folder / name) for name in ("plan.json", "recipe.yaml", "train/recipe.yaml"))
        found = next((tree for tree in trees if tree), {})
        return dict(_without_folder(found, str(self.folder), str(self.home)))

    @cached_property
    def trained(self) -> Json | None:
        """train/summary.json: there once training has finished."""
        return self.read(TRAINED, self.folder / "train" / "summary.json")

    @cached_property
    def points(self) -> list[Point]:
        """What training logged of its steps."""
        return of_steps(read_points(self.folder / "train" / "metrics.jsonl") if self.logged is None else self.logged)

    @cached_property
    def aggregate(self) -> Json | None:
        """results/aggregate.json."""
        return self.read(AVERAGE, self.folder / "results" / "aggregate.json")

    @cached_property
    def scores(self) -> Scores:
        """All of results/."""
        return read_scores(self.folder / "results", self.export, self.aggregate, self.read)

    @cached_property
    def export(self) -> Json | None:
        """model/export.json."""
        return self.read(EXPORTED, self.folder / "model" / "export.json")

    @cached_property
    def manifest(self) -> Json | None:
        """Of the corpus that the chain made."""
        return self.read(OUTCOMES, self.corpus_folder / "manifest.json")

    @cached_property
    def environment(self) -> Json:
        """environment.json: code version, packages, machine."""
        return self.read(ENVIRONMENT, self.home / "environment.json") or {}

    @cached_property
    def mlflow(self) -> Json | None:
        """mlflow.json: ids of its MLflow runs."""
        return known_runs(self.folder, self.read)

    @property
    def objective(self) -> str:
        return str(self.config.get("objective") or "unknown")

    @property
    def corpus(self) -> str:
        return corpus_name(str(_at(self.config, "corpus", "name") or "unknown"))

    @property
    def corpus_folder(self) -> Path:
        """Of the corpus that the chain made."""
        return self.home / "corpora" / self.corpus

    @property
    def evaldata(self) -> Path:
        """Where the tasks that it was evaluated on are defined."""
        given = str(_at(self.config, "evaluate", "data") or "RUN")
        return self.home / "evaldata" if given.startswith("RUN") else Path(given)

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @cached_property
    def state(self) -> str:
        """evaluated, trained, training, stopped (it can go on), failed (in training), or not trained."""
        if self.aggregate is not None:
            return "evaluated"
        if self.trained is not None:
            return "trained"
        if self.failure:
            return "failed"
        if any(time.time() - beat.stat().st_mtime < ALIVE_SECONDS for beat in self._heartbeats):
            return "training"
        return "stopped" if self.points else "not trained"

    @cached_property
    def failure(self) -> str:
        """Why training failed, in the words of the first rank that said so; empty where none did."""
        reasons = (str((read_object(beat) or {}).get("failed") or "") for beat in self._heartbeats)
        return next((reason for reason in reasons if reason), "")

    @cached_property
    def _heartbeats(self) -> list[Path]:
        return sorted((self.folder / "train" / "heartbeats").glob("*.json"))

    @cached_property
    def samples_seen(self) -> int | None:
        if self.trained is not None:
            return self.trained.get("samples_seen")
        return self.points[-1].samples_seen if self.points else None

    @cached_property
    def last_loss(self) -> float | None:
        if self.trained is not None:
            return self.trained.get("final_loss")
        losses = (point.metrics["train/loss"] for point in reversed(self.points) if "train/loss" in point.metrics)
        return next(losses, None)

    @cached_property
    def total_samples(self) -> float | None:
        """That training is to see; None where the recipe says epochs and nothing has been logged yet."""
        train = self.config.get("train")
        return total_samples(train, self.points) if isinstance(train, dict) else None

    @cached_property
    def spent(self) -> TimeSpent | None:
        """Time in training steps, from the summary where there is one: metrics.jsonl may be long."""
        if self.trained is not None and set(TimeSpent._fields) <= self.trained.keys():
            return TimeSpent(*(self.trained[name] for name in TimeSpent._fields))
        return total_time(self.points) if self.points else None

    @cached_property
    def damaged(self) -> list[str]:
        """What is wrong with its files, each of which is read for that."""
        for _ in (self.config, self.trained, self.export, self.scores, self.manifest, self.environment, self.mlflow):
            pass
        return self.read.problems

    @cached_property
    def missing(self) -> list[str]:
        """What it lacks for a comparison, in words."""
        lacks = [] if self.config else ["no recipe that can be read"]
        if not self.points:
            lacks.append("nothing logged by training")
        elif self.trained is None:
            total = f" of {self.total_samples:,.0f}" if self.total_samples else ""
            lacks.append(f"{self.state} after {self.samples_seen:,}{total} samples")
        if not self.scores.results:
            lacks.append("no scores")
        elif self.aggregate is None:
            lacks.append(f"no average, scores of {len(self.scores.results)} tasks")
        elif "average" not in self.aggregate:
            lacks.append(f"no average, {self.aggregate.get('tasks')} of {self.aggregate.get('of')} tasks")
        return [*lacks, *self.damaged]

    def _recipe(self, path: Path) -> Json:
        """Of a plan, where the run has one of its own: JSON is read twenty times as fast as YAML."""
        if path.suffix == ".yaml":
            return _read_sections(path) or self.read(RECIPE, path) or {}
        return (self.read(PLAN, path) or {}).get("config", {})


def is_run(folder: Path) -> bool:
    """Whether a chain or `neuclip train` has begun there."""
    return any((folder / name).is_file() for name in ("recipe.yaml", "plan.json", "train/recipe.yaml"))


def _read_sections(path: Path) -> Json:
    """A YAML file section by section, as hundreds of recipes have most of them in common; {} where that fails."""
    try:
        sections = re.split(r"(?<=\n)(?=[a-z_]+:)", path.read_text(encoding="utf-8"))
        tree = {key: value for section in sections for key, value in _section(section).items()}
    except (OSError, ValueError, AttributeError):
        return {}
    return {} if RECIPE.problem(tree) else tree


@lru_cache(maxsize=10_000)
def _section(text: str) -> Any:
    return parse_yaml(text)


def _without_folder(value: Any, *folders: str) -> Any:
    """So that two runs do not differ in where they are."""
    if isinstance(value, dict):
        return {key: _without_folder(inner, *folders) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folder(inner, *folders) for inner in value]
    if isinstance(value, str):
        for folder in folders:
            value = value.replace(folder, "RUN")
    return value


def _at(tree: Json, *keys: str) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
