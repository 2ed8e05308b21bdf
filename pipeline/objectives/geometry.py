"""Where the features lie on the sphere: alignment and uniformity (Wang and Isola, arXiv 2005.10242).

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
    """The three numbers as metrics, equal on every rank; collective, one all-reduce of three floats.

    alignment: mean |e1[i] - e2[i]|^2, in [0, 4]. uniformity, per modality: log mean over i != j of
    exp(-2 |x[i] - x[j]|^2), in [-8, 0]; 0 when all embeddings are the same. Pairs are those within a rank's batch;
    a local batch of one sample has none, and no uniformity.
    """
    alignment = (features.image - features.text).square().sum(dim=-1).mean()
    means = all_reduce(torch.stack([alignment, *(_pair_potential(x) for x in features)]), "mean")
    metrics = {"train/alignment": means[0]}
    if features.image.shape[0] > 1:
        metrics["train/uniformity_image"], metrics["train/uniformity_text"] = means[1:].log()
    return metrics


def _pair_potential(embeddings: Tensor) -> Tensor:
    """Mean over i != j of exp(-2 |x[i] - x[j]|^2) of unit rows (B, D); NaN for B = 1."""
    potential = (4 * (embeddings @ embeddings.T - 1)).exp_().fill_diagonal_(0)  # |x - y|^2 = 2 - 2 x.y
    count = embeddings.shape[0]
    return potential.sum() / (count * (count - 1) or math.nan)
