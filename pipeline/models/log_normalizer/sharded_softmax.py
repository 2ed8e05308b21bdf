"""The NPN's softmax over prototypes, sharded over ranks and evaluated in blocks of prototypes that stay in cache.

Legend: G anchors, D embedding dimension, M prototypes, m on this rank, b of them in a block; per side s

    z[k,i]   = (cos(e[i], W[k]) - s_ii) / tau
    alpha[i] = log( eps + (1/M) sum_k exp( z[k,i] ) )
    p[k,i]   = exp( z[k,i] - alpha[i] ) / M = d alpha[i] / d z[k,i]

A block is held as exponentials relative to its own maximum over prototypes, one per anchor: p then is a rescaling by
one number per anchor and block, known as soon as the ranks have exchanged their sums, and every similarity costs one
exponential. Row norms are applied to the similarities, never to the prototypes. Floats held: 2*G*m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.collectives import all_reduce_logsumexp
from pipeline.models.log_normalizer.anchors import Anchors

CPU_BLOCK_FLOATS = 2**17  # of prototypes: with gradient, scratch and AdaGrad's sums 2 MiB, about a core's cache
SHARED_BLOCK_FLOATS = 2**21  # with several threads: where cores are busy, a barrier per small operation costs far more


@dataclass(slots=True)
class Block:
    """Views of one side's prototypes `rows`, and of what is held for them.

    prototypes: (b, D). log_mass: (), -log M. embeddings: (G, D) and tau (1,), of the anchors. exponentials: (b, G);
    maximum, total: (G,), over the b prototypes. inverse_norms: (b, 1). gradient, scratch: (b, D), shared by all blocks.
    """

    side: int
    rows: slice
    prototypes: Tensor
    log_mass: Tensor
    embeddings: Tensor
    tau: Tensor
    exponentials: Tensor
    maximum: Tensor
    total: Tensor
    inverse_norms: Tensor
    gradient: Tensor
    scratch: Tensor

    def evaluate(self) -> None:
        """Take the prototypes as they are now."""
        values = self.exponentials
        torch.mm(self.prototypes, self.embeddings.T, out=values)
        norms = torch.linalg.vector_norm(self.prototypes, dim=-1, keepdim=True)
        torch.reciprocal(norms.clamp_(min=1e-12), out=self.inverse_norms)
        torch.addcmul(self.log_mass, values, self.inverse_norms / self.tau, out=values)
        torch.amax(values, dim=0, out=self.maximum)
        values.sub_(self.maximum).exp_()
        torch.sum(values, dim=0, out=self.total)

    def tangent_gradient(self, weights: Tensor) -> Tensor:
        """sum_i weights[k,i] dc[i,k]/dW[k], c the cosine, (b, D): that of the e[i] less its part along W, over |W|.

        weights: (b, G), destroyed. The result is good until the next block's.
        """
        torch.mm(weights.mul_(self.inverse_norms), self.embeddings, out=self.gradient)
        product = torch.mul(self.prototypes, self.gradient, out=self.scratch)
        along = product.sum(-1, keepdim=True).mul_(self.inverse_norms).mul_(self.inverse_norms)
        return self.gradient.addcmul_(self.prototypes, along, value=-1)


class ShardedSoftmax:
    """The softmax of `anchors` over prototypes that are updated block by block.

    prototypes: (2, m, D), any norm, read anew by every `Block.evaluate`. log_mass: (), -log M.
    """

    def __init__(self, prototypes: Tensor, log_mass: Tensor, anchors: Anchors) -> None:
        (_, count, dim), size = prototypes.shape, anchors.positive.shape[0]
        step = _block_rows(prototypes)
        bounds = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        self.shift = anchors.positive / anchors.tau
        exponentials = prototypes.new_empty(2, count, size)
        inverse_norms = prototypes.new_empty(2, count, 1)
        self.maxima, self.totals = prototypes.new_empty(2, 2, len(bounds), size)
        gradient, scratch = prototypes.new_empty(2, min(step, count), dim)
        self.blocks = [
            Block(
                side=side,
                rows=rows,
                prototypes=prototypes[side, rows],
                log_mass=log_mass,
                embeddings=anchors.embeddings[side],
                tau=anchors.tau,
                exponentials=exponentials[side, rows],
                maximum=self.maxima[side, number],
                total=self.totals[side, number],
                inverse_norms=inverse_norms[side, rows],
                gradient=gradient[: rows.stop - rows.start],
                scratch=scratch[: rows.stop - rows.start],
            )
            for side in (0, 1)
            for number, rows in enumerate(bounds)
        ]
        for block in self.blocks:
            block.evaluate()

    def alpha(self, log_eps: float) -> Tensor:
        """(2, G); collective: two all-reduces of 2*G floats."""
        local = (self.maxima + self.totals.log()).logsumexp(dim=1)
        log_sum = all_reduce_logsumexp(local) - self.shift
        return torch.logaddexp(log_sum, log_sum.new_tensor(log_eps))

    def weighted(self, alpha: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Block, Tensor]]:
        """Each block with weights[i] p[k,i], (b, G), in place of its exponentials: evaluate it before the next use.

        alpha, weights: (2, G).
        """
        factors = (self.maxima - (self.shift + alpha).unsqueeze(1)).exp_()
        if weights is not None:
            factors.mul_(weights.unsqueeze(1))
        for block, factor in zip(self.blocks, factors.flatten(0, 1), strict=True):
            yield block, block.exponentials.mul_(factor)


def _block_rows(prototypes: Tensor) -> int:
    """b: what a core's cache holds, more where threads share the work, all on an accelerator."""
    _, count, dim = prototypes.shape
    floats = CPU_BLOCK_FLOATS if torch.get_num_threads() == 1 else SHARED_BLOCK_FLOATS
    return max(1, floats // dim if prototypes.device.type == "cpu" else count)
