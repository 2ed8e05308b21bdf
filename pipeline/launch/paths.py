"""Where everything lies in a run directory (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.loader import read_yaml
from pipeline.config.schema import RunConfig


@dataclass(frozen=True)
class RunPaths:
    """root: the run directory. config: its resolved recipe."""

    root: Path
    config: RunConfig

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def corpus(self) -> Path:
        return self.corpora / corpus_name(self.config)

    @property
    def evaldata(self) -> Path:
        return Path(self.config.evaluate.data) if self.config.evaluate.data else self.root / "evaldata"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    def marker(self, stage: str, element: int) -> Path:
        return self.root / "stages" / f"{stage}.{element}.json"

    def log(self, stage: str, element: int) -> Path:
        return self.root / "logs" / f"{stage}.{element}.log"


def corpus_name(config: RunConfig) -> str:
    """The corpus's own name, also where the recipe names its YAML."""
    given = Path(config.corpus.name)
    return str(read_yaml(given).get("name", given.stem)) if given.suffix in (".yaml", ".yml") else given.name
