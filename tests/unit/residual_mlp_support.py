"""AmorLIP's residual MLPs from torch's own layers, as references."""

from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def double():
    """The objective's own state in float64, too."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def assert_near(ours, expected, relative=1e-9):
    """Against the largest entry."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=relative * max(1e-12, float(expected.abs().max())))


class ReferenceMLP(nn.Module):
    """One side's network from torch's layers, filled from the flat vector of both sides."""

    def __init__(self, vector, side, dim):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.double()
        place = 0
        with torch.no_grad():
            for parameter in self.in_order():
                count = parameter.numel()
                part = vector[place + side * count : place + (side + 1) * count]
                # The flat vector holds a weight as (input, output).
                parameter.copy_(part.reshape(parameter.shape[::-1]).T if parameter.ndim == 2 else part)
                place += 2 * count
        assert place == len(vector)

    def in_order(self):
        layers = (self.first, self.norm1, self.second, self.norm2, self.last)
        return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]

    def forward(self, e):
        hidden = self.norm1(self.first(e).relu())
        hidden = self.norm2(self.second(hidden).relu())
        return self.last((hidden + e).relu()).squeeze(-1)


def reference_networks(vector, dim):
    return nn.ModuleList(ReferenceMLP(vector.double(), side, dim) for side in (0, 1))


def flat_gradient(networks):
    pairs = zip(networks[0].in_order(), networks[1].in_order(), strict=True)
    return torch.cat([p.grad.T.flatten() if p.ndim == 2 else p.grad for pair in pairs for p in pair])


def predict(networks, e1, e2):
    return torch.stack([networks[0](e1), networks[1](e2)])
