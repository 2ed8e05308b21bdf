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
from pipeline.errors import UserError
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors
from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.sharded_softmax import ShardedSoftmax

ADAGRAD_EPS = 1e-10  # torch.optim.Adagrad's


class NormalizerPredictionNetwork(nn.Module):
    """W1, W2 with their own closed-form AdaGrad, restarts from a ring buffer, and a world-size-free state.

    All methods are collective and without autograd. The state is plain tensors, not parameters or buffers, so
    that no cast or sharding of the towers reaches it; `state_dict()` gathers it, every rank must call it.
    """

    def __init__(self, config: LogNormalizerConfig, eps: float, ratio_bound: float) -> None:
        """eps: of the normalizer. ratio_bound: cap of exp(r - alpha) in the inner steps."""
        super().__init__()
        self.config = config
        self.log_eps = math.log(eps)
        self.log_ratio_bound = math.log(ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, seed: int) -> None:
        """Allocate. seed: of the restarts."""
        total = self.config.prototypes
        self.own = own_slice(total)
        self.seed = seed
        self.prototypes = torch.zeros(2, self.own.stop - self.own.start, embed_dim, device=device)
        self.squares = torch.zeros_like(self.prototypes)  # AdaGrad's sum of squared gradients
        self.ring = torch.zeros(2, total, embed_dim, device=device)  # images, texts; the same on every rank
        self.samples_seen = self.steps = self.restarts = 0

    def observe(self, embeddings: Tensor) -> None:
        """Write a global batch (2, G, D), images then texts, into the ring buffer of the last M embeddings.

        The order must not depend on the world size, or restarts would.
        """
        capacity, count = self.ring.shape[1], embeddings.shape[1]
        kept = embeddings[:, max(0, count - capacity) :]
        first = self.samples_seen + count - kept.shape[1]
        places = torch.arange(first, first + kept.shape[1], device=self.ring.device) % capacity
        self.ring[:, places] = kept
        self.samples_seen += count

    def step(self, anchors: Anchors, log_target: Tensor) -> Tensor:
        """One training step of the NPN: restart if due, then `inner_steps` AdaGrad steps.

        log_target: r = log(eps + g), (2, G), from the global batch. Returns alpha (2, G) after them.
        """
        every = self.config.restart_every
        if self.steps == 0 or (every and self.steps % every == 0):
            self.restart()
        softmax = self._softmax(anchors)
        squares = [self.squares[block.side, block.rows] for block in softmax.blocks]
        alpha = softmax.alpha(self.log_eps)
        for _ in range(self.config.inner_steps):
            weighted = softmax.weighted(alpha, self._slope(alpha, log_target))
            for (block, weights), sums in zip(weighted, squares, strict=True):
                gradient = block.tangent_gradient(weights)
                root = torch.sqrt(sums.addcmul_(gradient, gradient), out=block.scratch).add_(ADAGRAD_EPS)
                block.prototypes.addcdiv_(gradient, root, value=-self.config.lr)
                block.evaluate()
            alpha = softmax.alpha(self.log_eps)
        self.steps += 1
        return alpha

    def restart(self) -> None:
        """Prototypes from random embeddings of the ring buffer, AdaGrad's state to zero.

        While the ring holds n < M embeddings each is taken floor(M/n) or ceil(M/n) times. The draw is a
        function of (seed, number of restarts): the same whatever the world size.
        """
        total, held = self.ring.shape[1], min(self.samples_seen, self.ring.shape[1])
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.restarts) % 2**63)
        draw = torch.randperm(held, generator=generator).repeat(-(-total // held))[:total]
        chosen = draw[self.own].to(self.ring.device)
        self.prototypes = self.ring[:, chosen].flip(0)
        self.squares = torch.zeros_like(self.prototypes)
        self.restarts += 1

    def alpha(self, anchors: Anchors) -> Tensor:
        """(2, G)."""
        return self._softmax(anchors).alpha(self.log_eps)

    def gradient(self, anchors: Anchors, log_target: Tensor) -> Tensor:
        """dL/dW of this rank's prototypes, (2, m, D), for L = tau mean_i [exp(r - alpha) + alpha - 1].

        Closed form, two matrix products per side: with dL/dalpha = (tau/G) (1 - exp(r - alpha)),
        dL/dW_hat = p (dL/dalpha * e) / tau, projected onto the tangent of the unit sphere at W_hat and divided by |W|.
        """
        softmax = self._softmax(anchors)
        alpha = softmax.alpha(self.log_eps)
        gradient = torch.empty_like(self.prototypes)
        for block, weights in softmax.weighted(alpha, self._slope(alpha, log_target)):
            gradient[block.side, block.rows] = block.tangent_gradient(weights)
        return gradient

    def derivatives(self, anchors: Anchors) -> AlphaDerivatives:
        """Of alpha, for every anchor: sums over all prototypes, one all-reduce of 2*G*(D+2) floats."""
        softmax = self._softmax(anchors)
        alpha = softmax.alpha(self.log_eps)
        sums = anchors.embeddings.new_zeros(*anchors.embeddings.shape[:2], anchors.embeddings.shape[2] + 2)
        for block, p in softmax.weighted(alpha):
            # z = log p + alpha - log_mass, and p log p is 0 where p is.
            total = p.sum(dim=0)
            p_z = alpha[block.side] * total - torch.special.entr(p).sum(dim=0) - (block.log_masses * p).sum(dim=0)
            by_embedding = p.T @ (block.prototypes * block.inverse_norms)
            sums[block.side] += torch.cat([by_embedding, total[:, None], p_z[:, None]], dim=-1)
        sums = all_reduce(sums, "sum") / anchors.tau
        return AlphaDerivatives(sums[..., :-2], -sums[..., -2], -sums[..., -1])

    @property
    def log_masses(self) -> Tensor:
        """(2, m): each prototype weighs 1/M."""
        return self.prototypes.new_full(self.prototypes.shape[:2], -math.log(self.config.prototypes))

    def _softmax(self, anchors: Anchors) -> ShardedSoftmax:
        return ShardedSoftmax(self.prototypes, self.log_masses, anchors)

    def _slope(self, alpha: Tensor, log_target: Tensor) -> Tensor:
        """dL/dalpha / tau, (2, G)."""
        ratio = (log_target - alpha).clamp(max=self.log_ratio_bound).exp()
        return (1 - ratio) / ratio.shape[1]

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, gathered; collective. prototypes, squares, ring: (2, M, D)."""
        return {
            "prototypes": self._gather(self.prototypes),
            "squares": self._gather(self.squares),
            "ring": self.ring.clone(),
            "samples_seen": self.samples_seen,
            "steps": self.steps,
            "restarts": self.restarts,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take this rank's part of a state saved at any world size, after `prepare`.

        Raises UserError when the number of prototypes or the embedding dimension differ.
        """
        if state["ring"].shape != self.ring.shape:
            saved, wanted = (tuple(ring.shape[1:]) for ring in (state["ring"], self.ring))
            raise UserError(
                f"the checkpoint's NPN has (prototypes, embedding dimension) {saved}, this run's config "
                f"{wanted}: set objectives.neuclip.npn.prototypes and the model as they were, "
                "or start a new run"
            )
        device = self.ring.device
        self.prototypes = state["prototypes"][:, self.own].to(device, copy=True)
        self.squares = state["squares"][:, self.own].to(device, copy=True)
        self.ring = state["ring"].to(device, copy=True)
        self.samples_seen, self.steps, self.restarts = (state[name] for name in ("samples_seen", "steps", "restarts"))

    def _gather(self, part: Tensor) -> Tensor:
        whole = all_gather_slices(part.transpose(0, 1), self.config.prototypes)
        return whole.transpose(0, 1).clone(memory_format=torch.contiguous_format)
