"""The MLP in the NPN's place: steps equal torch's AdaGrad on torch's layers; derivatives; the state is complete."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.config.objectives import LogNormalizerConfig
from pipeline.errors import UserError
from pipeline.models.log_normalizer import Anchors, MLPNetwork
from tests.unit.residual_mlp_support import predict, reference_networks

DIM, COUNT, TAU = 6, 10, 0.2


def build(dim=DIM, **config):
    npn = MLPNetwork(LogNormalizerConfig(network="mlp", **config), ratio_bound=1e3)
    npn.prepare(torch.device("cpu"), dim, seed=0, dtype=torch.float64)
    return npn


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(2, COUNT, DIM, generator=generator, dtype=torch.float64), dim=-1)
    r = torch.randn(2, COUNT, generator=generator, dtype=torch.float64) - 2
    return Anchors(embeddings, (embeddings[0] * embeddings[1]).sum(-1), torch.tensor([TAU], dtype=torch.float64)), r


class Reference(torch.nn.Module):
    """The network of torch's own layers, with the weights that ours starts from."""

    def __init__(self, npn):
        super().__init__()
        self.networks = reference_networks(npn.weights, DIM)

    def forward(self, anchors):
        return predict(self.networks, *anchors.embeddings) - anchors.positive / anchors.tau


@pytest.mark.parametrize("fit", ["unified", "separate"])
def test_steps_equal_torchs_adagrad_on_autograd(fit):
    npn = build(inner_steps=3, lr=0.01, fit=fit)
    reference = Reference(npn)
    theirs = torch.optim.Adagrad(reference.parameters(), lr=0.01)
    for seed in range(3):
        anchors, r = batch(seed)
        npn.observe(anchors.embeddings)
        alpha = npn.step(anchors, r).alpha
        for _ in range(3):
            theirs.zero_grad()
            error = r - reference(anchors)
            value = error.square() if fit == "separate" else error.exp() - error + r - 1
            (TAU * value.mean(dim=1)).sum().backward()
            theirs.step()
        torch.testing.assert_close(alpha, reference(anchors).detach(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(npn.alpha(anchors), alpha)


def test_derivatives_of_alpha_equal_autograd():
    npn = build()
    anchors, _ = batch(0)
    leaves = [tensor.requires_grad_() for tensor in anchors]
    by_embedding, by_positive, by_tau = torch.autograd.grad(Reference(npn)(Anchors(*leaves)).sum(), leaves)
    with torch.no_grad():
        ours = npn.derivatives(Anchors(*leaves))
    torch.testing.assert_close(ours.embedding, by_embedding)
    torch.testing.assert_close(ours.positive.sum(0), by_positive)
    torch.testing.assert_close(ours.tau.sum(), by_tau.squeeze())


def test_it_learns():
    anchors, _ = batch(0)
    r = 2 * anchors.embeddings[..., 0] - anchors.positive / anchors.tau - 1
    npn = build(inner_steps=200, lr=0.05)
    before = (npn.alpha(anchors) - r).square().mean()
    assert (npn.step(anchors, r).alpha - r).square().mean() < 0.1 * before


def test_restarts_renew_the_optimizer_and_keep_the_weights():
    npn = build(restart_every=2, inner_steps=1)
    sums = []
    for seed in range(3):
        anchors, r = batch(seed)
        npn.observe(anchors.embeddings)
        sums.append((npn.weights.clone(), npn.squares.sum().item()))
        npn.step(anchors, r)
    assert npn.restart_count == 2
    assert sums[0][1] == sums[2][1] == 0 < sums[1][1]
    assert not torch.equal(sums[0][0], sums[2][0])


def test_state_round_trip_continues_the_same_trajectory():
    def advance(npn, seeds):
        for seed in seeds:
            anchors, r = batch(seed)
            npn.observe(anchors.embeddings)
            alpha = npn.step(anchors, r).alpha
        return alpha

    first, second = build(restart_every=3), build(restart_every=3)
    advance(first, range(4))
    state = first.state_dict()
    expected = advance(first, range(4, 8))
    second.load_state_dict(state)
    assert torch.equal(advance(second, range(4, 8)), expected)
    with pytest.raises(UserError, match=r"no 'weights' of shape .*set objectives\.neuclip\.npn"):
        build(dim=5).load_state_dict(state)
