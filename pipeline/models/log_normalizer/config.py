"""Options of `objectives.neuclip.npn`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.schema import Section


class LogNormalizerConfig(Section):
    """The NPN, as published, but for the unpublished `lr` (0.05 was the best of 0.005, 0.05 and 0.3)."""

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
