"""Zero-shot classification: the class whose prompts lie nearest to the image (CLIP, Radford et al. 2021).

Metrics as in clip-benchmark 1.4.0. Legend: N images, C classes, K = 5 where there are 5 classes, else 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.metadata import Metadata, ParseMetadata, Row, gather
from pipeline.evaluation.reading import Parse
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import Metrics, TaskRun
from pipeline.evaluation.tasks import Task


class Predictions(NamedTuple):
    """top: (N, K) int64, classes by falling logit. best: (N,) int64, the argmax. targets: N parsed targets.

    The official evaluation takes accuracies from the former and the rest from the latter; where logits tie,
    the two may differ.
    """

    top: Tensor
    best: Tensor
    targets: list[Any]


def evaluate(run: TaskRun) -> Metrics:
    """acc1, acc5 (None below 5 classes), mean_per_class_recall."""
    predictions = predict(run, parser(run.task))
    return metrics(predictions, torch.tensor(predictions.targets))


def parser(task: Task) -> Parse:
    """A sample -> its class."""
    return partial(parse_label, classes=task.class_count)


def check_texts(folder: TaskFolder, task: Task) -> None:
    """Raises UserError when class names or templates are not what the task says."""
    texts(folder, task)


def texts(folder: TaskFolder, task: Task) -> tuple[list[str], list[str]]:
    """The C class names and the T templates. Raises UserError when they are not what the task says."""
    return folder.classnames(task.class_count), folder.templates(task.templates)


def predict_with_metadata(run: TaskRun, parse: ParseLabelAndMetadata) -> tuple[Predictions, Tensor, Metadata]:
    """Classify every image: predictions, the labels (N,) int64, and the metadata."""
    predictions = predict(run, parse)
    labels, rows = zip(*predictions.targets, strict=True)
    return predictions, torch.tensor(labels), gather(parse.metadata.names, rows, run.folder.path)


def predict(run: TaskRun, parse: Parse) -> Predictions:
    """Classify every image of the task; keeps of the logits only what the metrics read."""
    classifier = run.encoder.classifier(*texts(run.folder, run.task))
    tops, bests, targets = [], [], []
    for features, batch_targets in run.encoded_batches(parse):
        top, best = rank(100.0 * features @ classifier)
        tops.append(top.cpu())
        bests.append(best.cpu())
        targets.extend(batch_targets)
    return Predictions(torch.cat(tops), torch.cat(bests), targets)


def rank(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) -> the K best classes of each row by falling logit, (B, K), and its argmax, (B,)."""
    depth = 5 if logits.shape[1] >= 5 else 1
    return logits.topk(depth, dim=1).indices, logits.argmax(dim=1)


def metrics(predictions: Predictions, labels: Tensor) -> Metrics:
    """The metrics of `evaluate`. labels: (N,) int64."""
    hits = predictions.top == labels[:, None]
    return {
        "acc1": hits[:, 0].double().mean().item(),
        "acc5": hits.any(dim=1).double().mean().item() if hits.shape[1] == 5 else None,
        "mean_per_class_recall": mean_per_class_recall(predictions.best, labels),
    }


def mean_per_class_recall(predicted: Tensor, labels: Tensor) -> float:
    """Recall averaged over the classes that occur in `labels` (balanced accuracy). Both (N,) int64."""
    totals = labels.bincount()
    hits = labels[predicted == labels].bincount(minlength=len(totals))
    present = totals > 0
    return (hits[present].double() / totals[present]).mean().item()


@dataclass(frozen=True)
class ParseLabelAndMetadata:
    """A sample -> its class and its metadata."""

    classes: int
    metadata: ParseMetadata

    def __call__(self, sample: Sample) -> tuple[int, Row]:
        return parse_label(sample, self.classes), self.metadata(sample)


def parse_label(sample: Sample, classes: int) -> int:
    """The class of a sample, from its `cls`. Raises ValueError for one that is not in [0, classes)."""
    label = int(member(sample, "cls"))
    if not 0 <= label < classes:
        raise ValueError(f"label {label} is not in [0, {classes})")
    return label
