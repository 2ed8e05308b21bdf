"""Metadata of a task's samples, and shares by group, with the names that WILDS gives them (Koh et al. 2021).

A sample's metadata is a vector of numbers, its `npy`. Its first columns have names and hold whole numbers; what follows
(WILDS adds one) is not read.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_run import Metrics, Rows

MOST_GROUPS = 10_000  # a nonsensical number would fill the memory with empty groups


@dataclass(frozen=True)
class Metadata:
    """Of N samples. names: of the columns. values: (N, W) int64."""

    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, names: tuple[str, ...], rows: Rows) -> Metadata:
        """What `metadata_rows` made rows of."""
        return cls(names, rows["metadata"])

    def column(self, name: str) -> Tensor:
        """(N,) int64."""
        return self.values[:, self.names.index(name)]


class Row(NamedTuple):
    """Of one sample. width: columns that its vector has. values: of those with names."""

    width: int
    values: list[int]


@dataclass(frozen=True)
class ParseMetadata:
    """A sample -> its row. names: of the columns. grouped: the columns that count groups, from 0 to below `groups`.

    Raises ValueError for other metadata.
    """

    names: tuple[str, ...]
    grouped: tuple[str, ...]
    groups: int = MOST_GROUPS

    def __call__(self, sample: Sample) -> Row:
        vector = np.lib.format.read_array(io.BytesIO(member(sample, "npy")), allow_pickle=False)
        if vector.ndim != 1 or vector.dtype.kind not in "iuf":
            raise ValueError(f"metadata should be a vector of numbers, not {vector.dtype} of shape {vector.shape}")
        if len(vector) < len(self.names):
            raise ValueError(f"metadata has {len(vector)} columns, the task's are {', '.join(self.names)}")
        named = vector[: len(self.names)]
        if not np.array_equal(named, np.floor(named)):
            raise ValueError(f"metadata should be whole numbers, not {named.tolist()}")
        values = [int(value) for value in named]
        for name in self.grouped:
            group = values[self.names.index(name)]
            if not 0 <= group < self.groups:
                raise ValueError(f"{name} {group} is not in [0, {self.groups})")
        return Row(len(vector), values)


def metadata_rows(rows: Sequence[Row]) -> Rows:
    """metadata (B, W) int64 and metadata_width (B,) int64."""
    return {
        "metadata": torch.tensor([row.values for row in rows]),
        "metadata_width": torch.tensor([row.width for row in rows]),
    }


def check_widths(rows: Rows, where: object) -> None:
    """Raises UserError that says `where` if the metadata of some sample has another width than the first's."""
    if "metadata_width" not in rows:
        return
    widths = rows["metadata_width"]
    odd = (widths != widths[0]).nonzero()
    if len(odd):
        sample = int(odd[0])
        raise UserError(
            f"{where}: the metadata of sample {sample} (from 0) has {widths[sample]} columns, not {widths[0]}"
        )


def share_by_group(
    name: str, hits: Tensor, metadata: Metadata, by: tuple[str, ...], value_names: tuple[str, ...] = ()
) -> Metrics:
    """`NAME_avg`; of each group `NAME_COLUMN:VALUE`, None where empty, and `count_COLUMN:VALUE`; the least, `NAME_wg`.

    hits: (N,) bool. by: columns in the order of the metadata; a group is a combination of their values from 0 to the
    largest that occurs, and is named with the last column first. value_names: of the one column, in place of numbers.
    """
    sizes = [len(value_names)] if value_names else [int(metadata.column(column).max()) + 1 for column in by]
    group, factor = torch.zeros(len(hits), dtype=torch.int64), 1
    for column, size in zip(by, sizes, strict=True):
        group, factor = group + factor * metadata.column(column), factor * size
    shares, counts = share_of_hits(hits, group, factor)
    result: Metrics = {f"{name}_avg": hits.double().mean().item()}
    values = itertools.product(*(range(size) for size in reversed(sizes)))  # the first column runs fastest
    for value, share, count in zip(values, shares.tolist(), counts.tolist(), strict=True):
        words = [value_names[number] if value_names else str(number) for number in value]
        label = "_".join(f"{column}:{word}" for column, word in zip(reversed(by), words, strict=True))
        result[f"{name}_{label}"] = share if count else None
        result[f"count_{label}"] = count
    result[f"{name}_wg"] = shares[counts > 0].min().item()
    return result


def share_of_hits(hits: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Share of hits in and size of each group: (groups,) float64, NaN where empty, and (groups,) int64.

    hits: (N,) bool. group: (N,) int64 in [0, groups).
    """
    counts = group.bincount(minlength=groups)
    return group[hits].bincount(minlength=groups).double() / counts, counts
