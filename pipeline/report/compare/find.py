"""Which runs are meant: folders of runs, of sweeps, folders above them, patterns such as `runs/cc12m-*`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.report.compare.run import MEMBERS, Run, is_run

DEPTH = 6  # folders below the one that was named


def find_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every run, once, in the order named and by name within a folder. Raises UserError where there is none."""
    folders: dict[Path, None] = {}
    for path in paths:
        found = [folder for named in _named(str(path)) for folder in _below(named, DEPTH, set())]
        if not found:
            raise UserError(f"no run in {path}: a run is a folder with a recipe.yaml, as `neuclip run` makes it")
        folders |= dict.fromkeys(found)
    return [Run(folder, name) for folder, name in zip(folders, _names(list(folders)), strict=True)]


def _named(path: str) -> list[Path]:
    if not glob.has_magic(path) or os.path.exists(path):
        return [Path(path)]
    return [Path(found) for found in sorted(glob.glob(path, recursive=True)) if os.path.isdir(found)]


def _below(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    folder = folder.resolve()
    if folder in seen or not folder.is_dir() or (folder / "corpus.yaml").is_file():  # a corpus has a plan.json too
        return
    seen.add(folder)
    members = folder / MEMBERS
    if members.is_dir():
        yield from sorted(member for member in members.iterdir() if is_run(member))
    elif is_run(folder):
        yield folder
    elif depth > 0:
        for inner in sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."):
            if os.access(inner, os.R_OK | os.X_OK):  # what a colleague keeps to himself hides no other run
                yield from _below(Path(inner), depth - 1, seen)


def _names(folders: list[Path]) -> list[str]:
    """The paths without what they all begin with; a folder's own name always stays."""
    parts = [[part for part in folder.parts if part != MEMBERS] for folder in folders]
    common = 0
    while all(len(names) > common + 1 and names[common] == parts[0][common] for names in parts):
        common += 1
    return ["/".join(names[common:]) for names in parts]
