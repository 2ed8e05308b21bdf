"""SigLIP's pairwise sigmoid loss (Zhai et al., arXiv 2303.15343).

Legend: B local batch, K world size, G = B*K global batch, D embedding dimension; s_ij = e1[i].e2[j].

    L = -mean_i sum_j log sigmoid( z_ij (s_ij / tau + b) ),    z_ij = 1 for j = i, else -1

Every pair has a loss of its own, so a rank needs the others' texts one block at a time: texts travel round the
ring together with their gradient, to which each rank adds its images' part, and come home after K hops. A rank
never holds more than a chunk of its B x B similarities with the visiting block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.collectives import all_reduce, ring_shift
from pipeline.config.objectives import SigLIPConfig
from pipeline.distributed import world_size
from pipeline.errors import UserError
from pipeline.objectives import global_batch
from pipeline.objectives.base import Features, Objective, ObjectiveOutput


class SigLIP(Objective):
    """See the module. Stateless; tau and the bias start where the paper starts them."""

    config: SigLIPConfig
    default_tau = 0.1
    default_logit_bias = -10.0

    @property
    def estimates_normalizers(self) -> bool:
        """Every pair has a loss of its own."""
        return False

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """As the contract has it; there is no normalizer to estimate. K hops and one all-reduce of four scalars.

        Raises UserError when there is no negative to compare with, ValueError without a bias.
        """
        if logit_bias is None:
            raise ValueError("siglip needs the logit_bias")
        batch_size = features.image.shape[0]
        global_size = batch_size * world_size()
        if global_size < 2:
            raise UserError("a contrastive loss needs a global batch of at least 2 samples, not 1")
        with torch.no_grad(), torch.autocast(tau.device.type, enabled=False):
            image, text = features.image.detach(), features.text.detach()
            image_grad, text_grad = torch.zeros_like(image), torch.zeros_like(text)
            sums = image.new_zeros(3)
            for hop in range(world_size()):
                if hop:
                    text, text_grad = ring_shift(torch.stack([text, text_grad]))
                sums += _add_block(image, text, tau, logit_bias, own=hop == 0, gradients=(image_grad, text_grad))
            text_grad = ring_shift(text_grad)

            feature_grad = torch.stack([image_grad, text_grad]) / (tau * global_size)
            # d(s_ij / tau) / d tau = -s_ij / tau^2, and sum_j w_ij s_ij is e1[i] . sum_j w_ij e2[j].
            tau_grad = -(image * feature_grad[0]).sum() / tau
            value, missed, negative, tau_grad = all_reduce(torch.cat([sums / global_size, tau_grad]), "sum")
            bias_grad = negative - missed
            metrics = {
                "siglip/logit_bias": logit_bias.detach().squeeze().clone(),
                "siglip/positive_probability": 1 - missed,
                "siglip/negative_probability": negative / (global_size - 1),
            }
        with_bias = (logit_bias * bias_grad).sum()
        loss = global_batch.with_gradient(features, tau, value, feature_grad, tau_grad)
        return ObjectiveOutput(loss=loss + (with_bias - with_bias.detach()), metrics=metrics)


def _add_block(
    image: Tensor, text: Tensor, tau: Tensor, logit_bias: Tensor, own: bool, gradients: tuple[Tensor, Tensor]
) -> Tensor:
    """The local images against one rank's texts, in chunks of images.

    image, text: (B, D). own: whether text i belongs to image i; else all pairs are negatives. Adds to gradients,
    (B, D) each, the sum over the pairs of d(loss)/d(logit) times the other embedding. Returns (3,), summed over
    the pairs: the loss, 1 - sigmoid(logit) of positives, sigmoid(logit) of negatives.
    """
    image_grad, text_grad = gradients
    sums = image.new_zeros(3)
    step = max(1, global_batch.CHUNK_ENTRIES // text.shape[0])
    for start in range(0, image.shape[0], step):
        rows = slice(start, start + step)
        logits = (image[rows] @ text.T).div_(tau).add_(logit_bias)
        if own:
            positive = logits.diagonal(start)
            opposite = -positive
            missed = opposite.sigmoid()
            positive.fill_(-torch.inf)  # a negative that adds nothing
            sums[0] += F.softplus(opposite).sum()
            sums[1] += missed.sum()
        sums[0] += F.softplus(logits).sum()
        weight = logits.sigmoid_()
        sums[2] += weight.sum()
        if own:
            positive.copy_(-missed)
        image_grad[rows] += weight @ text
        text_grad += weight.T @ image[rows]
    return sums
