"""Classification judged by the group that fares worst (WILDS, Koh et al. 2021)."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import classification
from pipeline.evaluation.reading import member
from pipeline.evaluation.task_run import Metrics, TaskRun


def evaluate(run: TaskRun) -> Metrics:
    """Classification's metrics, `worst_group_accuracy`, and `acc_<group>`, `count_<group>` of every group."""
    groups = run.task.group_names
    parse = partial(_parse_label_and_group, classes=run.task.class_count, groups=len(groups))
    predictions = classification.predict(run, parse)
    labels, group = torch.tensor(predictions.targets).unbind(dim=1)
    accuracies, counts = group_accuracies(predictions.best == labels, group, len(groups))
    result = classification.metrics(predictions, labels)
    result["worst_group_accuracy"] = accuracies[counts > 0].min().item()
    for name, accuracy, count in zip(groups, accuracies.tolist(), counts.tolist(), strict=True):
        result[f"acc_{name}"] = accuracy if count else None
        result[f"count_{name}"] = count
    return result


def group_accuracies(correct: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Accuracy and size of each group: (groups,) float64, NaN where empty, and (groups,) int64.

    correct: (N,) bool. group: (N,) int64 in [0, groups).
    """
    counts = group.bincount(minlength=groups)
    return group[correct].bincount(minlength=groups).double() / counts, counts


def parse_group(sample: dict[str, Any], groups: int) -> int:
    """A sample's group: the first entry of its metadata, a vector in `npy`.

    Raises ValueError for other metadata, and for a group that is not in [0, groups).
    """
    metadata = np.lib.format.read_array(io.BytesIO(member(sample, "npy")), allow_pickle=False)
    if metadata.ndim != 1 or metadata.size == 0 or metadata.dtype.kind not in "iuf":
        raise ValueError(f"metadata should be a vector of numbers, not {metadata.dtype} of shape {metadata.shape}")
    group = int(metadata[0])
    if group != metadata[0] or not 0 <= group < groups:
        raise ValueError(f"group {metadata[0]} is not in [0, {groups})")
    return group


def _parse_label_and_group(sample: dict[str, Any], classes: int, groups: int) -> tuple[int, int]:
    return classification.parse_label(sample, classes), parse_group(sample, groups)
