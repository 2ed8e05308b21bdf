"""What an NPN predicts for, and what it says of its prediction."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Anchors(NamedTuple):
    """What alpha is a function of, besides the network's parameters.

    embeddings: (2, G, D), L2-normalised. positive: (G,), s_ii. tau: (1,).
    """

    embeddings: Tensor
    positive: Tensor
    tau: Tensor


class AlphaDerivatives(NamedTuple):
    """d alpha / d (its own anchor's embedding, s_ii, tau): (2, G, D), (2, G), (2, G)."""

    embedding: Tensor
    positive: Tensor
    tau: Tensor


class Fitted(NamedTuple):
    """After a step's inner steps. alpha: (2, G). metrics: as docs/method.md names them, equal on every rank."""

    alpha: Tensor
    metrics: dict[str, Tensor]
