"""Where everything lies in a run directory (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.corpus_name import corpus_name
from pipeline.config.loader import with_overrides
from pipeline.config.schema import RunConfig


@dataclass(frozen=True)
class Member:
    """One run of a sweep. name: of its folder in RUN/members. overrides: what it sets, as key=value."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class RunPaths:
    """root: the run directory. config: its resolved recipe. members: of a sweep, none in a plain run.

    home: where what is made of the recipe lies; `root`, unless these are the paths of one member.
    """

    root: Path
    config: RunConfig
    members: tuple[Member, ...] = ()
    home: Path = Path()

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.root / self.home)

    def member(self, number: int) -> RunPaths:
        """The paths of one member, with the recipe as it is there. A plain run is its own only member, 0."""
        if not self.members:
            return self
        member = self.members[number]
        config = with_overrides(self.config, member.overrides)
        return RunPaths(self.root, config, self.members, self.root / "members" / member.name)

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def corpus(self) -> Path:
        return self.corpora / corpus_name(self.config.corpus.name)

    @property
    def evaldata(self) -> Path:
        return Path(self.config.evaluate.data) if self.config.evaluate.data else self.root / "evaldata"

    @property
    def train(self) -> Path:
        return self.home / "train"

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def results(self) -> Path:
        return self.home / "results"

    @property
    def recipe(self) -> Path:
        return self.home / "recipe.yaml"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def marker(self, stage: str, element: int) -> Path:
        return self.stages / f"{stage}.{element}.json"

    def attempts(self, stage: str, element: int) -> Path:
        return self.stages / f"{stage}.{element}.attempts.jsonl"

    def lock(self, stage: str, element: int) -> Path:
        return self.stages / f"{stage}.{element}.lock"

    def log(self, stage: str, element: int) -> Path:
        return self.root / "logs" / f"{stage}.{element}.log"
