"""The last embeddings of both modalities, from which the NPN restarts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class EmbeddingRing:
    """A ring buffer of the last `capacity` pairs, the same on every rank.

    embeddings: (2, capacity, D), images then texts; only the first `held` rows have been written.
    """

    def __init__(self, capacity: int, embed_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self.embeddings = torch.zeros(2, capacity, embed_dim, device=device, dtype=dtype)
        self.samples_seen = 0

    @property
    def capacity(self) -> int:
        """M: how many embeddings of each side it may hold."""
        return self.embeddings.shape[1]

    @property
    def held(self) -> int:
        """How many of each side it holds."""
        return min(self.samples_seen, self.capacity)

    def write(self, embeddings: Tensor) -> None:
        """embeddings: (2, G, D), in an order that does not depend on the world size, or restarts would."""
        count = embeddings.shape[1]
        kept = embeddings[:, max(0, count - self.capacity) :]
        first = self.samples_seen + count - kept.shape[1]
        places = torch.arange(first, first + kept.shape[1], device=self.embeddings.device) % self.capacity
        self.embeddings[:, places] = kept
        self.samples_seen += count

    def draw(self, seed: int) -> Tensor:
        """Rows to restart from, (capacity,); while n are held each is drawn floor or ceil of capacity/n times."""
        rows = torch.randperm(self.held, generator=torch.Generator().manual_seed(seed % 2**63))
        return rows.repeat(-(-self.capacity // self.held))[: self.capacity].to(self.embeddings.device)

    def state(self) -> dict[str, Any]:
        """All of it, copied."""
        return {"ring": self.embeddings.clone(), "samples_seen": self.samples_seen}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, on this device."""
        self.embeddings = state["ring"].to(self.embeddings.device, copy=True)
        self.samples_seen = state["samples_seen"]
