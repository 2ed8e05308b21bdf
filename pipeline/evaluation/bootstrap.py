"""How far the difference of two models may be chance: a paired bootstrap (Efron and Tibshirani 1993) of a main metric.

The samples of a task are drawn anew with replacement, the same ones for both models, and each time the metric is
computed again, F1 and the worst group as well as a mean. Retrieval draws images, and each takes its captions along.

Samples of which the metric reads the same in both models are of one sort. How many of each are drawn is multinomial,
and a metric of so many of each is a few sums. Legend: N samples, U sorts of them, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.kinds import fmow
from pipeline.evaluation.metadata import Metadata
from pipeline.evaluation.task_run import Rows
from pipeline.evaluation.tasks import Task

DRAWN_AT_ONCE = 100  # resamples; bounds the memory


class Resampled(NamedTuple):
    """A main metric of samples that may be there several times, or not at all.

    reads: what it needs of the samples, columns (N,). score: of such columns of U sorts and how many there are of each,
    (U, R) float64 -> (R,) float64, NaN where the metric is None.
    """

    reads: Callable[[Task, Rows], Sequence[Tensor]]
    score: Callable[[Sequence[Tensor], Tensor], Tensor]


def differences(task: Task, a: Rows, b: Rows, resamples: int, random: np.random.Generator) -> np.ndarray:
    """The main metric of B less that of A, (resamples,) float64; NaN where it is None."""
    metric = RESAMPLED[str(task.main_metric)]
    columns = [[column.double() for column in metric.reads(task, rows)] for rows in (a, b)]
    sorts, counts = torch.stack([*columns[0], *columns[1]]).unique(dim=1, return_counts=True)
    first, second = sorts.unbind()[: len(columns[0])], sorts.unbind()[len(columns[0]) :]
    found = [metric.score(second, times) - metric.score(first, times) for times in _drawn(counts, resamples, random)]
    return torch.cat(found).numpy()


def _drawn(counts: Tensor, resamples: int, random: np.random.Generator) -> Iterator[Tensor]:
    """How many of each sort are drawn, (U, R) float64, some resamples at a time. counts: (U,), how many there are."""
    size = int(counts.sum())
    for start in range(0, resamples, DRAWN_AT_ONCE):
        times = random.multinomial(size, counts.numpy() / size, size=min(DRAWN_AT_ONCE, resamples - start))
        yield torch.from_numpy(times.T.astype(np.float64))


def _mean(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: (value,)."""
    (value,) = columns
    return value @ times / times.sum(dim=0)


def _mean_of_some(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: (value, whether it counts)."""
    value, counts = columns
    return (value * counts) @ times / (counts @ times)


def _mean_of_groups(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: (hit, group)."""
    return _by_group(columns, times).nanmean(dim=0)


def _worst_group(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: (hit, group)."""
    return _by_group(columns, times).nan_to_num(nan=torch.inf).amin(dim=0)


def _by_group(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """Shares of hits, (groups, R), NaN where a group is empty. columns: (hit, group)."""
    hit, group = columns
    groups = int(group.max()) + 1
    return _sums(group, hit[:, None] * times, groups) / _sums(group, times, groups)


def _macro_f1(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: (class, predicted class)."""
    label, best = columns
    classes = int(torch.maximum(label, best).max()) + 1
    actual, claimed = _sums(label, times, classes), _sums(best, times, classes)
    hits = _sums(label, (label == best)[:, None] * times, classes)
    return torch.where(actual > 0, 2 * hits / (actual + claimed), torch.nan).nanmean(dim=0)


def _mean_recall(columns: Sequence[Tensor], times: Tensor) -> Tensor:
    """columns: of each image its captions, how many of them find it, whether it finds one."""
    captions, captions_answered, answered = columns
    return (captions_answered @ times / (captions @ times) + _mean((answered,), times)) / 2


def _sums(group: Tensor, values: Tensor, groups: int) -> Tensor:
    """(U, R) -> (groups, R). group: (U,)."""
    return values.new_zeros(groups, values.shape[1]).index_add_(0, group.long(), values)


def _right(rows: Rows) -> Tensor:
    return rows["best"] == rows["label"]


def _group(task: Task, rows: Rows) -> Tensor:
    return Metadata.of(task.columns, rows).column(str(task.group_by))


def _region(rows: Rows) -> Tensor:
    return Metadata.of(fmow.COLUMNS, rows).column("region")


RESAMPLED: dict[str, Resampled] = {
    "acc1": Resampled(lambda task, rows: [rows["place"] < 1], _mean),
    "mean_per_class_recall": Resampled(lambda task, rows: [_right(rows), rows["label"]], _mean_of_groups),
    "acc_wg": Resampled(lambda task, rows: [_right(rows), _group(task, rows)], _worst_group),
    "acc_top5_wg": Resampled(lambda task, rows: [rows["place"] < 5, _group(task, rows)], _worst_group),
    "F1-macro_all": Resampled(lambda task, rows: [rows["label"], rows["best"]], _macro_f1),
    "acc_worst_region": Resampled(lambda task, rows: [_right(rows), _region(rows)], _worst_group),
    "mean_recall@1": Resampled(
        lambda task, rows: [rows["captions"], rows["captions_answered"][:, 0], rows["answered"][:, 0]], _mean_recall
    ),
    "jaccard_score_10-12": Resampled(lambda task, rows: [rows["jaccard"], rows["candidates"] >= 10], _mean_of_some),
    "avg_jaccard_score": Resampled(lambda task, rows: [rows["jaccard"]], _mean),
}
