"""Evaluation folders exactly as DataComp publishes them, and `tasks.yaml` beside them.

    wds_<task>_test/
      classnames.txt                           one per line             (classification)
      zeroshot_classification_templates.txt    one per line, with {c}   (classification)
      dataset_type.txt                         "retrieval"              (retrieval)
      test/nshards.txt, test/0.tar, ...        members s0000000.<jpg|png|webp> with
                                               .cls, class; .npy, (W,) int64 metadata; .txt, captions

The readers this layout is for: clip_benchmark's `build_wds_dataset`, DataComp's `wds_eval` and `wilds_eval`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.files import atomic_open

_SAMPLES_PER_TAR = 512


@dataclass(frozen=True)
class EvalSample:
    """One image of a task, with its label, its metadata, its captions, or several of these."""

    image: bytes
    extension: str
    label: int | None = None
    metadata: Sequence[int] = ()
    captions: Sequence[str] = ()

    def members(self) -> dict[str, bytes]:
        """Extension to content, as the tar holds them."""
        members = {self.extension: self.image}
        if self.label is not None:
            members["cls"] = str(self.label).encode()
        if self.metadata:
            stream = io.BytesIO()
            np.save(stream, np.array(self.metadata, dtype=np.int64))
            members["npy"] = stream.getvalue()
        if self.captions:
            members["txt"] = "\n".join(self.captions).encode()
        return members


@dataclass(frozen=True)
class EvalTask:
    """A task and what `tasks.yaml` says of it. name: as in `wds_<name>_test`.

    classnames, templates: empty for retrieval. columns: of the metadata of a worst-group task, whose groups are told
    apart by the first; group_names: of each of its values.
    """

    name: str
    title: str
    samples: Sequence[EvalSample]
    classnames: Sequence[str] = ()
    templates: Sequence[str] = ()
    columns: Sequence[str] = ()
    group_names: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """The task's entry in `tasks.yaml`; `chance` is the expected score of uniformly random answers.

        For mean recall@1 that is 1/N over N images both ways: a text has one right image of N, and an image's
        k texts are k of k*N. The worst of several groups scores below its chance as often as not.
        """
        size = len(self.samples)
        if not self.classnames:
            captions = sum(len(sample.captions) for sample in self.samples)
            return {
                "kind": "retrieval",
                "title": self.title,
                "size": size,
                "captions": captions,
                "main_metric": "mean_recall@1",
                "chance": 1 / size,
            }
        entry = {
            "kind": "worst_group" if self.columns else "classification",
            "title": self.title,
            "size": size,
            "classes": len(self.classnames),
            "templates": len(self.templates),
            "main_metric": "acc_wg" if self.columns else "acc1",
            "chance": 1 / len(self.classnames),
        }
        if not self.columns:
            return entry
        names = {"columns": list(self.columns), "group_by": self.columns[0], "group_names": list(self.group_names)}
        return {**entry, **names}


def write_tasks(evaldata: Path, tasks: Sequence[EvalTask]) -> None:
    """Write each task's folder, then `tasks.yaml`. The same tasks always give the same bytes."""
    for task in tasks:
        write_folder(evaldata / f"wds_{task.name}_test", task.samples, task.classnames, task.templates)
    with atomic_open(evaldata / "tasks.yaml", "w") as stream:
        yaml.safe_dump({task.name: task.describe() for task in tasks}, stream, sort_keys=False)


def write_folder(
    folder: Path,
    samples: Sequence[EvalSample],
    classnames: Sequence[str] = (),
    templates: Sequence[str] = (),
    samples_per_tar: int = _SAMPLES_PER_TAR,
) -> None:
    """One task's folder; without class names it is one of retrieval."""
    if classnames:
        _write_lines(folder / "classnames.txt", classnames)
        _write_lines(folder / "zeroshot_classification_templates.txt", templates)
    else:
        _write_lines(folder / "dataset_type.txt", ["retrieval"])
    starts = range(0, len(samples), samples_per_tar)
    for shard, start in enumerate(starts):
        _write_tar(folder / "test" / f"{shard}.tar", samples[start : start + samples_per_tar], start)
    _write_lines(folder / "test" / "nshards.txt", [str(len(starts))])


def _write_tar(path: Path, samples: Sequence[EvalSample], first: int) -> None:
    with atomic_open(path) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for index, sample in enumerate(samples, first):
            for extension, content in sample.members().items():
                member = tarfile.TarInfo(f"s{index:07d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_open(path, "w") as stream:
        stream.writelines(f"{line}\n" for line in lines)
