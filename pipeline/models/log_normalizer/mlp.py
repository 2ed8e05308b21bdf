"""The ablation of NeuCLIP that predicts with an MLP: AmorLIP's network in the NPN's place.

Legend: K world size, G global batch, P weights; side 0 predicts for image anchors, side 1 for text anchors.

    alpha[s,i] = mlp_s(e_s[i]) - s_ii / tau

The MLP stands for log mean_j exp(s_ij / tau). It is small, so every rank holds the whole of it and takes its own
anchors' gradient by autograd; an inner step all-reduces P + 1 floats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.collectives import all_gather, all_reduce, own_slice
from pipeline.errors import UserError
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors, Fitted
from pipeline.models.log_normalizer.config import LogNormalizerConfig
from pipeline.models.log_normalizer.fits import Fit, build_fit, settled
from pipeline.models.log_normalizer.inner_optimizers import build_optimizer
from pipeline.models.residual_mlp import ResidualMLP


class MLPNetwork(nn.Module):
    """The interface of the prototype network. A restart renews the optimizer's state and keeps the weights.

    All methods are collective; the caller's graph is not touched. weights: (1, 1, P), the same on every rank.
    """

    def __init__(self, config: LogNormalizerConfig, ratio_bound: float) -> None:
        """ratio_bound: cap of exp(r - alpha) in the inner steps."""
        super().__init__()
        self.config = config
        self.optimizer = build_optimizer(config)
        self.fit: Fit = build_fit(config, ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Allocate and initialise. seed: of the initial weights."""
        self.mlp = ResidualMLP(embed_dim)
        weights = self.mlp.initial_weights(torch.Generator().manual_seed(seed % 2**63))
        self.weights = weights.to(device, dtype).view(1, 1, -1)
        self.optimizer_state = self.optimizer.fresh_state(self.weights)
        self.steps = self.restart_count = 0

    def observe(self, embeddings: Tensor) -> None:
        """Restart if due. embeddings: (2, G, D), of which nothing is kept."""
        every = self.config.restart_every
        if self.steps == 0 or (every and self.steps % every == 0):
            self.optimizer_state = self.optimizer.fresh_state(self.weights)
            self.restart_count += 1

    def step(self, anchors: Anchors, log_target: Tensor) -> Fitted:
        """The `inner_steps` of one training step. log_target: r, (2, G)."""
        own = _own(anchors)
        local, target = _rows(anchors, own), log_target[:, own]
        tolerance, taken, before = self.config.inner_tolerance, 0, None
        while taken < self.config.inner_steps:
            value, gradient = self._value_and_gradient(local, target)
            if tolerance and before is not None and settled(before, value, tolerance):
                break
            self.optimizer.descend(self.weights, gradient, self.optimizer_state, torch.empty_like(gradient))
            taken, before = taken + 1, value
        self.steps += 1
        return Fitted(self.alpha(anchors), {"npn/inner_steps": log_target.new_tensor(taken)})

    def alpha(self, anchors: Anchors) -> Tensor:
        """(2, G); each rank computes its own anchors'."""
        with torch.no_grad():
            return all_gather(self._alpha(self.weights, _rows(anchors, _own(anchors))).T).T

    def derivatives(self, anchors: Anchors) -> AlphaDerivatives:
        """Of alpha, for every anchor."""
        with torch.enable_grad():
            embeddings = anchors.embeddings.detach().requires_grad_()
            output = self.mlp(self.weights.flatten(), embeddings).sum()
        (by_embedding,) = torch.autograd.grad(output, embeddings)
        shift = (anchors.positive / anchors.tau).expand(2, -1)
        return AlphaDerivatives(by_embedding, -torch.ones_like(shift) / anchors.tau, shift / anchors.tau)

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, the same on every rank."""
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**tensors, "steps": self.steps, "restarts": self.restart_count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take a state saved at any world size, after `prepare`. Raises UserError when it is another network's."""
        for name, tensor in self._tensors().items():
            if name not in state or state[name].shape != tensor.shape:
                raise UserError(
                    f"the checkpoint's NPN has no {name!r} of shape {tuple(tensor.shape)}, which this run's config "
                    "needs: set objectives.neuclip.npn and the model as they were, or start a new run"
                )
            tensor.copy_(state[name])
        self.steps, self.restart_count = state["steps"], state["restarts"]

    def _alpha(self, weights: Tensor, anchors: Anchors) -> Tensor:
        return self.mlp(weights.flatten(), anchors.embeddings) - anchors.positive / anchors.tau

    def _value_and_gradient(self, local: Anchors, log_target: Tensor) -> tuple[Tensor, Tensor]:
        """Of the fit over the global batch: a scalar, and tau times its gradient, (1, 1, P)."""
        with torch.enable_grad():
            weights = self.weights.detach().requires_grad_()
            alpha = self._alpha(weights, local)
        slope = local.tau * self.fit.slope(alpha.detach(), log_target)
        (gradient,) = torch.autograd.grad(alpha, weights, grad_outputs=slope)
        value = self.fit.value(alpha.detach(), log_target)
        mean = all_reduce(torch.cat([gradient.flatten(), value[None]]), "mean")
        return mean[-1], mean[:-1].view_as(gradient)

    def _tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, **{f"weights.{name}": part for name, part in self.optimizer_state.items()}}


def _own(anchors: Anchors) -> slice:
    """This rank's of the gathered anchors."""
    return own_slice(anchors.positive.shape[0])


def _rows(anchors: Anchors, rows: slice) -> Anchors:
    return Anchors(anchors.embeddings[:, rows], anchors.positive[rows], anchors.tau)
