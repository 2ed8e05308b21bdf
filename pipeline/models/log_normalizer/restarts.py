"""When the NPN restarts and with which embeddings: functions of seed, step and ring, whatever the world size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.ring import EmbeddingRing


class Restarts:
    """The schedule and the draws. count: restarts so far. held: embeddings in the ring at the last."""

    def __init__(self, config: LogNormalizerConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.count = self.held = 0

    def due(self, step: int, ring: EmbeddingRing) -> bool:
        """At step 0, every T_r steps and, with `warmup_restarts`, as the ring fills."""
        every = self.config.restart_every
        grown = ring.held >= 2 * self.held or ring.held == ring.capacity > self.held
        return step == 0 or bool(every and step % every == 0) or (self.config.warmup_restarts and grown)

    def draw(self, ring: EmbeddingRing) -> Tensor:
        """Rows of the ring, (M,), seeded; while it holds n < M each is taken floor(M/n) or ceil(M/n) times."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.count) % 2**63)
        self.count, self.held = self.count + 1, ring.held
        total = self.config.prototypes
        return torch.randperm(ring.held, generator=generator).repeat(-(-total // ring.held))[:total]

    def state(self) -> dict[str, Any]:
        return {"restarts": self.count, "held_at_restart": self.held}

    def load(self, state: dict[str, Any]) -> None:
        self.count, self.held = state["restarts"], state["held_at_restart"]
