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
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors, Fitted
from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.fits import Fit, build_fit, settled
from pipeline.models.log_normalizer.inner_optimizers import State, build_optimizer
from pipeline.models.log_normalizer.restarts import Restarts
from pipeline.models.log_normalizer.ring import EmbeddingRing
from pipeline.models.log_normalizer.sharded_softmax import Block, ShardedSoftmax

SPREAD_EVERY = 10  # steps


class PrototypeNetwork(nn.Module):
    """W1, W2 with their own closed-form optimizer, restarts from a ring buffer, and a world-size-free state.

    All methods are collective and without autograd. The state is plain tensors, not parameters or buffers, so
    that no cast or sharding of the towers reaches it; `state_dict()` gathers it, every rank must call it.

    prototypes: (2, m, D). log_masses: (2, m, 1), -log M unless they are learned. optimizer_state: by parameter.
    usage: (2, m, 1), sum over the steps since a restart of p, averaged over anchors; kept for `restart: dead`.
    """

    def __init__(self, config: LogNormalizerConfig, eps: float, ratio_bound: float) -> None:
        """eps: of the normalizer. ratio_bound: cap of exp(r - alpha) in the inner steps."""
        super().__init__()
        self.config = config
        self.optimizer = build_optimizer(config)
        self.log_eps = math.log(eps)
        self.fit: Fit = build_fit(config, ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Allocate. seed: of the restarts."""
        total = self.config.prototypes
        self.own = own_slice(total)
        self.ring = EmbeddingRing(self.config.ring or total, embed_dim, device, dtype)
        self.restarts = Restarts(self.config, seed)
        self.steps = self.used_steps = 0
        self.prototypes = torch.zeros(2, self.own.stop - self.own.start, embed_dim, device=device, dtype=dtype)
        self.log_masses = self.prototypes.new_full((*self.prototypes.shape[:2], 1), -math.log(total))
        self.usage = torch.zeros_like(self.log_masses)
        self.optimizer_state = self._fresh_state()

    @property
    def restart_count(self) -> int:
        """Restarts so far."""
        return self.restarts.count

    def observe(self, embeddings: Tensor) -> None:
        """Take a global batch (2, G, D), images then texts, into the ring buffer, and restart from it if due."""
        self.ring.write(embeddings)
        if self.restarts.due(self.steps, self.ring):
            self.restart()

    def restart(self) -> None:
        """Prototypes from the ring buffer and the optimizer's state as at the start, or so for the dead ones only."""
        embeddings, log_masses = self.restarts.embeddings(self.ring, self.own)
        replaced = torch.ones_like(self.usage, dtype=torch.bool)
        if self.config.restart == "dead" and self.used_steps:
            replaced = self.usage * self.config.prototypes < self.config.dead_below * self.used_steps
        self.prototypes = torch.where(replaced, embeddings.flip(0), self.prototypes)
        if self.config.masses == "learned":
            self.log_masses = torch.where(replaced, log_masses.flip(0), self.log_masses)
        for parameter, fresh in self._fresh_state().items():
            kept = self.optimizer_state[parameter]
            self.optimizer_state[parameter] = {k: torch.where(replaced, fresh[k], kept[k]) for k in fresh}
        self.usage, self.used_steps = torch.zeros_like(self.usage), 0

    def step(self, anchors: Anchors, log_target: Tensor) -> Fitted:
        """The `inner_steps` of one training step, anchors held fixed.

        log_target: r = log(eps + g), (2, G), from the global batch.
        """
        softmax = self._softmax(anchors)
        states = [self._views(self.optimizer_state, block) for block in softmax.blocks]
        alpha = softmax.alpha(self.log_eps)
        taken, tolerance = 0, self.config.inner_tolerance
        while taken < self.config.inner_steps:
            before, slope = alpha, self.fit.slope(alpha, log_target)
            for (block, weights), state in zip(softmax.weighted(alpha, slope), states, strict=True):
                self._descend(block, weights, state)
                block.evaluate()
            alpha = softmax.alpha(self.log_eps)
            taken += 1
            # Every rank has all alphas, so all decide the same.
            if tolerance and settled(self.fit.value(before, log_target), self.fit.value(alpha, log_target), tolerance):
                break
        metrics = {"npn/inner_steps": alpha.new_tensor(taken)}
        if self.steps % SPREAD_EVERY == 0 and self.config.prototypes > 1:
            metrics["npn/spread_ratio"] = self._spread_ratio(softmax)
        if self.config.restart == "dead":
            for block, p in softmax.weighted(alpha):
                self.usage[block.side, block.rows] += p.mean(dim=1, keepdim=True)
            self.used_steps += 1
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
            p_z = alpha[block.side] * total - torch.special.entr(p).sum(dim=0) - (block.log_masses * p).sum(dim=0)
            by_embedding = p.T @ (block.prototypes * block.inverse_norms)
            sums[block.side] += torch.cat([by_embedding, total[:, None], p_z[:, None]], dim=-1)
        sums = all_reduce(sums, "sum") / anchors.tau
        return AlphaDerivatives(sums[..., :-2], -sums[..., -2], -sums[..., -1])

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, gathered; collective. prototypes, log_masses and the optimizer's: (2, M, ...)."""
        gathered = {name: self._gather(part) for name, part in self._sharded().items()}
        counters = {"steps": self.steps, "used_steps": self.used_steps}
        return {**gathered, **self.ring.state(), **self.restarts.state(), **counters}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take this rank's part of a state saved at any world size, after `prepare`.

        Raises UserError when the options or the embedding dimension are not those it was saved with.
        """
        self._refuse_another_shape(state)
        for name, part in self._sharded().items():
            part.copy_(state[name][:, self.own])
        self.ring.load(state)
        self.restarts.load(state)
        self.steps, self.used_steps = state["steps"], state["used_steps"]

    def _descend(self, block: Block, weights: Tensor, state: dict[str, State]) -> None:
        """One optimizer step of the block. weights: (b, G), d fit / d z[k,i]; destroyed."""
        if self.config.masses == "learned":
            gradient = weights.sum(1, keepdim=True).mul_(block.tau)
            self.optimizer.descend(block.log_masses, gradient, state["log_masses"], torch.empty_like(gradient))
        gradient = block.tangent_gradient(weights)
        self.optimizer.descend(block.prototypes, gradient, state["prototypes"], block.scratch)

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

    def _fresh_state(self) -> dict[str, State]:
        state = {"prototypes": self.optimizer.fresh_state(self.prototypes)}
        if self.config.masses == "learned":
            state["log_masses"] = self.optimizer.fresh_state(self.log_masses)
        return state

    @staticmethod
    def _views(states: dict[str, State], block: Block) -> dict[str, State]:
        """The rows of a block."""
        return {
            parameter: {name: tensor[block.side, block.rows] for name, tensor in state.items()}
            for parameter, state in states.items()
        }

    def _sharded(self) -> dict[str, Tensor]:
        """Every tensor with a row per prototype of this rank."""
        states = {
            f"{parameter}.{name}": tensor
            for parameter, state in self.optimizer_state.items()
            for name, tensor in state.items()
        }
        return {"prototypes": self.prototypes, "log_masses": self.log_masses, "usage": self.usage, **states}

    def _refuse_another_shape(self, state: dict[str, Any]) -> None:
        missing = {*self._sharded(), "ring"} - state.keys()
        saved = None if missing else (*state["prototypes"].shape[1:], state["ring"].shape[1])
        wanted = (self.config.prototypes, self.prototypes.shape[2], self.ring.capacity)
        if saved != wanted:
            has = f"lacks {', '.join(sorted(missing))}" if missing else f"is of {saved}"
            raise UserError(
                f"the checkpoint's NPN {has}, this run's config asks for (prototypes, embedding dimension, ring) "
                f"{wanted}: set objectives.neuclip.npn and the model as they were, or start a new run"
            )

    def _softmax(self, anchors: Anchors) -> ShardedSoftmax:
        return ShardedSoftmax(self.prototypes, self.log_masses, anchors)

    def _gather(self, part: Tensor) -> Tensor:
        whole = all_gather_slices(part.transpose(0, 1), self.config.prototypes)
        return whole.transpose(0, 1).clone(memory_format=torch.contiguous_format)
