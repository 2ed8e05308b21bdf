"""FastCLIP v0 to v3 (Wei et al., arXiv 2407.01445): global contrastive losses with estimators per sample.

Legend: G global batch, N dataset size; [s, i]: side and anchor, (2, G); h, g as in docs/method.md; u: estimators.

    L = mean_i sum_s c[s,i] * ( log(eps + g[s,i](S)) + rho' )        S: the whole dataset

    version   c       rho'   temperature
    v0        1       0      one, learned                    (GCL, unscaled by tau)
    v1        tau     0      one, constant                   (GCL)
    v2        tau_i   rho    one per sample and side, learned (RGCL)
    v3        tau     rho    one, learned                    (RGCL-g)

A step: g of the batch; u <- (1 - gamma) u + gamma g; the gradient of L with g/(eps + u) where L has
g(S)/(eps + g(S)). The reported loss is L with u for g(S): its gradient is not the step's, u being held constant.

From the paper: L (GCL, RGCL, RGCL-g), the update of u before its use, the cosine of gamma. From the published code:
gamma changes once per epoch and is 1 in the first; v2's temperature step (its Adam without memory in epoch 0, bias
corrections by the epoch, gradients clipped at 5, not divided by N, tau of the features' gradient from before it).
Where the published code differs from the paper we follow the paper: in the features' gradient it drops the factor
tau of v1 and tau_i of v2, and in v0, v1 and v3 it halves all but the part of tau's gradient that goes through h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.collectives import all_gather
from pipeline.config.objectives import FastCLIPConfig
from pipeline.objectives.base import Features, Objective, ObjectiveOutput
from pipeline.objectives.estimators import (
    SampleTables,
    inner_learning_rate,
    log_mean_over_visits,
    mean_over_visits,
    updated_log_u,
)
from pipeline.objectives.global_batch import anchor_statistics, feature_gradient, gather, with_gradient

TAU_BETAS, TAU_ADAM_EPS, TAU_GRADIENT_BOUND = (0.9, 0.999), 1e-8, 5.0  # of v2, as published


class FastCLIP(Objective):
    """See the module. Per sample: log u, 8 bytes; in v2 also tau and Adam's two moments, 32 bytes in all."""

    config: FastCLIPConfig

    def prepare(self, device: torch.device, embed_dim: int, dataset_size: int, seed: int, epochs: float = 1.0) -> None:
        """Allocate this rank's part of the tables; all samples are unvisited."""
        individual = ("tau", "tau_momentum", "tau_square") if self.config.version == "v2" else ()
        self.tables = SampleTables(("log_u", *individual), dataset_size, device)
        self.decay_epochs = self.config.gamma_decay_epochs or epochs / 2
        self.samples_seen = 0

    @property
    def rho(self) -> float | None:
        """Of v2 and v3; the others have a field that they do not use."""
        return self.config.rho if self.config.version in ("v2", "v3") else None

    @property
    def estimates_normalizers(self) -> bool:
        """v2's are at temperatures of their own, the log-normalizer error at the common one."""
        return self.config.version != "v2"

    def forward(
        self, features: Features, sample_index: Tensor, tau: Tensor, logit_bias: Tensor | None = None
    ) -> ObjectiveOutput:
        """As the contract has it. Two all-gathers of the batch, one of its index, one all-reduce of its estimators.

        A sample that a batch holds twice is visited once, with the mean of its g.
        Raises UserError when a sample_index is not in [0, N).
        """
        config, version = self.config, self.config.version
        with torch.no_grad(), torch.autocast(tau.device.type, enabled=False):
            batch = gather(features)
            index = all_gather(sample_index)
            known = self.tables.read(index)
            epoch = self.samples_seen // self.tables.dataset_size
            gamma = inner_learning_rate(epoch, self.decay_epochs, config.gamma_min)

            anchor_tau = known["tau"].where(known["tau"].isfinite(), tau) if version == "v2" else tau
            log_g, mean_h = anchor_statistics(batch, anchor_tau)
            log_eps = log_g.new_tensor(math.log(config.eps))
            log_u = updated_log_u(known["log_u"], log_mean_over_visits(log_g, index), gamma)
            log_normalizer = torch.logaddexp(log_u, log_eps)
            ratio = (log_g - log_normalizer).exp()

            scale = torch.ones_like(tau) if version == "v0" else anchor_tau
            level = log_normalizer + (self.rho or 0)
            loss = (scale * level).sum(dim=0).mean()
            log_weight = scale.log() - math.log(batch.size * (batch.size - 1)) - log_normalizer
            feature_grad = feature_gradient(batch, anchor_tau, log_g, log_weight)
            through_h = -ratio * mean_h * scale / anchor_tau
            anchor_tau_grad = through_h if version == "v0" else level + through_h
            shared_tau = version in ("v0", "v3")
            tau_grad = anchor_tau_grad.sum(dim=0).mean() if shared_tau else torch.zeros_like(loss)

            if self.training:
                new = {"log_u": log_u}
                if version == "v2":
                    new |= self._tau_step(known, anchor_tau, mean_over_visits(anchor_tau_grad, index), epoch)
                self.tables.write(index, new)
                self.samples_seen += batch.size

            metrics = {
                "train/log_normalizer_mean": log_g.mean(),
                "train/r_mean": torch.logaddexp(log_g, log_eps).mean(),
                "fastclip/gamma": loss.new_tensor(gamma),
                "fastclip/u_mean": log_u.mean(),
                "fastclip/ratio_max": ratio.max(),
            }
            if version == "v2":
                metrics["fastclip/tau_mean"] = anchor_tau.mean()
        return ObjectiveOutput(
            loss=with_gradient(features, tau, loss, feature_grad, tau_grad),
            metrics=metrics,
            log_normalizer=log_normalizer[:, batch.own] if self.estimates_normalizers else None,
        )

    def _tau_step(
        self, known: Mapping[str, Tensor], anchor_tau: Tensor, gradient: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """One Adam step of v2's temperatures; all (2, G)."""
        options = self.config.individual_tau
        beta1, beta2 = TAU_BETAS if epoch > 0 else (0.0, 0.0)
        gradient = gradient.clamp(-TAU_GRADIENT_BOUND, TAU_GRADIENT_BOUND)
        momentum = beta1 * known["tau_momentum"].nan_to_num() + (1 - beta1) * gradient
        square = beta2 * known["tau_square"].nan_to_num() + (1 - beta2) * gradient.square()
        direction = momentum / (1 - beta1 ** (epoch + 1))
        step = direction / ((square / (1 - beta2 ** (epoch + 1))).sqrt() + TAU_ADAM_EPS)
        tau = (anchor_tau - options.lr * step).clamp(options.minimum, options.maximum)
        return {"tau": tau, "tau_momentum": momentum, "tau_square": square}

    def sharded_state(self) -> dict[str, Tensor]:
        """(n, 2) each; the tables themselves, which the next step writes to."""
        return self.tables.rows

    def load_sharded_state(self, tables: Mapping[str, Tensor]) -> None:
        """(n, 2) each, copied."""
        self.tables.load(tables)

    def get_extra_state(self) -> dict[str, Any]:
        """The counter behind gamma; the tables are `sharded_state`."""
        return {"samples_seen": self.samples_seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """After `prepare`."""
        self.samples_seen = state["samples_seen"]
