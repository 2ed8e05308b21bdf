"""The NPN's own AdaGrad: in place, block by block, on gradients in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-10


def adagrad_step(parameter: Tensor, gradient: Tensor, squares: Tensor, lr: float, scratch: Tensor) -> None:
    """One step of torch.optim.Adagrad. squares: the sums of squared gradients. scratch: of their shape, overwritten."""
    squares.addcmul_(gradient, gradient)
    parameter.addcdiv_(gradient, torch.sqrt(squares, out=scratch).add_(EPS), value=-lr)
