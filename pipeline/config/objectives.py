"""The options of each objective, `objectives.<name>` of a recipe: typed, frozen and validated; the defaults are here.

Apart from the objectives, so that a recipe is checked without torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.loader import parse
from pipeline.config.schema import Section
from pipeline.errors import UserError


class LogNormalizerConfig(Section):
    """NeuCLIP's NPN, as published, but for the unpublished `lr` (0.05 was the best of 0.005, 0.05 and 0.3)."""

    network: Literal["prototypes", "mlp"] = "prototypes"  # mlp: the ablation with AmorLIP's network
    prototypes: int = Field(4096, ge=1)  # M, per side
    restart_every: int | None = Field(500, ge=1)  # T_r, steps; null: at step 0 only
    inner_steps: int = Field(10, ge=0)  # T_u, AdaGrad steps per training step
    fit: Literal["unified", "separate"] = "unified"  # separate: (alpha - r)^2 in the inner steps
    lr: float = Field(0.05, gt=0)  # of AdaGrad
    accumulator_init: float = Field(0.0, ge=0)  # AdaGrad's sum of squares at a restart; at 0 a first step is lr
    alpha_gradient: Literal["constant", "through"] = "constant"  # does alpha carry a gradient to the encoders?

    def restarts_at(self, step: int) -> bool:
        """Is a restart due at this training step?"""
        return step == 0 or (self.restart_every is not None and step % self.restart_every == 0)


class NeuCLIPConfig(Section):
    """Options of `objectives.neuclip`; rho and eps as published for CC3M."""

    rho: float = 6.5  # target of the mean negative log-normalizer; grows with the dataset
    eps: float = Field(1e-14, gt=0)
    ratio_bound: float = Field(1e3, gt=1)  # exp(r - alpha) goes on linearly from here, and is counted
    updates: Literal["alternating", "simultaneous"] = "alternating"  # simultaneous: alpha from before the NPN's step
    npn: LogNormalizerConfig = LogNormalizerConfig()


class OpenCLIPConfig(Section):
    """Options of `objectives.openclip`."""

    eps: float = Field(1e-14, gt=0)  # of the reported log-normalizer only; the loss has none


class SigLIPConfig(Section):
    """Options of `objectives.siglip`: none."""


class IndividualTauConfig(Section):
    """v2's temperatures, as published: each starts at `temperature.init` (published: 0.03) and has its own Adam."""

    lr: float = Field(0.0133, ge=0)  # a step on tau itself, constant
    minimum: float = Field(0.01, gt=0)
    maximum: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> IndividualTauConfig:
        if self.minimum > self.maximum:
            raise ValueError("must satisfy minimum <= maximum")
        return self


class FastCLIPConfig(Section):
    """Options of `objectives.fastclip`; rho, gamma_min and eps as published for CC3M."""

    version: Literal["v0", "v1", "v2", "v3"] = "v3"
    rho: float = 6.5  # v2, v3: target of the mean negative log-normalizer; grows with the dataset
    eps: float = Field(1e-14, gt=0)
    gamma_min: float = Field(0.2, gt=0, le=1)
    gamma_decay_epochs: float | None = Field(None, gt=0)  # until gamma is gamma_min; null: half of the run
    individual_tau: IndividualTauConfig = IndividualTauConfig()  # v2


FitObjective = Literal["l2_log", "kl", "symmetric_kl", "js"]


class LogPartitionConfig(Section):
    """AmorLIP's network and its fit, as published for CC12M."""

    fit: FitObjective = "l2_log"
    l2_weight: float = Field(0.1, ge=0)  # of the l2-log term beside a divergence, whose gradient can vanish
    inner_steps: int = Field(3, ge=1)  # at most, per training step
    tolerance: float = Field(5e-3, ge=0)  # change of the fit's loss below which the inner steps end
    lr: float = Field(1e-3, gt=0)  # of Adam
    z_beta_max: float = Field(0.8, ge=0, lt=1)  # share of the previous epoch's network in the target, at most
    z_beta_epochs: int = Field(16, ge=1)  # in which it gets there from 0, along a cosine
    ema: float = Field(0.92, ge=0, lt=1)  # share of the old in an update of the EMA copy
    ema_every: int = Field(2, ge=1)  # steps
    reinit_every: int | None = Field(1, ge=1)  # epochs; null: never


class AmorLIPConfig(Section):
    """Options of `objectives.amorlip`; rho, pos_coef and the network as published for CC12M."""

    rho: float = 8.5
    eps: float = Field(1e-14, gt=0)  # of the reported log-normalizer only; the loss has none
    pos_coef: float = Field(1e-3, ge=0)  # weight of the positive pair in the partition function
    ratio_bound: float = Field(1e3, gt=1)  # Z / lambda goes on linearly in log Z from here, and is counted
    lambda_from: Literal["target", "ema"] = "target"  # what the encoders divide by: pipeline/objectives/amorlip.py
    network: LogPartitionConfig = LogPartitionConfig()


OPTIONS: dict[str, type[Section]] = {
    "neuclip": NeuCLIPConfig,
    "openclip": OpenCLIPConfig,
    "siglip": SigLIPConfig,
    "fastclip": FastCLIPConfig,
    "amorlip": AmorLIPConfig,
}


def checked_options(name: str, options: Mapping[str, Any]) -> Section:
    """The options of the objective `name`, as a recipe has them, typed.

    Raises UserError for an unknown name or option, with the nearest valid one.
    """
    refuse_unknown(name)
    return parse(OPTIONS[name], options, where=f"objectives.{name}")


def refuse_unknown(name: str) -> None:
    """Raises UserError, with the nearest name, where there is no such objective."""
    if name not in OPTIONS:
        nearest = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.3)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"unknown objective {name!r}: {hint}Known are {', '.join(OPTIONS)}.")
