"""Options of `objectives.neuclip.npn`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.schema import Section


class LogNormalizerConfig(Section):
    """The NPN, as published, but for the unpublished `lr` (0.05 was the best of 0.005, 0.05 and 0.3)."""

    prototypes: int = Field(4096, ge=1)  # M, per side
    restart_every: int | None = Field(500, ge=1)  # T_r, steps; null: at step 0 only
    warmup_restarts: bool = False  # also each time the ring holds twice as much as at the last, until it is full
    inner_steps: int = Field(10, ge=0)  # T_u, optimizer steps per training step
    optimizer: Literal["adagrad", "adam"] = "adagrad"
    lr: float = Field(0.05, gt=0)  # of the inner optimizer
    accumulator_init: float = Field(0.0, ge=0)  # AdaGrad's sum of squares at a restart; at 0 a first step is lr
    masses: Literal["uniform", "learned"] = "uniform"  # learned: a log-mass per prototype instead of -log M
    alpha_gradient: Literal["constant", "through"] = "constant"  # does alpha carry a gradient to the encoders?
