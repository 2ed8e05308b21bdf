"""Zero-shot classification: the class whose prompts lie nearest to the image (CLIP, Radford et al. 2021).

Metrics as in clip-benchmark 1.4.0. Legend: N images, C classes, K = 5 where there are 5 classes, else 1.

Rows: label (N,) int32; best (N,) int32, the argmax of the logits; place (N,) int8, of the label among the K best, K
where it is none of them. The official evaluation takes accuracies from the places (`torch.topk`) and the rest from the
argmax; where logits tie, the two may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.evaluation.metadata import ParseMetadata, Row, metadata_rows
from pipeline.evaluation.reading import Parse
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task


def rows(run: TaskRun) -> Iterator[Rows]:
    """Classify every image; of the logits only what the metrics read is kept."""
    classifier = run.encoder.classifier(*texts(run.folder, run.task))
    for features, labels in run.encoded_batches(parser(run.task)):
        yield judged(100.0 * features @ classifier, labels)


def rows_with_metadata(run: TaskRun, parse: ParseLabelAndMetadata) -> Iterator[Rows]:
    """The same, with the rows of the metadata."""
    classifier = run.encoder.classifier(*texts(run.folder, run.task))
    for features, targets in run.encoded_batches(parse):
        labels, metadata = zip(*targets, strict=True)
        yield {**judged(100.0 * features @ classifier, labels), **metadata_rows(metadata)}


def judged(logits: Tensor, labels: Sequence[int]) -> Rows:
    """The rows of B images. logits: (B, C). labels: B classes."""
    depth = 5 if logits.shape[1] >= 5 else 1
    label = torch.tensor(labels, dtype=torch.int32)
    hits = logits.topk(depth, dim=1).indices.cpu() == label[:, None]
    place = torch.where(hits.any(dim=1), hits.int().argmax(dim=1), depth)
    return {"label": label, "best": logits.argmax(dim=1).cpu().int(), "place": place.to(torch.int8)}


def metrics(task: Task, rows: Rows) -> Metrics:
    """acc1, acc5 (None below 5 classes), mean_per_class_recall."""
    return {
        "acc1": (rows["place"] < 1).double().mean().item(),
        "acc5": (rows["place"] < 5).double().mean().item() if task.class_count >= 5 else None,
        "mean_per_class_recall": mean_per_class_recall(rows["best"], rows["label"]),
    }


def parser(task: Task) -> Parse:
    """A sample -> its class."""
    return partial(parse_label, classes=task.class_count)


def check_texts(folder: TaskFolder, task: Task) -> None:
    """Raises UserError when class names or templates are not what the task says."""
    texts(folder, task)


def texts(folder: TaskFolder, task: Task) -> tuple[list[str], list[str]]:
    """The C class names and the T templates. Raises UserError when they are not what the task says."""
    return folder.classnames(task.class_count), folder.templates(task.templates)


def mean_per_class_recall(predicted: Tensor, labels: Tensor) -> float:
    """Recall averaged over the classes that occur in `labels` (balanced accuracy). Both (N,) whole numbers."""
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
