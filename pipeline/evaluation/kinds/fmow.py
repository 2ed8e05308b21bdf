"""FMoW: land use from satellites, by the region that fares worst (WILDS, Koh et al. 2021).

WILDS leaves the region "Other", a few images of the test set, out of `acc_worst_region`. The official evaluation means
to, but looks for that word in names that it never gives to the regions, so there all regions count, and the score is 0
where none of those few is right. `acc_worst_region` is that number; `acc_worst_region_without_other` the one meant.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pipeline.evaluation.kinds import classification
from pipeline.evaluation.kinds.classification import ParseLabelAndMetadata
from pipeline.evaluation.metadata import Metadata, ParseMetadata, share_by_group
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task

COLUMNS = ("region", "year", "y")
OTHER = 5  # after Asia, Europe, Africa, Americas, Oceania


def rows(run: TaskRun) -> Iterator[Rows]:
    """Classification's rows, and the metadata."""
    return classification.rows_with_metadata(run, parser(run.task))


def metrics(task: Task, rows: Rows) -> Metrics:
    """Classification's metrics; accuracy, its least, and counts by year and by region."""
    hits = rows["best"] == rows["label"]
    return {**classification.metrics(task, rows), **by_year_and_region(hits, Metadata.of(COLUMNS, rows))}


def parser(task: Task) -> ParseLabelAndMetadata:
    """A sample -> its class and its metadata."""
    return ParseLabelAndMetadata(task.class_count, ParseMetadata(COLUMNS, grouped=("region", "year")))


def by_year_and_region(hits: Tensor, metadata: Metadata) -> Metrics:
    """`acc_avg`, `acc_worst_year`, `acc_worst_region`, and accuracy and count of every year and region."""
    years = share_by_group("acc", hits, metadata, ("year",))
    regions = share_by_group("acc", hits, metadata, ("region",))
    worst_year, worst_region = years.pop("acc_wg"), regions.pop("acc_wg")
    shares = (regions.get(f"acc_region:{region}") for region in range(OTHER))
    named = [share for share in shares if share is not None]
    return {
        **years,
        "acc_worst_year": worst_year,
        **regions,
        "acc_worst_region": worst_region,
        "acc_worst_region_without_other": min(named, default=None),
    }
