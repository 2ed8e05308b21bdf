"""WinoGAViL: which of the candidate images people associate with a cue (Bitton et al. 2022), by the Jaccard index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.reading import Parse
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task

MOST_CANDIDATES = 12


class Instance(NamedTuple):
    """One cue. associated: whether each of the candidate images is, (I,) bool."""

    cue: str
    associated: np.ndarray


def rows(run: TaskRun) -> Iterator[Rows]:
    """jaccard (N,) float64 and candidates (N,) int64, of the instances."""
    for features, instances in run.encoded_batches(parser(run.task), MOST_CANDIDATES):
        cues = run.encoder.encode_texts([prompt(instance.cue) for instance in instances])
        sizes = [len(instance.associated) for instance in instances]
        scores = [
            jaccard(instance.associated, chosen(cue, images, int(instance.associated.sum())))
            for cue, images, instance in zip(cues, features.split(sizes), instances, strict=True)
        ]
        yield {"jaccard": torch.tensor(scores, dtype=torch.float64), "candidates": torch.tensor(sizes)}


def parser(task: Task) -> Parse:
    """A sample -> its instance."""
    return parse


def parse(sample: Sample) -> Instance:
    """The instance of a row. Raises ValueError where it lacks something, or has not one image per candidate."""
    names = list(member(sample, "candidates"))
    images = member(sample, "candidate_images")
    if len(names) != len(images):
        raise ValueError(f"{len(images)} candidate_images for {len(names)} candidates")
    if not member(sample, "cue"):
        raise ValueError("an empty cue")
    return Instance(sample["cue"], np.isin(names, list(member(sample, "associations"))))


def prompt(cue: str) -> str:
    """`A cat` or `An owl`."""
    cue = cue.lower()
    return f"An {cue}" if cue[0] in "aeiou" else f"A {cue}"


def chosen(cue: Tensor, images: Tensor, count: int) -> np.ndarray:
    """The `count` candidates nearest to the cue: (D,), (I, D) -> (I,) bool. Ties are broken as numpy sorts."""
    scores = (cue[None] @ images.T).squeeze(0).cpu().numpy()
    result = np.zeros(len(scores), dtype=bool)
    result[np.argsort(scores)[-count:]] = True
    return result


def jaccard(expected: np.ndarray, found: np.ndarray) -> float:
    """Size of the intersection by size of the union, 0 where both are empty. Both (I,) bool."""
    union = (expected | found).sum()
    return float((expected & found).sum() / union) if union else 0.0


def metrics(task: Task, rows: Rows) -> Metrics:
    """The mean Jaccard index, of all instances and by the number of candidates: 5, 6, 10, 12, 5-6 and 10-12.

    None where no instance has so many.
    """
    scores, candidates = rows["jaccard"].numpy(), rows["candidates"].numpy()
    groups = {
        **{f"jaccard_score_{size}": candidates == size for size in (5, 6, 10, 12)},
        "jaccard_score_5-6": candidates <= 6,
        "jaccard_score_10-12": candidates >= 10,
    }
    means = {name: float(scores[group].mean()) if group.any() else None for name, group in groups.items()}
    return {"avg_jaccard_score": float(scores.mean()), **means}
