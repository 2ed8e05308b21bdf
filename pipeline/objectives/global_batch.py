"""The loss of a global batch from one gather of features and one of a few scalars per anchor.

Legend: B local batch, K world size, G = B*K global batch, D embedding dimension; side s = 0 has image
anchors, s = 1 text anchors; s_ii = e1[i].e2[i]; h[s,i,j] = (s_ij - s_ii) / tau as in docs/method.md.

A loss that depends on the features through h alone is fixed, to first order, by the weights dL/dh[s,i,j].
Where these are exp(h[s,i,j] + log_weight[s,i]) (every softmax-like loss: InfoNCE, RGCL), a rank can compute
the exact gradient of the global loss for its own samples, as anchors and as negatives of everybody else's
anchors, from the gathered features and the gathered log_weight: no feature gradient is sent. Similarities are
computed in chunks of anchors, so memory is linear in the chunk and never B*G; where a rank's anchors are one
chunk, the gradient takes over the statistics' similarities instead of computing them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)  # by side, between two passes

    @property
    def size(self) -> int:
        return self.positive.shape[0]

    def similarities(self, side: int, keep: bool) -> Iterator[tuple[Tensor, slice]]:
        """Chunks of local anchors: s_ij of all opposite j, (C, G), -inf at the positive; the anchors' rows among G.

        keep: leave them as they are, for the next pass; without it they are the caller's to overwrite.
        """
        step = max(1, CHUNK_ENTRIES // self.size)
        for start in range(self.own.start, self.own.stop, step):
            rows = slice(start, min(start + step, self.own.stop))
            similarity = self._kept.pop(side, None)
            if similarity is None:
                similarity = self.embeddings[side, rows] @ self.embeddings[1 - side].T
                similarity.diagonal(start).fill_(-torch.inf)
            if keep and rows == self.own:
                self._kept[side] = similarity
            yield similarity, rows


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
        for similarity, rows in batch.similarities(side, keep=True):
            # Measured from the nearest negative, below whom no sum overflows; from the positive again at the end.
            nearest = similarity.amax(dim=1)
            h = (similarity - nearest[:, None]).div_(tau[side, rows, None])
            share = h.exp()
            h.diagonal(rows.start).zero_()  # 0 * -inf is not 0
            total = share.sum(dim=1)
            offset = (nearest - batch.positive[rows]) / tau[side, rows]
            log_sum.append(total.log() + offset)
            mean_h.append(torch.linalg.vecdot(share, h) / total + offset)
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
    threshold = batch.positive - tau * log_weight  # dL/ds_ij = exp((s_ij - threshold[s,i]) / tau[s,i])
    # s_ii enters every h of anchor i, on both sides, with the opposite sign.
    diagonal = -(log_weight + log_g + math.log(batch.size - 1)).exp().sum(dim=0)
    sides = []
    for side in (0, 1):
        gradients = []
        for similarity, rows in batch.similarities(side, keep=False):
            weight = (similarity - threshold[side, rows, None]).div_(tau[side, rows, None]).exp_()
            weight += similarity.sub_(threshold[1 - side]).div_(tau[1 - side]).exp_()  # as others' negative
            weight.diagonal(rows.start).copy_(diagonal[rows])
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
