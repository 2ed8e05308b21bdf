"""The NPN: closed-form steps equal torch's autograd and its AdaGrad, and the state is complete."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.objectives import LogNormalizerConfig
from pipeline.errors import UserError
from pipeline.models.log_normalizer import Anchors, MLPNetwork, sharded_softmax
from pipeline.models.log_normalizer.fit import fit_slope
from tests.unit.npn_support import EPS, anchors_of, build, embeddings, started

# AdaGrad's sums so large that a step is one of plain gradient descent with rate 1: it shows the gradient.
PLAIN_STEP = {"inner_steps": 1, "lr": 1e10, "accumulator_init": 1e20}


def autograd_alpha(weights, anchors):
    """The formula as written, in torch's autograd."""
    cosine = torch.stack([anchors.embeddings[s] @ F.normalize(weights[s], dim=-1).T for s in (0, 1)])
    z = (cosine - anchors.positive[:, None]) / anchors.tau
    log_q = torch.logsumexp(z, dim=-1) - math.log(weights.shape[1])
    return torch.logaddexp(log_q, torch.full_like(log_q, math.log(EPS)))


def autograd_loss(weights, anchors, r):
    alpha = autograd_alpha(weights, anchors)
    return (anchors.tau * (torch.exp(r - alpha) + alpha - 1).mean(dim=1)).sum()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 10),
    prototypes=st.integers(1, 12),
    tau=st.floats(0.02, 1.0),
    seed=st.integers(0, 9999),
)
def test_closed_form_gradient_equals_autograd(count, prototypes, tau, seed):
    npn = build(prototypes=prototypes, dtype=torch.float64, ratio_bound=1e30, **PLAIN_STEP)
    npn.prototypes = 3 * torch.randn_like(npn.prototypes)
    anchors = anchors_of(embeddings(seed, count, dtype=torch.float64), tau)
    # Targets around the prediction: the size of exp(r - alpha) is not what is tested here.
    r = npn.alpha(anchors) + torch.randn(2, count, dtype=torch.float64)
    weights = npn.prototypes.clone().requires_grad_()
    autograd_loss(weights, anchors, r).backward()
    npn.step(anchors, r)
    torch.testing.assert_close(weights.detach() - npn.prototypes, weights.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("accumulator_init", [0.0, 0.01])
def test_steps_equal_torchs_adagrad_on_autograd(accumulator_init):
    options = {"prototypes": 8, "inner_steps": 4, "lr": 0.05, "accumulator_init": accumulator_init}
    npn = started(embeddings(0, 10, dtype=torch.float64), **options)
    weights = npn.prototypes.clone().requires_grad_()
    optimizer = torch.optim.Adagrad([weights], lr=0.05, eps=1e-10, initial_accumulator_value=accumulator_init)
    for step in range(3):
        batch = embeddings(step, 10, dtype=torch.float64)
        anchors, r = anchors_of(batch, 0.1), torch.randn(2, 10, dtype=torch.float64) - 3
        npn.observe(batch)
        npn.step(anchors, r)
        for _ in range(4):
            optimizer.zero_grad()
            autograd_loss(weights, anchors, r).backward()
            optimizer.step()
        torch.testing.assert_close(npn.prototypes, weights.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(npn.squares, optimizer.state[weights]["sum"])


def test_blocks_of_prototypes_change_nothing(monkeypatch):
    batch = embeddings(0, 10, dtype=torch.float64)
    anchors, r = anchors_of(batch, 0.1), torch.randn(2, 10, dtype=torch.float64) - 3
    results = []
    for block_floats in (2**17, 18):  # all 8 prototypes at once; 3, 3 and 2
        monkeypatch.setattr(sharded_softmax, "CPU_BLOCK_FLOATS", block_floats)
        monkeypatch.setattr(sharded_softmax, "SHARED_BLOCK_FLOATS", block_floats)
        npn = started(batch, prototypes=8, inner_steps=3)
        after = npn.step(anchors, r).alpha
        torch.testing.assert_close(after, npn.alpha(anchors))  # what step returns is of the updated prototypes
        results.append((npn.prototypes, npn.squares, after, *npn.derivatives(anchors)))
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, whole, rtol=1e-6, atol=1e-8)


def test_derivatives_of_alpha_equal_autograd():
    npn = build(prototypes=8, dtype=torch.float64)
    npn.prototypes = torch.randn_like(npn.prototypes)
    batch = embeddings(1, 5, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in anchors_of(batch, 0.1)]
    alpha = autograd_alpha(npn.prototypes, Anchors(*leaves))
    with torch.no_grad():
        ours = npn.derivatives(Anchors(*leaves))
    by_embedding, by_positive, by_tau = torch.autograd.grad(alpha.sum(), leaves)
    torch.testing.assert_close(ours.embedding, by_embedding)
    torch.testing.assert_close(ours.positive.sum(0), by_positive)
    torch.testing.assert_close(ours.tau.sum(), by_tau.squeeze())


def concepts(seed, count, dim=32):
    """Pairs that share one of 20 concepts, as image and text of a caption do."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=torch.Generator().manual_seed(99))
    chosen = centres[torch.randint(20, (count,), generator=generator)]
    return F.normalize(chosen + 0.7 * torch.randn(2, count, dim, generator=generator), dim=-1)


def log_normalizers(batch, tau):
    sides = []
    for side in (0, 1):
        h = (batch[side] @ batch[1 - side].T - (batch[0] * batch[1]).sum(-1)[:, None]) / tau
        sides.append(h.fill_diagonal_(-torch.inf).logsumexp(1) - math.log(len(h) - 1))
    return torch.stack(sides)


def test_predicts_the_normalizers_of_unseen_anchors_better_than_a_batch_does():
    """Trained on batches of 32, alpha is nearer to the normalizers over 2,048 samples than the estimates r of
    such batches are: the point of the method."""
    npn = build(prototypes=64, dim=32)
    tau = 0.1
    for step in range(60):
        batch = concepts(step, 32)
        npn.observe(batch)
        npn.step(anchors_of(batch, tau), log_normalizers(batch, tau))
    dataset = concepts(1000, 2048)
    truth = log_normalizers(dataset, tau)
    error = (npn.alpha(anchors_of(dataset, tau)) - truth).square().mean()
    batches = dataset.unflatten(1, (64, 32)).unbind(1)
    estimates = torch.cat([log_normalizers(batch, tau) for batch in batches], dim=1)
    assert error < 0.3 * (estimates - truth).square().mean()


def unified(alpha, r, bound):
    ratio = (r - alpha).exp()
    beyond = bound * (1 + r - alpha - math.log(bound))
    return torch.where(ratio < bound, ratio, beyond) + alpha - 1


def separate(alpha, r, bound):
    return (alpha - r).square()


@pytest.mark.parametrize("fit", [unified, separate])
def test_slopes_are_the_derivatives_of_what_is_fitted(fit):
    alpha = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    r = alpha.detach() + 2 * torch.linspace(-2, 2, 14, dtype=torch.float64).view(2, 7)
    (expected,) = torch.autograd.grad(fit(alpha, r, 3.0).sum(dim=0).mean(), alpha)
    torch.testing.assert_close(fit_slope(fit.__name__, alpha.detach(), r, 3.0), expected)


def test_a_separate_fit_follows_its_gradient():
    npn = build(prototypes=8, dtype=torch.float64, fit="separate", **PLAIN_STEP)
    npn.prototypes = torch.randn_like(npn.prototypes)
    anchors = anchors_of(embeddings(3, 10, dtype=torch.float64), 0.1)
    r = torch.randn(2, 10, dtype=torch.float64)
    weights = npn.prototypes.clone().requires_grad_()
    (0.1 * (autograd_alpha(weights, anchors) - r).square().sum(0).mean()).backward()
    npn.step(anchors, r)
    torch.testing.assert_close(weights.detach() - npn.prototypes, weights.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"accumulator_init": 1e-4}, {"prototypes": 5}], ids=str)
def test_state_round_trip_continues_the_same_trajectory(options):
    def advance(npn, steps):
        alphas = []
        for step in steps:
            batch = embeddings(step, 4)
            npn.observe(batch)
            alphas.append(npn.step(anchors_of(batch, 0.1), torch.full((2, 4), -2.0)).alpha)
        return alphas

    config = {"prototypes": 20, "restart_every": 3, "inner_steps": 2, **options}
    whole = build(**config)
    expected = advance(whole, range(8))
    first, second = build(**config), build(**config)
    advance(first, range(5))  # two steps after a restart, one before the next
    state = first.state_dict()
    advance(first, range(5, 7))  # what was saved must not move with the run
    second.load_state_dict(state)
    assert all(map(torch.equal, advance(second, range(5, 8)), expected[5:]))
    for name, value in whole.get_extra_state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.get_extra_state()[name])), name


@pytest.mark.parametrize(("prototypes", "dim"), [(8, 6), (7, 5)])
def test_a_state_of_another_size_is_refused(prototypes, dim):
    state = build(prototypes=7).state_dict()
    with pytest.raises(UserError, match=r"is of .* \(7, 6\), this run's .* \(\d, \d\): set objectives.neuclip"):
        build(prototypes=prototypes, dim=dim).load_state_dict(state)


def test_a_state_of_another_network_is_refused():
    mlp = MLPNetwork(LogNormalizerConfig(network="mlp"), ratio_bound=1e3)
    mlp.prepare(torch.device("cpu"), 6, seed=0)
    with pytest.raises(UserError, match=r"is of .* none, this run's .* \(7, 6\): set objectives\.neuclip\.npn"):
        build(prototypes=7).load_state_dict(mlp.state_dict())


def test_no_cast_of_a_surrounding_module_reaches_the_state():
    npn = build(prototypes=4)
    torch.nn.Sequential(npn).bfloat16()
    assert npn.prototypes.dtype == npn.ring.embeddings.dtype == torch.float32
    assert not list(npn.parameters())
