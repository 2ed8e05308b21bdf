"""AmorLIP (Sun et al., arXiv 2505.18983): partition functions amortised by a small network.

Legend: B local batch, K world size, G = B*K global batch; [s, i]: side and anchor, (2, G); s_ij = e_s[i].e_{1-s}[j].

    Z[s,i] = sum_{j != i} exp(s_ij/tau) + pos_coef exp(s_ii/tau)
    L = tau * [ -2 mean_i s_ii/tau + mean_i sum_s Z[s,i] / lambda[s,i] ] + rho tau

METHOD gives both formulas. Read with them: the positive is in the encoders' sum with the weight pos_coef, as in Z,
so that Z/lambda = 1 where lambda is exact (the published code does the same); lambda is a constant; the leading tau
is differentiated like the rest (the published code holds it constant, which gives tau another gradient, and pairs
that with rho = 8.5 for the first third of the epochs and -8.5 after).

lambda: METHOD says that the targets are mixed with the previous epoch's network. The published code, at its CC12M
settings, divides by these mixed targets, beta lambda_previous + (1 - beta) Z, where the previous network is the EMA
copy at the end of its epoch; without mixing it divides by the EMA copy's prediction. `lambda_from` has both.

Z/lambda is computed as exp(x), x = log Z - log lambda, and goes on linearly from `ratio_bound` (ours).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.collectives import all_gather
from pipeline.config.objectives import AmorLIPConfig
from pipeline.models.log_partition import LogPartitionNetwork
from pipeline.objectives.base import Features, Objective, ObjectiveOutput
from pipeline.objectives.global_batch import anchor_statistics, feature_gradient, gather, with_gradient


class AmorLIP(Objective):
    """See the module."""

    config: AmorLIPConfig

    def __init__(self, config: AmorLIPConfig) -> None:
        super().__init__(config)
        self.network = LogPartitionNetwork(config.network, config.ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, dataset_size: int, seed: int, epochs: float = 1.0) -> None:
        """Allocate the network. epochs: not needed, the schedule of beta has its own length."""
        self.network.prepare(device, embed_dim, dataset_size, seed)

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """As the contract has it. Two all-gathers of the batch, one of log lambda, one all-reduce per inner step."""
        config = self.config
        with torch.no_grad(), torch.autocast(tau.device.type, enabled=False):
            batch = gather(features)
            log_g, mean_h = anchor_statistics(batch, tau)
            positive = batch.positive / tau
            log_pos = log_g.new_tensor(config.pos_coef).log()
            log_negatives = log_g + math.log(batch.size - 1)
            log_sum = torch.logaddexp(log_negatives, log_pos)  # log Z - s_ii/tau, safe whatever s_ii is

            own = batch.own
            if self.training:
                self.network.start_step()
            beta = self.network.beta
            fit_loss, inner_steps, local = self._amortise(batch.embeddings[:, own], (log_sum + positive)[:, own])
            if self.training:
                self.network.end_step(batch.size)
            log_lambda = all_gather(local.T).T

            log_ratio = log_sum + positive - log_lambda
            excess = (log_ratio - math.log(config.ratio_bound)).clamp(min=0)
            log_slope = log_ratio - excess
            slope = log_slope.exp()
            ratio = slope * (1 + excess)
            loss = tau.squeeze() * (ratio.sum(dim=0).mean() + config.rho) - 2 * batch.positive.mean()

            # log Z = s_ii/tau + log_sum, and log_sum depends on the features through h alone: its part, then s_ii's.
            log_weight = log_slope - log_sum + tau.log() - math.log(batch.size)
            feature_grad = feature_gradient(batch, tau, log_g, log_weight)
            by_positive = (slope.sum(dim=0) - 2)[own, None] / batch.size
            feature_grad += by_positive * batch.embeddings[:, own].flip(0)
            mean_similarity = (log_negatives - log_sum).exp() * mean_h + positive  # of the terms of Z, over tau
            tau_grad = config.rho + (ratio - slope * mean_similarity).sum(dim=0).mean()

            log_eps = log_g.new_tensor(math.log(config.eps))
            metrics = {
                "train/log_normalizer_mean": log_g.mean(),
                "train/r_mean": torch.logaddexp(log_g, log_eps).mean(),
                "amorlip/fit_loss": loss.new_tensor(fit_loss),
                "amorlip/inner_steps": loss.new_tensor(inner_steps),
                "amorlip/beta": loss.new_tensor(beta),
                "amorlip/ratio_clipped": (excess > 0).sum(),
                "amorlip/log_lambda_mean": log_lambda.mean(),
            }
            predicted = _without_positive(log_lambda - positive, log_pos) - math.log(batch.size - 1)
        return ObjectiveOutput(
            loss=with_gradient(features, tau, loss, feature_grad, tau_grad),
            metrics=metrics,
            log_normalizer=torch.logaddexp(predicted, log_eps)[:, own],
        )

    def _amortise(self, embeddings: Tensor, log_partition: Tensor) -> tuple[float, int, Tensor]:
        """Fit the network, in training mode only; returns the fit's loss, its steps and log lambda (2, B).

        embeddings: (2, B, D) and log_partition: (2, B), log Z, of the local anchors.
        """
        network = self.network
        log_target = network.mixed_target(embeddings, log_partition)
        if self.training:
            fit_loss, inner_steps = network.fit(embeddings, log_target)
        else:
            fit_loss, inner_steps = network.loss_and_gradient(embeddings, log_target)[0], 0
        if self.config.lambda_from == "target":
            return fit_loss, inner_steps, log_target
        return fit_loss, inner_steps, network.predict(network.ema, embeddings)


def _without_positive(log_sum: Tensor, log_pos: Tensor) -> Tensor:
    """log(exp(log_sum) - exp(log_pos)), the negatives' part of a sum; -inf where it has no room for the positive."""
    return log_sum + (-(log_pos - log_sum).clamp(max=0).expm1()).log()
