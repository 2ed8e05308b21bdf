"""The NPN's own optimizers: in place, block by block, on gradients in closed form.

A parameter is (2, m, ...), one row per prototype; so is every tensor of its state, and sharded with it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipeline.models.log_normalizer.config import LogNormalizerConfig

State = dict[str, Tensor]


class InnerOptimizer(Protocol):
    """What the NPN asks of one."""

    def fresh_state(self, parameter: Tensor) -> State:
        """The state after a restart."""

    def descend(self, parameter: Tensor, gradient: Tensor, state: State, scratch: Tensor) -> None:
        """One step on a block of rows. scratch: of the gradient's shape, overwritten."""


class AdaGrad:
    """torch.optim.Adagrad. squares: the sums of squared gradients."""

    EPS = 1e-10

    def __init__(self, lr: float, accumulator_init: float) -> None:
        self.lr, self.accumulator_init = lr, accumulator_init

    def fresh_state(self, parameter: Tensor) -> State:
        return {"squares": torch.full_like(parameter, self.accumulator_init)}

    def descend(self, parameter: Tensor, gradient: Tensor, state: State, scratch: Tensor) -> None:
        squares = state["squares"].addcmul_(gradient, gradient)
        parameter.addcdiv_(gradient, torch.sqrt(squares, out=scratch).add_(self.EPS), value=-self.lr)


class Adam:
    """torch.optim.Adam, but for steps counted by prototype, since restarts may renew some and keep others."""

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def fresh_state(self, parameter: Tensor) -> State:
        age = parameter.new_zeros(*parameter.shape[:2], 1)
        return {"momentum": torch.zeros_like(parameter), "squares": torch.zeros_like(parameter), "age": age}

    def descend(self, parameter: Tensor, gradient: Tensor, state: State, scratch: Tensor) -> None:
        beta1, beta2 = self.BETAS
        momentum = state["momentum"].lerp_(gradient, 1 - beta1)
        squares = state["squares"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        age = state["age"].add_(1)
        bias1, bias2 = 1 - beta1**age, 1 - beta2**age
        root = torch.sqrt(squares, out=scratch).mul_(bias1 / bias2.sqrt()).add_(bias1 * self.EPS)
        parameter.addcdiv_(momentum, root, value=-self.lr)


def build_optimizer(config: LogNormalizerConfig) -> InnerOptimizer:
    """As `config.optimizer` says."""
    return Adam(config.lr) if config.optimizer == "adam" else AdaGrad(config.lr, config.accumulator_init)
