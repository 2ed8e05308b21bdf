"""Options of `objectives.neuclip.npn`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.schema import Section

OF_PROTOTYPES = ("restart", "dead_below", "ring", "warmup_restarts", "masses")  # options that mean nothing to an MLP


class LogNormalizerConfig(Section):
    """The NPN, as published, but for the unpublished `lr` (0.05 was the best of 0.005, 0.05 and 0.3)."""

    network: Literal["prototypes", "mlp"] = "prototypes"  # mlp: the ablation with AmorLIP's network
    prototypes: int = Field(4096, ge=1)  # M, per side
    restart_every: int | None = Field(500, ge=1)  # T_r, steps; null: at step 0 only
    restart: Literal["random", "kmeans", "dead"] = "random"  # what a restart puts in the prototypes' places
    dead_below: float = Field(0.1, ge=0)  # `restart: dead`: mean responsibility, times M, of those it replaces
    ring: int | None = Field(None, ge=1)  # embeddings to restart from, per side; null: M
    warmup_restarts: bool = False  # also each time the ring holds twice as much as at the last, until it is full
    inner_steps: int = Field(10, ge=0)  # T_u, optimizer steps per training step
    inner_tolerance: float | None = Field(None, gt=0)  # stop where a step gains less than this share of the objective
    fit: Literal["unified", "separate"] = "unified"  # separate: (alpha - r)^2 in the inner steps
    optimizer: Literal["adagrad", "adam"] = "adagrad"
    lr: float = Field(0.05, gt=0)  # of the inner optimizer
    accumulator_init: float = Field(0.0, ge=0)  # AdaGrad's sum of squares at a restart; at 0 a first step is lr
    masses: Literal["uniform", "learned"] = "uniform"  # learned: a log-mass per prototype instead of -log M
    alpha_gradient: Literal["constant", "through"] = "constant"  # does alpha carry a gradient to the encoders?

    @model_validator(mode="after")
    def _options_of_the_network(self) -> LogNormalizerConfig:
        defaults = type(self).model_fields
        names = [name for name in OF_PROTOTYPES if getattr(self, name) != defaults[name].default]
        if self.network == "mlp" and names:
            raise ValueError(f"network: mlp has no prototypes; leave out {', '.join(names)}")
        if self.optimizer == "adam" and self.accumulator_init:
            raise ValueError("accumulator_init is AdaGrad's: leave it out with optimizer: adam")
        return self
