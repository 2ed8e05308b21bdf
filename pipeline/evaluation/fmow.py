"""FMoW: land use from satellites, by the region that fares worst (WILDS, Koh et al. 2021).

WILDS leaves the region "Other", a few images of the test set, out of `acc_worst_region`. The official evaluation means
to, but looks for that word in names that it never gives to the regions, so there all regions count, and the score is 0
where none of those few is right. `acc_worst_region` is that number; `acc_worst_region_without_other` the one meant.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.evaluation import classification
from pipeline.evaluation.classification import ParseLabelAndMetadata
from pipeline.evaluation.metadata import Metadata, ParseMetadata, share_by_group
from pipeline.evaluation.task_run import Metrics, TaskRun
from pipeline.evaluation.tasks import Task

COLUMNS = ("region", "year", "y")
OTHER = 5  # after Asia, Europe, Africa, Americas, Oceania


def evaluate(run: TaskRun) -> Metrics:
    """Classification's metrics; accuracy, its least, and counts by year and by region."""
    predictions, labels, metadata = classification.predict_with_metadata(run, parser(run.task))
    return {**classification.metrics(predictions, labels), **by_year_and_region(predictions.best == labels, metadata)}


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
