"""iWildCam: animals in front of camera traps, by F1 averaged over species (WILDS, Koh et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.evaluation.kinds import classification
from pipeline.evaluation.kinds.classification import ParseLabelAndMetadata
from pipeline.evaluation.metadata import ParseMetadata
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task

COLUMNS = ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y")


def rows(run: TaskRun) -> Iterator[Rows]:
    """Classification's rows, and the metadata."""
    return classification.rows_with_metadata(run, parser(run.task))


def metrics(task: Task, rows: Rows) -> Metrics:
    """Classification's metrics, `acc_avg`, `recall-macro_all` and `F1-macro_all`."""
    best, label = rows["best"], rows["label"]
    return {
        **classification.metrics(task, rows),
        "acc_avg": (best == label).double().mean().item(),
        "recall-macro_all": classification.mean_per_class_recall(best, label),
        "F1-macro_all": macro_f1(best, label),
    }


def parser(task: Task) -> ParseLabelAndMetadata:
    """A sample -> its class and its metadata."""
    return ParseLabelAndMetadata(task.class_count, ParseMetadata(COLUMNS, grouped=("location",)))


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """F1 averaged over the classes that occur in `labels`. Both (N,) whole numbers."""
    classes = int(torch.maximum(predicted.max(), labels.max())) + 1
    actual, claimed = labels.bincount(minlength=classes), predicted.bincount(minlength=classes)
    hits = labels[predicted == labels].bincount(minlength=classes)
    present = actual > 0
    return (2 * hits[present].double() / (actual + claimed)[present]).mean().item()
