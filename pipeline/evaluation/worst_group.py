"""Classification judged by the group that fares worst: Camelyon17's slides (WILDS, Koh et al. 2021), Dollar Street's
incomes, GeoDE's regions, or groups of a user's own.
"""

from __future__ import annotations

from pipeline.evaluation import classification
from pipeline.evaluation.classification import ParseLabelAndMetadata
from pipeline.evaluation.metadata import MOST_GROUPS, ParseMetadata, share_by_group
from pipeline.evaluation.task_run import Metrics, TaskRun
from pipeline.evaluation.tasks import Task


def evaluate(run: TaskRun) -> Metrics:
    """Classification's metrics; `acc_avg`, `acc_wg`, `acc_COLUMN:VALUE` and `count_COLUMN:VALUE` of every group.

    The names begin with `acc_top5` where the class has to be among the five best.
    """
    task = run.task
    predictions, labels, metadata = classification.predict_with_metadata(run, parser(task))
    hits = predictions.best == labels
    if task.top == 5:
        hits = (predictions.top == labels[:, None]).any(dim=1)
    return {
        **classification.metrics(predictions, labels),
        **share_by_group(
            "acc_top5" if task.top == 5 else "acc", hits, metadata, (str(task.group_by),), task.group_names
        ),
    }


def parser(task: Task) -> ParseLabelAndMetadata:
    """A sample -> its class and its metadata."""
    grouped = ParseMetadata(task.columns, (str(task.group_by),), len(task.group_names) or MOST_GROUPS)
    return ParseLabelAndMetadata(task.class_count, grouped)
