"""Classification judged by the group that fares worst: Camelyon17's slides (WILDS, Koh et al. 2021), Dollar Street's
incomes, GeoDE's regions, or groups of a user's own.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.kinds import classification
from pipeline.evaluation.kinds.classification import ParseLabelAndMetadata
from pipeline.evaluation.metadata import MOST_GROUPS, Metadata, ParseMetadata, share_by_group
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task


def rows(run: TaskRun) -> Iterator[Rows]:
    """Classification's rows, and the metadata."""
    return classification.rows_with_metadata(run, parser(run.task))


def metrics(task: Task, rows: Rows) -> Metrics:
    """Classification's metrics; `acc_avg`, `acc_wg`, `acc_COLUMN:VALUE` and `count_COLUMN:VALUE` of every group.

    The names begin with `acc_top5` where the class has to be among the five best.
    """
    name, hits = ("acc_top5", rows["place"] < 5) if task.top == 5 else ("acc", rows["best"] == rows["label"])
    groups = share_by_group(name, hits, Metadata.of(task.columns, rows), (str(task.group_by),), task.group_names)
    return {**classification.metrics(task, rows), **groups}


def parser(task: Task) -> ParseLabelAndMetadata:
    """A sample -> its class and its metadata."""
    grouped = ParseMetadata(task.columns, (str(task.group_by),), len(task.group_names) or MOST_GROUPS)
    return ParseLabelAndMetadata(task.class_count, grouped)
