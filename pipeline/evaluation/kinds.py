"""The kinds of task: how each is measured, and what it reads of a task's files."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from pipeline.evaluation import classification, fairface, fmow, iwildcam, retrieval, winogavil, worst_group
from pipeline.evaluation.metadata import Row
from pipeline.evaluation.reading import Parse
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.task_run import Metrics, TaskRun
from pipeline.evaluation.tasks import Task


class Kind(NamedTuple):
    """evaluate: a task on a model. parser: what reads a sample. check_texts: raises UserError for wrong text files.

    metadata: the row of what the parser made of a sample, for kinds that read metadata.
    """

    evaluate: Callable[[TaskRun], Metrics]
    parser: Callable[[Task], Parse]
    check_texts: Callable[[TaskFolder, Task], None]
    metadata: Callable[[Any], Row] | None = None


def _no_texts(folder: TaskFolder, task: Task) -> None:
    """For kinds whose texts are in their samples."""


def _itself(row: Row) -> Row:
    return row


KINDS: dict[str, Kind] = {
    "classification": Kind(classification.evaluate, classification.parser, classification.check_texts),
    "worst_group": Kind(worst_group.evaluate, worst_group.parser, classification.check_texts, itemgetter(1)),
    "iwildcam": Kind(iwildcam.evaluate, iwildcam.parser, classification.check_texts, itemgetter(1)),
    "fmow": Kind(fmow.evaluate, fmow.parser, classification.check_texts, itemgetter(1)),
    "fairface": Kind(fairface.evaluate, fairface.parser, fairface.check_texts, _itself),
    "retrieval": Kind(retrieval.evaluate, retrieval.parser, _no_texts),
    "winogavil": Kind(winogavil.evaluate, winogavil.parser, _no_texts),
}
