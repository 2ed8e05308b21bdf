"""The ablation of NeuCLIP that predicts with an MLP: AmorLIP's network in the NPN's place.

Legend: K world size, G global batch, P weights; side 0 predicts for image anchors, side 1 for text anchors.

    alpha[s,i] = mlp_s(e_s[i]) - s_ii / tau

The MLP stands for log mean_j exp(s_ij / tau). It is small, so every rank holds the whole of it and takes its own
anchors' gradient by autograd; an inner step all-reduces P floats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.collectives import all_gather, all_reduce, own_slice
from pipeline.config.objectives import LogNormalizerConfig
from pipeline.errors import UserError
from pipeline.models.log_normalizer.adagrad import adagrad_step
from pipeline.models.log_normalizer.anchors import AlphaDerivatives, Anchors, Fitted
from pipeline.models.log_normalizer.fit import fit_slope
from pipeline.models.residual_mlp import ResidualMLP


class MLPNetwork(nn.Module):
    """The interface of the prototype network. A restart renews AdaGrad's state and keeps the weights.

    All methods are collective; the caller's graph is not touched. weights, squares (AdaGrad's state): (P,), the same on
    every rank.
    """

    def __init__(self, config: LogNormalizerConfig, ratio_bound: float) -> None:
        """ratio_bound: cap of exp(r - alpha) in the inner steps."""
        super().__init__()
        self.config, self.ratio_bound = config, ratio_bound

    def prepare(self, device: torch.device, embed_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Allocate and initialise. seed: of the initial weights."""
        self.mlp = ResidualMLP(embed_dim)
        weights = self.mlp.initial_weights(torch.Generator().manual_seed(seed % 2**63))
        self.weights = weights.to(device, dtype)
        self.squares = torch.full_like(self.weights, self.config.accumulator_init)
        self.steps = self.restart_count = 0

    def observe(self, embeddings: Tensor) -> None:
        """Restart if due. embeddings: (2, G, D), of which nothing is kept."""
        if self.config.restarts_at(self.steps):
            self.squares.fill_(self.config.accumulator_init)
            self.restart_count += 1

    def step(self, anchors: Anchors, log_target: Tensor) -> Fitted:
        """The `inner_steps` of one training step. log_target: r, (2, G)."""
        own = _own(anchors)
        local, target = _rows(anchors, own), log_target[:, own]
        for _ in range(self.config.inner_steps):
            gradient = self._gradient(local, target)
            adagrad_step(self.weights, gradient, self.squares, self.config.lr, torch.empty_like(gradient))
        self.steps += 1
        return Fitted(self.alpha(anchors), metrics={})

    def alpha(self, anchors: Anchors) -> Tensor:
        """(2, G); each rank computes its own anchors'."""
        with torch.no_grad():
            return all_gather(self._alpha(self.weights, _rows(anchors, _own(anchors))).T).T

    def derivatives(self, anchors: Anchors) -> AlphaDerivatives:
        """Of alpha, for every anchor."""
        with torch.enable_grad():
            embeddings = anchors.embeddings.detach().requires_grad_()
            output = self.mlp(self.weights, embeddings).sum()
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
        return self.mlp(weights, anchors.embeddings) - anchors.positive / anchors.tau

    def _gradient(self, local: Anchors, log_target: Tensor) -> Tensor:
        """Of what the inner steps minimise, over the global batch, (P,)."""
        with torch.enable_grad():
            weights = self.weights.detach().requires_grad_()
            alpha = self._alpha(weights, local)
        slope = local.tau * fit_slope(self.config.fit, alpha.detach(), log_target, self.ratio_bound)
        (gradient,) = torch.autograd.grad(alpha, weights, grad_outputs=slope)
        return all_reduce(gradient, "mean")

    def _tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "weights.squares": self.squares}


def _own(anchors: Anchors) -> slice:
    """This rank's of the gathered anchors."""
    return own_slice(anchors.positive.shape[0])


def _rows(anchors: Anchors, rows: slice) -> Anchors:
    return Anchors(anchors.embeddings[:, rows], anchors.positive[rows], anchors.tau)
