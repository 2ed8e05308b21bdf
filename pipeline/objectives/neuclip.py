"""NeuCLIP (Wei, Lin, Yang, arXiv 2511.08417): RGCL-g with normalizers predicted by a compact network.

Legend: B local batch, K world size, G = B*K global batch; [s, i]: side and anchor, (2, G).

    L = tau * mean_i sum_s [ exp(r - alpha) + alpha - 1 ] + 2 rho tau,    r = log(eps + g) of the global batch

A training step: gather; restart the NPN if due and take its T_u AdaGrad steps with encoders and tau fixed;
alpha from the updated NPN, held constant; the exact gradient of L for the features and tau.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.collectives import all_gather, all_reduce
from pipeline.config.objectives import NeuCLIPConfig
from pipeline.models.log_normalizer import AlphaDerivatives, Anchors, build_log_normalizer
from pipeline.objectives.base import Features, Objective, ObjectiveOutput
from pipeline.objectives.global_batch import (
    GlobalBatch,
    anchor_statistics,
    feature_gradient,
    gather,
    with_gradient,
)

QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
LARGEST_LOG_RESIDUAL = 88.0  # of those that are reported: exp of it is finite in fp32, and so is a mean


class Prediction(NamedTuple):
    """alpha: (2, G). derivatives: None where alpha is a constant. metrics: of the NPN's step, if it took one."""

    alpha: Tensor
    derivatives: AlphaDerivatives | None
    metrics: dict[str, Tensor]


class NeuCLIP(Objective):
    """See the module."""

    config: NeuCLIPConfig

    def __init__(self, config: NeuCLIPConfig) -> None:
        super().__init__(config)
        self.npn = build_log_normalizer(config.npn, config.eps, config.ratio_bound)

    def prepare(self, device: torch.device, embed_dim: int, dataset_size: int, seed: int, epochs: float = 1.0) -> None:
        """Allocate the NPN. dataset_size: not needed, M may exceed it."""
        self.npn.prepare(device, embed_dim, seed)

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """As the contract has it. Two all-gathers of the batch, and those of the NPN."""
        config = self.config
        with torch.no_grad(), torch.autocast(tau.device.type, enabled=False):
            batch = gather(features)
            log_g, mean_h = anchor_statistics(batch, tau)
            r = torch.logaddexp(log_g, log_g.new_tensor(math.log(config.eps)))

            started = perf_counter()
            anchors = Anchors(batch.embeddings, batch.positive, tau)
            if self.training:
                self._observe(batch, sample_index)
            alpha, derivatives, npn_metrics = self._predict(anchors, r)
            npn_seconds = perf_counter() - started

            excess = (r - alpha - math.log(config.ratio_bound)).clamp(min=0)
            log_ratio = r - alpha - excess
            ratio = log_ratio.exp()
            per_anchor = (ratio * (1 + excess) + alpha - 1).sum(dim=0)
            loss = tau.squeeze() * (per_anchor.mean() + 2 * config.rho)

            scale = tau.log() - math.log(batch.size * (batch.size - 1))
            feature_grad = feature_gradient(batch, tau, log_g, log_weight=log_ratio - r + scale)
            tau_grad = per_anchor.mean() + 2 * config.rho - (ratio * (log_g - r).exp() * mean_h).sum(dim=0).mean()
            if derivatives is not None:
                through_features, through_tau = _through(batch, tau, ratio, derivatives)
                feature_grad += through_features
                tau_grad = tau_grad + through_tau

            metrics = {
                "train/log_normalizer_mean": log_g.mean(),
                "train/r_mean": r.mean(),
                "npn/alpha_mean": alpha.mean(),
                **_quantiles((r - alpha).clamp(max=LARGEST_LOG_RESIDUAL).exp()),
                "npn/ratio_clipped": (excess > 0).sum(),
                "npn/restarts": loss.new_tensor(self.npn.restart_count),
                **npn_metrics,
                "npn/seconds": all_reduce(loss.new_tensor(npn_seconds), "max"),
            }
        return ObjectiveOutput(
            loss=with_gradient(features, tau, loss, feature_grad, tau_grad),
            metrics=metrics,
            log_normalizer=alpha[:, batch.own],
        )

    def _observe(self, batch: GlobalBatch, sample_index: Tensor) -> None:
        # By sample index, the order in the ring buffer does not depend on how ranks share the batch; where two epochs
        # meet, it can hold a sample twice, and s_ii tells these apart.
        index, order = all_gather(sample_index), batch.positive.argsort()
        order = order[index[order].argsort(stable=True)]
        self.npn.observe(batch.embeddings[:, order])

    def _predict(self, anchors: Anchors, r: Tensor) -> Prediction:
        """In training, before or after the NPN's own step on this batch, as `updates` says."""
        metrics: dict[str, Tensor] = {}
        if self.training and self.config.updates == "alternating":
            alpha, metrics = self.npn.step(anchors, r)
        else:
            alpha = self.npn.alpha(anchors)
        through = self.config.npn.alpha_gradient == "through"
        derivatives = self.npn.derivatives(anchors) if through else None
        if self.training and self.config.updates == "simultaneous":
            _, metrics = self.npn.step(anchors, r)
        return Prediction(alpha, derivatives, metrics)


def _through(batch: GlobalBatch, tau: Tensor, ratio: Tensor, derivatives: AlphaDerivatives) -> tuple[Tensor, Tensor]:
    """The part of the gradient that flows through alpha: for the local features (2, B, D), and tau ()."""
    d_alpha = tau * (1 - ratio) / batch.size
    own = batch.embeddings[:, batch.own]
    by_embedding = d_alpha[:, batch.own, None] * derivatives.embedding[:, batch.own]
    by_positive = (d_alpha * derivatives.positive).sum(dim=0)[batch.own, None] * own.flip(0)
    return by_embedding + by_positive, (d_alpha * derivatives.tau).sum()


def _quantiles(residual: Tensor) -> dict[str, Tensor]:
    """Of exp(r - alpha) over all anchors, both sides; 1 where the prediction meets the batch estimate."""
    values = residual.flatten().quantile(residual.new_tensor(list(QUANTILES.values())))
    return {f"npn/residual_{name}": value for name, value in zip(QUANTILES, values, strict=True)}
