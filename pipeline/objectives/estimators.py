"""Estimators kept per sample of the dataset, sharded over ranks (FastCLIP, arXiv 2407.01445).

Legend: N dataset size, G global batch; [s, i]: side and anchor, (2, G).

    u[s,i] <- (1 - gamma) u[s,i] + gamma g[s,i],    u[s,i] <- g[s,i] on the first visit

A rank keeps the rows `own_slice(N)` only. A batch reads and writes any rows: every rank puts what it holds of the
G samples into zeros, one all-reduce makes that the whole, every rank computes the same update and writes what it
holds. The published code keeps all N rows in the host memory of every process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.collectives import all_reduce, own_slice
from pipeline.errors import UserError


class SampleTables:
    """Named tables with a row (image anchor, text anchor) per sample of the dataset; NaN where never written.

    rows: by name, this rank's `own_slice(N)`: (n, 2) fp32.
    """

    def __init__(self, names: Sequence[str], dataset_size: int, device: torch.device) -> None:
        self.dataset_size = dataset_size
        self.own = own_slice(dataset_size)
        shape = (self.own.stop - self.own.start, 2)
        self.rows = {name: torch.full(shape, torch.nan, device=device) for name in names}

    def read(self, sample_index: Tensor) -> dict[str, Tensor]:
        """(2, G) of each table; one all-reduce of 2*G floats per table.

        sample_index: (G,), the same on every rank. Raises UserError when one is not in [0, N).
        """
        smallest, largest = (int(bound) for bound in sample_index.aminmax())
        if smallest < 0 or largest >= self.dataset_size:
            raise UserError(
                f"a batch holds sample_index {largest if smallest >= 0 else smallest}, and the dataset has "
                f"{self.dataset_size} samples (0 to {self.dataset_size - 1}): write its manifest again"
            )
        held, places = self._held(sample_index)
        found = torch.zeros(len(self.rows), sample_index.shape[0], 2, device=sample_index.device)
        for table, rows in zip(found, self.rows.values(), strict=True):
            table[held] = rows[places]
        return dict(zip(self.rows, all_reduce(found, "sum").transpose(1, 2), strict=True))

    def write(self, sample_index: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store (2, G) in each named table. A sample that the batch holds twice must have one value."""
        held, places = self._held(sample_index)
        for name, value in values.items():
            self.rows[name][places] = value.T[held].to(self.rows[name].dtype)

    def load(self, rows: Mapping[str, Tensor]) -> None:
        """Take back `rows`, by name, in the cut of this world size."""
        for name, kept in self.rows.items():
            kept.copy_(rows[name])

    def _held(self, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the G are in this rank's rows, (G,) bool, and where those are, (held,)."""
        held = (sample_index >= self.own.start) & (sample_index < self.own.stop)
        return held, sample_index[held] - self.own.start


def inner_learning_rate(epoch: int, decay_epochs: float, gamma_min: float) -> float:
    """gamma: 1 in epoch 0, then a cosine to gamma_min, where it stays from `decay_epochs`; constant in an epoch.

    decay_epochs > 0.
    """
    if epoch >= decay_epochs:
        return gamma_min
    return gamma_min + 0.5 * (1 - gamma_min) * (1 + math.cos(math.pi * epoch / decay_epochs))


def updated_log_u(log_u: Tensor, log_g: Tensor, gamma: float) -> Tensor:
    """log of (1 - gamma) u + gamma g, and log g where log_u is NaN; 0 < gamma <= 1. All of one shape.

    u_new >= gamma g, so g / u_new is at most 1 / gamma: no stale u can make a ratio run away.
    """
    log_kept = log_u + (math.log1p(-gamma) if gamma < 1 else -math.inf)
    return torch.where(log_u.isnan(), log_g, torch.logaddexp(log_kept, log_g + math.log(gamma)))


def mean_over_visits(values: Tensor, sample_index: Tensor) -> Tensor:
    """(2, G): each value replaced by the mean over the places of the batch with the same sample.

    The same whatever the order of the batch, so independent of how ranks share it.
    """
    group = torch.searchsorted(sample_index.sort().values, sample_index)
    with_count = torch.cat([values, torch.ones_like(values[:1])])
    sums = torch.zeros_like(with_count).index_add_(1, group, with_count)[:, group]
    return sums[:-1] / sums[-1]


def log_mean_over_visits(log_values: Tensor, sample_index: Tensor) -> Tensor:
    """(2, G): log of `mean_over_visits` of exp(log_values); log_values itself where a sample occurs once."""
    group = torch.searchsorted(sample_index.sort().values, sample_index).expand_as(log_values)
    top = torch.full_like(log_values, -torch.inf).scatter_reduce_(1, group, log_values, "amax").gather(1, group)
    return top + mean_over_visits((log_values - top).exp(), sample_index).log()
