"""Evidence of what training consumed: a digest over every sample index, in order.

Two runs that end with the same digest trained on the same samples in the same order, whatever was killed, resumed
or split over other numbers of ranks on the way.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pipeline import collectives


class ConsumedDigest:
    """sha256 chain over the (G,) sample indices of each step, in run position order.

    Ranks collect their own and exchange them only at `sync`, so that a step pays nothing.
    """

    def __init__(self, digest: str = "") -> None:
        self.digest = digest
        self._pending: list[Tensor] = []

    def add(self, sample_index: Tensor) -> None:
        """Note one step's local (B,) int64 sample indices."""
        self._pending.append(sample_index)

    def sync(self) -> str:
        """Fold in what is pending; collective. Returns the digest, equal on every rank."""
        if self._pending:
            steps = len(self._pending)
            gathered = collectives.all_gather(torch.cat(self._pending))  # (K * steps * B,), rank by rank
            by_rank = gathered.view(-1, steps, len(self._pending[0]))
            for step in by_rank.permute(1, 2, 0).reshape(steps, -1).cpu().numpy():  # position = b * K + rank
                self.digest = hashlib.sha256(bytes.fromhex(self.digest) + step.astype("<i8").tobytes()).hexdigest()
            self._pending.clear()
        return self.digest
