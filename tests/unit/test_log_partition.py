"""AmorLIP's network: its fit equals an explicit network and divergences summed term by term, and finds the target."""

import math

import pytest
import torch

from pipeline.config.objectives import LogPartitionConfig
from pipeline.models.log_partition import LogPartitionNetwork
from tests.unit.embeddings import unit_rows
from tests.unit.residual_mlp_support import assert_near, double, flat_gradient, predict, reference_networks

BOUND = 1e3
FITS = ["l2_log", "kl", "symmetric_kl", "js"]


def reference_fit_loss(name, log_target, log_lambda, l2_weight=0.1, bound=BOUND):
    """Mean over anchors, sum over sides; the divergences as sums over the terms of two measures."""
    shares = torch.tensor(
        [0.5, 0.3, 0.15, 0.05], dtype=torch.float64
    )  # how the target's mass lies on the terms of Z does not matter

    def divergence(x):
        q = shares
        p = q * x.exp()
        m = (p + q) / 2

        def kl(a, b):
            return (a * (a / b).log() - a + b).sum()

        return {"kl": kl(p, q), "symmetric_kl": kl(p, q) + kl(q, p), "js": kl(p, m) / 2 + kl(q, m) / 2}[name]

    total = 0.0
    for x in (log_target - log_lambda).flatten():
        if name == "l2_log":
            total = total + x**2
            continue
        if x > math.log(bound):
            corner = torch.tensor(math.log(bound), dtype=x.dtype, requires_grad=True)
            (slope,) = torch.autograd.grad(divergence(corner), corner)
            total = total + divergence(corner).detach() + slope * (x - math.log(bound))
        else:
            total = total + divergence(x)
        total = total + l2_weight * x**2
    return total / log_target.shape[1]


@pytest.mark.parametrize("bound", [1e3, 1.5])
@pytest.mark.parametrize("fit", FITS)
def test_the_fit_gradient_is_autograds(fit, bound):
    e1, e2 = unit_rows(3, 7, 5), unit_rows(4, 7, 5)
    log_target = torch.randn(2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with double():
        network = LogPartitionNetwork(LogPartitionConfig(fit=fit, l2_weight=0.3), bound)
        network.prepare(torch.device("cpu"), 5, 100, seed=1)
        network.weights += 0.1 * unit_rows(6, 1, len(network.weights)).flatten()  # LayerNorm's, too
        loss, gradient = network.loss_and_gradient(torch.stack([e1, e2]), log_target)
    networks = reference_networks(network.weights, 5)
    log_ratio = log_target - predict(networks, e1, e2)
    assert (log_ratio > math.log(1.5)).any()
    assert (log_ratio < 0).any()
    expected = reference_fit_loss(fit, log_target, predict(networks, e1, e2), l2_weight=0.3, bound=bound)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert_near(gradient, flat_gradient(networks), relative=1e-10)


@pytest.mark.parametrize("fit", FITS)
def test_the_fit_finds_the_partition_function(fit):
    """The minimum of every fit objective is at lambda = target."""
    e = torch.stack([unit_rows(7, 6, 16, torch.float32), unit_rows(8, 6, 16, torch.float32)])
    log_target = torch.linspace(-2, 2, 12).view(2, 6)
    config = LogPartitionConfig(fit=fit, l2_weight=0, inner_steps=300, tolerance=0, lr=5e-3)
    network = LogPartitionNetwork(config, BOUND)
    network.prepare(torch.device("cpu"), 16, 100, seed=1)
    network.fit(e, log_target)
    torch.testing.assert_close(network.predict(network.weights, e), log_target, rtol=0, atol=0.05)
