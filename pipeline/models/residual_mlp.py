"""AmorLIP's residual MLP (Sun et al., arXiv 2505.18983), one per modality, as a function of a flat vector of weights.

Legend: B embeddings, D their dimension, P = 2 (2 D^2 + 7 D + 1) weights; side 0 has image anchors, side 1 text anchors.

    a = LayerNorm(ReLU(W1 e + b1)),   a' = LayerNorm(ReLU(W2 a + b2)),   output = w3 . ReLU(a' + e) + b3

All weights are one vector, so that an optimizer step, a copy and a reduction over ranks are one operation each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class ResidualMLP:
    """Both MLPs; holds shapes only."""

    def __init__(self, embed_dim: int) -> None:
        d = embed_dim
        layer = [(2, d, d), (2, 1, d), (2, 1, d), (2, 1, d)]  # weight, bias; LayerNorm's scale, shift
        self.embed_dim = embed_dim
        self.shapes = [*layer, *layer, (2, d, 1), (2, 1, 1)]

    def __call__(self, weights: Tensor, embeddings: Tensor) -> Tensor:
        """The outputs, (2, B). weights: (P,). embeddings: (2, B, D)."""
        parts = weights.split([math.prod(shape) for shape in self.shapes])
        views = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        hidden = embeddings
        for weight, bias, scale, shift in (views[:4], views[4:8]):
            active = torch.baddbmm(bias, hidden, weight).relu()
            hidden = F.layer_norm(active, active.shape[-1:]) * scale + shift
        return torch.baddbmm(views[9], (hidden + embeddings).relu(), views[8]).squeeze(-1)

    def initial_weights(self, generator: torch.Generator) -> Tensor:
        """(P,) on the CPU, as torch initialises linear layers and LayerNorms."""
        bound = 1 / math.sqrt(self.embed_dim)
        parts = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in self.shapes]
        for scale, shift in ((2, 3), (6, 7)):
            parts[scale].fill_(1)
            parts[shift].zero_()
        return torch.cat([part.flatten() for part in parts])
