"""Options of `objectives.neuclip.npn`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.schema import Section


class LogNormalizerConfig(Section):
    """The NPN, as published, but for the unpublished `lr` (0.05 was the best of 0.005, 0.05 and 0.3)."""

    prototypes: int = Field(4096, ge=1)  # M, per side
    restart_every: int | None = Field(500, ge=1)  # T_r, steps; null: at step 0 only
    inner_steps: int = Field(10, ge=0)  # T_u, AdaGrad steps per training step
    lr: float = Field(0.05, gt=0)  # of AdaGrad
    alpha_gradient: Literal["constant", "through"] = "constant"  # does alpha carry a gradient to the encoders?
