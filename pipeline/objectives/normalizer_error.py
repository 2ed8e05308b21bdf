"""The log-normalizer error: how far what a step used lies from the truth over the reference samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.collectives import all_gather
from pipeline.errors import UserError
from pipeline.objectives.base import Features

CHUNK_ENTRIES = 2**24  # similarities held at once per temporary: 64 MiB in fp32


class NormalizerError(NamedTuple):
    """mse: (), the mean over anchors and sides. standard_error: (), of that mean over the anchors."""

    mse: Tensor
    standard_error: Tensor


@torch.no_grad()
def normalizer_error(
    anchors: Features,
    anchor_index: Tensor,
    alpha_used: Tensor,
    reference: Features,
    reference_index: Tensor,
    tau: Tensor,
    eps: float,
) -> NormalizerError:
    """mean_i (alpha_used[i] - log(eps + g_i(S)))^2 over all ranks' anchors, S the R reference samples but the anchor.

    Collective: one all-gather of a number per anchor.
    anchors: this rank's, (A, D) each; two or more in all ranks. reference: (R, D) each, encoded by the same weights;
    the whole training set gives the exact error, a subset an estimate.
    anchor_index, reference_index: (A,), (R,) sample_index; a reference sample with the anchor's is left out.
    alpha_used: (2, A). tau: (1,). Raises UserError when the reference holds nothing but an anchor itself.
    """
    positive = (anchors.image * anchors.text).sum(-1)
    step = max(1, CHUNK_ENTRIES // reference_index.shape[0])
    squares = []
    for start in range(0, anchor_index.shape[0], step):
        rows = slice(start, start + step)
        itself = anchor_index[rows, None] == reference_index
        others = (~itself).sum(dim=1)
        if bool((others == 0).any()):
            raise UserError("the log-normalizer error needs a corpus of at least 2 samples, and this one holds 1")
        sides = []
        for anchor, opposite in ((anchors.image, reference.text), (anchors.text, reference.image)):
            h = (anchor[rows] @ opposite.T - positive[rows, None]) / tau
            log_g = h.masked_fill_(itself, -torch.inf).logsumexp(dim=1) - others.to(h.dtype).log()
            sides.append(torch.logaddexp(log_g, log_g.new_tensor(math.log(eps))))
        squares.append((alpha_used[:, rows] - torch.stack(sides)).square().mean(dim=0))
    per_anchor = all_gather(torch.cat(squares))
    return NormalizerError(per_anchor.mean(), per_anchor.std() / math.sqrt(per_anchor.shape[0]))
