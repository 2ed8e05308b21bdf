"""The loss of a global batch from one gather of features and one of a few scalars per anchor.

Legend: B local batch, K world size, G = B*K global batch, D embedding dimension; side s = 0 has image
anchors, s = 1 text anchors; s_ii = e1[i].e2[i]; h[s,i,j] = (s_ij - s_ii) / tau as in docs/method.md.

A loss that depends on the features through h alone is fixed, to first order, by the weights dL/dh[s,i,j].
Where these are exp(h[s,i,j] + log_weight[s,i]) (every softmax-like loss: InfoNCE, RGCL), a rank can compute
the exact gradient of the global loss for its own samples, as anchors and as negatives of everybody else's
anchors, from the gathered features and the gathered log_weight: no feature gradient is sent. Similarities are
computed in chunks of anchors, so memory is linear in the chunk and never B*G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.collectives import all_gather
from pipeline.distributed import rank, world_size
from pipeline.errors import UserError
from pipeline.objectives.base import Features

CHUNK_ENTRIES = 2**24  # similarities held at once per temporary: 64 MiB in fp32


@dataclass(frozen=True)
class GlobalBatch:
    """Detached features of all ranks, in rank order.

    embeddings: (2, G, D), images then texts. positive: (G,), s_ii. own: this rank's rows among the G.
    """

    embeddings: Tensor
    positive: Tensor
    own: slice

    @property
    def size(self) -> int:
        return self.positive.shape[0]


class AnchorStatistics(NamedTuple):
    """Of the negatives j != i of each anchor; (2, G) each.

    log_g: log mean_j exp(h[s,i,j]). mean_h: mean of h[s,i,j] under softmax_j h[s,i,j], which makes
    d log_g / d tau = -mean_h / tau.
    """

    log_g: Tensor
    mean_h: Tensor


def gather(features: Features) -> GlobalBatch:
    """One all-gather of the local features. Raises UserError when there is no negative to compare with."""
    local = torch.stack([features.image.detach(), features.text.detach()], dim=1)
    embeddings = all_gather(local).transpose(0, 1)
    batch_size, global_size = local.shape[0], embeddings.shape[1]
    if global_size < 2:
        raise UserError("a contrastive loss needs a global batch of at least 2 samples, not 1")
    own = slice(rank() * batch_size, (rank() + 1) * batch_size)
    return GlobalBatch(embeddings, (embeddings[0] * embeddings[1]).sum(-1), own)


def anchor_statistics(batch: GlobalBatch, tau: Tensor) -> AnchorStatistics:
    """Each rank computes those of its own anchors; one all-gather of four scalars per anchor.

    tau: (1,), or (2, G) where every anchor has its own.
    """
    tau = tau.expand(2, batch.size)
    local = []
    for side in (0, 1):
        log_sum, mean_h = [], []
        for similarity, rows, positives in _similarities(batch, side):
            h = (similarity - batch.positive[rows, None]) / tau[side, rows, None]
            h[positives] = -torch.inf
            log_sum.append(h.logsumexp(dim=1))
            share = (h - log_sum[-1][:, None]).exp_()
            h[positives] = 0
            mean_h.append((share * h).sum(dim=1))
        local += [torch.cat(log_sum) - math.log(batch.size - 1), torch.cat(mean_h)]
    log_g1, mean_h1, log_g2, mean_h2 = all_gather(torch.stack(local, dim=1)).T
    return AnchorStatistics(torch.stack([log_g1, log_g2]), torch.stack([mean_h1, mean_h2]))


def feature_gradient(batch: GlobalBatch, tau: Tensor, log_g: Tensor, log_weight: Tensor) -> Tensor:
    """dL/d(features) of the local samples, (2, B, D), images then texts.

    tau: (1,) or (2, G). log_g: (2, G).
    log_weight: (2, G), such that dL/dh[s,i,j] = exp(h[s,i,j] + log_weight[s,i]) for j != i.
    """
    tau = tau.expand(2, batch.size)
    log_weight = log_weight - tau.log()  # of dL/ds_ij, since h[s,i,j] = (s_ij - s_ii) / tau[s,i]
    # s_ii enters every h of anchor i, on both sides, with the opposite sign.
    diagonal = -(log_weight + log_g + math.log(batch.size - 1)).exp().sum(dim=0)
    sides = []
    for side in (0, 1):
        gradients = []
        for similarity, rows, positives in _similarities(batch, side):
            as_anchor = (similarity - batch.positive[rows, None]) / tau[side, rows, None] + log_weight[side, rows, None]
            as_negative = (similarity - batch.positive) / tau[1 - side] + log_weight[1 - side]
            weight = as_anchor.exp_().add_(as_negative.exp_())
            weight[positives] = diagonal[rows]
            gradients.append(weight @ batch.embeddings[1 - side])
        sides.append(torch.cat(gradients))
    return torch.stack(sides)


def with_gradient(features: Features, tau: Tensor, value: Tensor, feature_grad: Tensor, tau_grad: Tensor) -> Tensor:
    """A scalar worth `value` whose gradient, averaged over ranks, is that of the global loss (contract 1).

    value: (), the global loss. feature_grad: (2, B, D), its gradient for the local samples.
    tau_grad: (), its gradient for tau.
    """
    linear = (features.image * feature_grad[0]).sum() + (features.text * feature_grad[1]).sum()
    # Gradients through the features of different ranks add up, so the average over ranks needs the factor K;
    # tau is the same on every rank, and so is its gradient.
    surrogate = linear * world_size() + (tau * tau_grad).sum()
    return surrogate - surrogate.detach() + value


def _similarities(batch: GlobalBatch, side: int) -> Iterator[tuple[Tensor, slice, tuple[Tensor, Tensor]]]:
    """Chunks of local anchors against all opposite embeddings.

    Yields similarity (C, G), the anchors' rows among the G, and where in the chunk their positives are.
    """
    step = max(1, CHUNK_ENTRIES // batch.size)
    for start in range(batch.own.start, batch.own.stop, step):
        rows = slice(start, min(start + step, batch.own.stop))
        position = torch.arange(rows.start, rows.stop, device=batch.positive.device)
        similarity = batch.embeddings[side, rows] @ batch.embeddings[1 - side].T
        yield similarity, rows, (position - start, position)
