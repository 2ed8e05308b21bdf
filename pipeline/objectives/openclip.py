"""OpenCLIP's loss: symmetric InfoNCE over the global batch (Radford et al., arXiv 2103.00020).

Legend: G global batch; [s, i]: side and anchor, (2, G); h, g as in docs/method.md.

    L = mean_i sum_s log( sum_j exp(h[s,i,j]) ) / 2,    j = i included: log(1 + (G - 1) g)

Value and gradient are those of open_clip's local loss with a differentiable gather; no feature gradient is
sent between ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.config.objectives import OpenCLIPConfig
from pipeline.objectives.base import Features, Objective, ObjectiveOutput
from pipeline.objectives.global_batch import anchor_statistics, feature_gradient, gather, with_gradient


class OpenCLIP(Objective):
    """See the module. Stateless."""

    config: OpenCLIPConfig

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """As the contract has it; `log_normalizer` is the batch's own estimate r."""
        with torch.no_grad(), torch.autocast(tau.device.type, enabled=False):
            batch = gather(features)
            log_g, mean_h = anchor_statistics(batch, tau)
            r = torch.logaddexp(log_g, log_g.new_tensor(math.log(self.config.eps)))

            log_negatives = log_g + math.log(batch.size - 1)
            log_sum = torch.nn.functional.softplus(log_negatives)
            loss = log_sum.mean()
            feature_grad = feature_gradient(batch, tau, log_g, log_weight=-log_sum - math.log(2 * batch.size))
            tau_grad = -((log_negatives - log_sum).exp() * mean_h).mean() / tau.squeeze()
            metrics = {
                "train/log_normalizer_mean": log_g.mean(),
                "train/r_mean": r.mean(),
            }
        return ObjectiveOutput(
            loss=with_gradient(features, tau, loss, feature_grad, tau_grad),
            metrics=metrics,
            log_normalizer=r[:, batch.own],
        )
