"""The kinds of task: how each is measured, and what it reads of a task's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from pipeline.evaluation.kinds import classification, fairface, fmow, iwildcam, retrieval, winogavil, worst_group
from pipeline.evaluation.metadata import Row
from pipeline.evaluation.reading import Parse
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task


class Kind(NamedTuple):
    """How tasks of one kind are measured.

    rows: what the metrics need of each sample, piece by piece. metrics: of the rows of a whole task, in its order.
    parser: what reads a sample. check_texts: raises UserError for wrong text files.
    metadata: the row of what the parser made of a sample, for kinds that read metadata.
    in_one_piece: its rows need all samples at once, so that a task is not cut into parts.
    """

    rows: Callable[[TaskRun], Iterator[Rows]]
    metrics: Callable[[Task, Rows], Metrics]
    parser: Callable[[Task], Parse]
    check_texts: Callable[[TaskFolder, Task], None]
    metadata: Callable[[Any], Row] | None = None
    in_one_piece: bool = False


def _no_texts(folder: TaskFolder, task: Task) -> None:
    """For kinds whose texts are in their samples."""


def _itself(row: Row) -> Row:
    return row


KINDS: dict[str, Kind] = {
    "classification": Kind(
        classification.rows, classification.metrics, classification.parser, classification.check_texts
    ),
    "worst_group": Kind(
        worst_group.rows, worst_group.metrics, worst_group.parser, classification.check_texts, itemgetter(1)
    ),
    "iwildcam": Kind(iwildcam.rows, iwildcam.metrics, iwildcam.parser, classification.check_texts, itemgetter(1)),
    "fmow": Kind(fmow.rows, fmow.metrics, fmow.parser, classification.check_texts, itemgetter(1)),
    "fairface": Kind(fairface.rows, fairface.metrics, fairface.parser, fairface.check_texts, _itself),
    "retrieval": Kind(retrieval.rows, retrieval.metrics, retrieval.parser, _no_texts, in_one_piece=True),
    "winogavil": Kind(winogavil.rows, winogavil.metrics, winogavil.parser, _no_texts),
}
