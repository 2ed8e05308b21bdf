"""Where the features lie on the sphere: alignment and uniformity (Wang and Isola, arXiv 2005.10242), and accuracy.

Legend: B local batch, D embedding dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.collectives import all_reduce
from pipeline.objectives.base import Features


@torch.no_grad()
def geometry(features: Features) -> dict[str, Tensor]:
    """The four numbers as metrics, equal on every rank; collective, one all-reduce of four floats.

    alignment: mean |e1[i] - e2[i]|^2, in [0, 4]. uniformity, per modality: log mean over i != j of
    exp(-2 |x[i] - x[j]|^2), in [-8, 0]; 0 when all embeddings are the same. accuracy: share of samples that are the
    nearest to their own other half, over both directions; by chance 1/B. All within a rank's batch; a local batch of
    one sample has neither pairs nor others, so neither uniformity nor accuracy.
    """
    alignment = (features.image - features.text).square().sum(dim=-1).mean()
    own = [alignment, _accuracy(features), *(_pair_potential(x) for x in features)]
    means = all_reduce(torch.stack(own), "mean")
    metrics = {"train/alignment": means[0]}
    if features.image.shape[0] > 1:
        metrics["train/accuracy"] = means[1]
        metrics["train/uniformity_image"], metrics["train/uniformity_text"] = means[2:].log()
    return metrics


def _accuracy(features: Features) -> Tensor:
    """Share of rows and of columns of the similarities (B, B) whose largest is on the diagonal."""
    similarity = features.image @ features.text.T
    right = torch.arange(len(similarity), device=similarity.device)
    hits = [(similarity.argmax(dim=dim) == right).to(similarity.dtype).mean() for dim in (0, 1)]
    return (hits[0] + hits[1]) / 2


def _pair_potential(embeddings: Tensor) -> Tensor:
    """Mean over i != j of exp(-2 |x[i] - x[j]|^2) of unit rows (B, D); NaN for B = 1."""
    potential = (4 * (embeddings @ embeddings.T - 1)).exp_().fill_diagonal_(0)  # |x - y|^2 = 2 - 2 x.y
    count = embeddings.shape[0]
    return potential.sum() / (count * (count - 1) or math.nan)
