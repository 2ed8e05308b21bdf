"""The prototype network of NeuCLIP (arXiv 2511.08417), its prototypes sharded over ranks.

Legend: K world size, G global batch, D embedding dimension, M prototypes, m = M/K of them on this rank;
side 0 predicts for image anchors from text prototypes W1, side 1 for text anchors from image prototypes W2.

    alpha[s,i] = log( eps + (1/M) sum_k exp( (cos(e_s[i], W_s[k]) - s_ii) / tau ) )

It is a softmax over prototypes, so the prototypes are sharded as a vocabulary-parallel cross-entropy shards
its vocabulary: each rank evaluates all G anchors against its m prototypes, and an inner step exchanges the
maximum and the sum of each anchor's partial logsumexp, 4*G floats in all. Floats held per rank: 2*G*m
exponentials, 4*m*D prototypes and AdaGrad state, 2*M*D in the ring buffer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.collectives import all_gather_slices, all_reduce, own_slice
from pipeline.config.objectives import LogNormalizerConfig
from pipeline.errors import UserError
from pipeline.models.log_normalizer.adagrad import adagrad_step
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors, Fitted
from pipeline.models.log_normalizer.fit import fit_slope
from pipeline.models.log_normalizer.ring import EmbeddingRing
from pipeline.models.log_normalizer.sharded_softmax import ShardedSoftmax

SPREAD_EVERY = 10  # steps


class PrototypeNetwork(nn.Module):
    """W1, W2 with their own closed-form AdaGrad, restarts from a ring buffer, and a world-size-free state.

    All methods are collective and without autograd. The state is plain tensors, not parameters or buffers, so
    that no cast or sharding of the towers reaches it; `state_dict()` gathers it, every rank must call it.

    prototypes, squares (AdaGrad's state): (2, m, D). log_mass: (), -log M. restart_count: restarts so far.
    """

    def __init__(self, config: LogNormalizerConfig, eps: float, ratio_bound: float) -> None:
        """eps: of the normalizer. ratio_bound: cap of exp(r - alpha) in the inner steps."""
        super().__init__()
        self.config, self.ratio_bound = config, ratio_bound
        self.log_eps = math.log(eps)

    def prepare(self, device: torch.device, embed_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Allocate. seed: of the restarts."""
        total = self.config.prototypes
        self.own = own_slice(total)
        self.seed = seed
        self.ring = EmbeddingRing(total, embed_dim, device, dtype)
        self.prototypes = torch.zeros(2, self.own.stop - self.own.start, embed_dim, device=device, dtype=dtype)
        self.squares = torch.full_like(self.prototypes, self.config.accumulator_init)
        self.log_mass = self.prototypes.new_tensor(-math.log(total))
        self.steps = self.restart_count = 0

    def observe(self, embeddings: Tensor) -> None:
        """Take a global batch (2, G, D), images then texts, into the ring buffer, and restart from it if due."""
        self.ring.write(embeddings)
        if self.config.restarts_at(self.steps):
            self.restart()

    def restart(self) -> None:
        """Prototypes from the ring buffer, W1 texts and W2 images, and AdaGrad's state as at the start."""
        rows = self.ring.draw(self.seed * 1_000_003 + self.restart_count)[self.own]
        self.prototypes = self.ring.embeddings[:, rows].flip(0)
        self.squares.fill_(self.config.accumulator_init)
        self.restart_count += 1

    def step(self, anchors: Anchors, log_target: Tensor) -> Fitted:
        """The `inner_steps` of one training step, anchors held fixed.

        log_target: r = log(eps + g), (2, G), from the global batch.
        """
        softmax = self._softmax(anchors)
        alpha = softmax.alpha(self.log_eps)
        for _ in range(self.config.inner_steps):
            slope = fit_slope(self.config.fit, alpha, log_target, self.ratio_bound)
            for block, weights in softmax.weighted(alpha, slope):
                gradient = block.tangent_gradient(weights)
                squares = self.squares[block.side, block.rows]
                adagrad_step(block.prototypes, gradient, squares, self.config.lr, block.scratch)
                block.evaluate()
            alpha = softmax.alpha(self.log_eps)
        metrics = {}
        if self.steps % SPREAD_EVERY == 0 and self.config.prototypes > 1:
            metrics["npn/spread_ratio"] = self._spread_ratio(softmax)
        self.steps += 1
        return Fitted(alpha, metrics)

    def alpha(self, anchors: Anchors) -> Tensor:
        """(2, G)."""
        return self._softmax(anchors).alpha(self.log_eps)

    def derivatives(self, anchors: Anchors) -> AlphaDerivatives:
        """Of alpha, for every anchor: sums over all prototypes, one all-reduce of 2*G*(D+2) floats."""
        softmax = self._softmax(anchors)
        alpha = softmax.alpha(self.log_eps)
        sums = anchors.embeddings.new_zeros(*anchors.embeddings.shape[:2], anchors.embeddings.shape[2] + 2)
        for block, p in softmax.weighted(alpha):
            # z = log p + alpha - log_mass, and p log p is 0 where p is.
            total = p.sum(dim=0)
            p_z = alpha[block.side] * total - torch.special.entr(p).sum(dim=0) - (self.log_mass * p).sum(dim=0)
            by_embedding = p.T @ (block.prototypes * block.inverse_norms)
            sums[block.side] += torch.cat([by_embedding, total[:, None], p_z[:, None]], dim=-1)
        sums = all_reduce(sums, "sum") / anchors.tau
        return AlphaDerivatives(sums[..., :-2], -sums[..., -2], -sums[..., -1])

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, gathered; collective. prototypes and their squares: (2, M, D)."""
        return {
            "prototypes": self._gather(self.prototypes),
            "prototypes.squares": self._gather(self.squares),
            **self.ring.state(),
            "steps": self.steps,
            "restarts": self.restart_count,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take this rank's part of a state saved at any world size, after `prepare`.

        Raises UserError when the options or the embedding dimension are not those it was saved with.
        """
        self._refuse_another_shape(state)
        self.prototypes.copy_(state["prototypes"][:, self.own])
        self.squares.copy_(state["prototypes.squares"][:, self.own])
        self.ring.load(state)
        self.steps, self.restart_count = state["steps"], state["restarts"]

    def _spread_ratio(self, softmax: ShardedSoftmax) -> Tensor:
        """1 - |mean direction|^2 of the prototypes over that of the ring's embeddings, the mean of both sides.

        Near 0 where the prototypes have collapsed. One all-reduce of 2*D floats.
        """
        total = torch.zeros_like(self.ring.embeddings[:, 0])
        for block in softmax.blocks:
            total[block.side] += (block.inverse_norms * block.prototypes).sum(dim=0)
        means = all_reduce(total, "sum") / self.config.prototypes, self.ring.embeddings[:, : self.ring.held].mean(dim=1)
        prototypes, ring = ((1 - mean.square().sum(dim=-1)).clamp(min=1e-6) for mean in means)
        return (prototypes / ring.flip(0)).mean()

    def _refuse_another_shape(self, state: dict[str, Any]) -> None:
        saved = tuple(state["prototypes"].shape[1:]) if "prototypes" in state else "none"
        wanted = (self.config.prototypes, self.prototypes.shape[2])
        if saved != wanted:
            raise UserError(
                f"the checkpoint's NPN is of (prototypes, embedding dimension) {saved}, this run's config asks for "
                f"{wanted}: set objectives.neuclip.npn and the model as they were, or start a new run"
            )

    def _softmax(self, anchors: Anchors) -> ShardedSoftmax:
        return ShardedSoftmax(self.prototypes, self.log_mass, anchors)

    def _gather(self, part: Tensor) -> Tensor:
        whole = all_gather_slices(part.transpose(0, 1), self.config.prototypes)
        return whole.transpose(0, 1).clone(memory_format=torch.contiguous_format)
