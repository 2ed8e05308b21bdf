"""A run: where it lies, and its stages in an order in which each comes after what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import open_plan
from pipeline.launch.stages import Stage, build_stages, needed


@dataclass(frozen=True)
class Run:
    """paths: of the run directory, the members of a sweep included. stages: all of them."""

    paths: RunPaths
    stages: tuple[Stage, ...]

    @classmethod
    def planned(cls, paths: RunPaths) -> Run:
        """The run of a frozen plan."""
        return cls(paths, tuple(build_stages(paths)))

    @classmethod
    def open(cls, run_dir: Path) -> Run:
        """The run of a directory. Raises UserError when it has no plan."""
        return cls.planned(open_plan(run_dir))

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises UserError that says which there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"no stage {name!r} in {self.paths.root}: it has {', '.join(s.name for s in self.stages)}")

    def needs(self, stage: Stage, element: int) -> Iterator[tuple[Stage, int]]:
        """The elements that one waits for."""
        for name in stage.needs:
            need = self.stage(name)
            for number in needed(stage, element, need):
                yield need, number

    def select(self, first: str | None = None, only: str | None = None) -> tuple[Stage, ...]:
        """What `--from` and `--only` leave of the stages. Raises UserError for both at once and for unknown names."""
        if first is not None and only is not None:
            raise UserError("--from and --only exclude each other: give one")
        if only is not None:
            return (self.stage(only),)
        return self.stages[self.stages.index(self.stage(first)) :] if first is not None else self.stages
