"""Spherical k-means (Dhillon and Modha, Machine Learning 42, 2001): centroids of unit vectors by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ENTRIES = 2**24  # similarities held at once


def spherical_kmeans(points: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from given centroids; a cluster that empties keeps its centroid.

    points: (n, D), unit rows. start: (M, D), unit rows. Returns centroids (M, D), unit rows, and how many points are
    nearest to each, (M,). Sums are matrix products, so the result is the same in every run.
    """
    centroids = start
    for _ in range(iterations):
        sums, _ = _cluster(points, centroids)
        norms = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(norms > 0, F.normalize(sums, dim=1), centroids)
    return centroids, _cluster(points, centroids)[1]


def _cluster(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the points nearest to each centroid: (M, D), (M,)."""
    sums, sizes = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
    for chunk in points.split(max(1, CHUNK_ENTRIES // len(centroids))):
        similarity = chunk @ centroids.T
        nearest = similarity.argmax(dim=1, keepdim=True)
        member = similarity.zero_().scatter_(1, nearest, 1)
        sums.addmm_(member.T, chunk)
        sizes += member.sum(dim=0)
    return sums, sizes
