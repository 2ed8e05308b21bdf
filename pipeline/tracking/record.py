"""One MLflow run as it should be, and what its fields are made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tracking.accepted import Dataset, MetricPoint, dataset_of
from pipeline.tracking.states import Progress
from pipeline.typed_files import Json

ARTIFACT_BYTES = 100 * 2**20  # a larger file is no artifact: something is in the wrong place
TOLD_LENGTH = 4000


@dataclass(frozen=True)
class Model:
    """An exported model. folder: its files. scores: by task, and the average."""

    folder: Path
    weights_sha256: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One MLflow run as it should be. key: which run of the directory; parent: the key of its parent.

    of: where the directory has one run of this key after the other, what this one is of: a checkpoint's digest.
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
    of: str = ""

    @property
    def identity(self) -> str:
        """Tells it from every other run that the directory has, or has had."""
        return f"{self.key}@{self.of}" if self.of else self.key


def told_of(progress: Progress) -> dict[str, str]:
    """Hosts, nodes, jobs: all that there were, the latest ones where that is too long for a tag."""
    names = {"commit": "mlflow.source.git.commit"}
    return {names.get(name, name): ", ".join(values)[-TOLD_LENGTH:] for name, values in progress.told.items()}


def points_of(values: Mapping[str, Any], step: int, at: float) -> tuple[MetricPoint, ...]:
    """The numbers among them, at one place. step: samples seen. at: unix seconds."""
    return tuple(
        MetricPoint(name, float(value), step, at) for name, value in values.items() if isinstance(value, int | float)
    )


def datasets_of(entries: Iterable[Mapping[str, Any]], context: str) -> tuple[Dataset, ...]:
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


def small_files(files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """Those that are there, whole and small enough to be artifacts."""
    written = {name: path for name, path in files.items() if not path.name.startswith(".")}  # others are being written
    return {name: path for name, path in written.items() if path.is_file() and path.stat().st_size <= ARTIFACT_BYTES}


def mtime(file: Path) -> float:
    """Unix seconds; 0 where there is no file."""
    return file.stat().st_mtime if file.exists() else 0.0
