"""When the NPN restarts and with which embeddings: functions of seed, step and ring, whatever the world size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.collectives import broadcast
from pipeline.distributed import rank
from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.kmeans import spherical_kmeans
from pipeline.models.log_normalizer.ring import EmbeddingRing

ITERATIONS = 5  # of Lloyd, from a random start


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

    def embeddings(self, ring: EmbeddingRing, own: slice) -> tuple[Tensor, Tensor]:
        """Prototypes `own` of a restart and the log of their masses: (2, m, D), images then texts, and (2, m, 1).

        Collective with `restart: kmeans`, where rank 0 computes.
        """
        draw = self._draw(ring)
        if self.config.restart == "kmeans":
            embeddings, masses = (broadcast(tensor)[:, own] for tensor in self._centroids(ring, draw))
        else:
            embeddings = ring.embeddings[:, draw[own]]
            masses = embeddings.new_full(embeddings.shape[:2], 1 / self.config.prototypes)
        return embeddings, masses.log().unsqueeze(-1)

    def _draw(self, ring: EmbeddingRing) -> Tensor:
        """Rows of the ring, (M,), seeded; while it holds n < M each is taken floor(M/n) or ceil(M/n) times."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.count) % 2**63)
        self.count, self.held = self.count + 1, ring.held
        total = self.config.prototypes
        draw = torch.randperm(ring.held, generator=generator).repeat(-(-total // ring.held))[:total]
        return draw.to(ring.embeddings.device)

    def _centroids(self, ring: EmbeddingRing, draw: Tensor) -> tuple[Tensor, Tensor]:
        """All M of both sides, (2, M, D), and their masses, (2, M), from the sizes of their clusters."""
        total, held = self.config.prototypes, ring.held
        start = ring.embeddings[:, draw]
        if held <= total:  # every embedding is a cluster, shared by its copies
            copies = torch.bincount(draw, minlength=held)[draw]
            return start, (1 / (held * copies)).to(start.dtype).expand(2, -1).contiguous()
        if rank() != 0:
            return start, start.new_empty(2, total)
        clusters = [spherical_kmeans(ring.embeddings[side, :held], start[side], ITERATIONS) for side in (0, 1)]
        centroids, sizes = (torch.stack(tensors) for tensors in zip(*clusters, strict=True))
        return centroids, (sizes + 1) / (held + total)  # Laplace's rule: an empty cluster has a mass, too

    def state(self) -> dict[str, Any]:
        return {"restarts": self.count, "held_at_restart": self.held}

    def load(self, state: dict[str, Any]) -> None:
        self.count, self.held = state["restarts"], state["held_at_restart"]
