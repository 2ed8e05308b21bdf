"""NeuCLIP: loss, gradients and metrics equal a plain float64 computation over pairs, and stay finite where
the published code overflows.

The reference is loops over anchors and negatives in torch, so that autograd gives the gradients to compare with.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives import Features, build_objective
from tests.unit.embeddings import hard_batches, rounding, unit_rows

EPS, RHO = 1e-14, 6.5


def reference_normalizers(e1, e2, tau, eps=EPS):
    """log(eps + g), (2, G), by a loop over pairs."""
    size, r = len(e1), []
    for anchor, other in ((e1, e2), (e2, e1)):
        for i in range(size):
            h = [(anchor[i] @ other[j] - e1[i] @ e2[i]) / tau for j in range(size) if j != i]
            log_g = torch.stack(h).logsumexp(dim=0) - math.log(size - 1)
            r.append(torch.logaddexp(log_g, torch.full_like(log_g, math.log(eps))))
    return torch.stack(r).view(2, size)


def reference_alpha(e1, e2, prototypes, tau, eps=EPS):
    """The NPN's prediction, (2, G), by a loop over prototypes."""
    alpha = []
    for side, anchor in enumerate((e1, e2)):
        for i in range(len(e1)):
            z = [(anchor[i] @ w / w.norm() - e1[i] @ e2[i]) / tau for w in prototypes[side].double()]
            log_q = torch.stack(z).logsumexp(dim=0) - math.log(len(z))
            alpha.append(torch.logaddexp(log_q, torch.full_like(log_q, math.log(eps))))
    return torch.stack(alpha).view(2, len(e1))


def reference_loss(e1, e2, tau, alpha, bound=1e3, eps=EPS):
    """METHOD's objective term by term; alpha is a constant where it has no graph."""
    total = 2 * RHO * tau
    for x, a in zip(reference_normalizers(e1, e2, tau, eps).flatten() - alpha.flatten(), alpha.flatten(), strict=True):
        ratio = x.exp() if x <= math.log(bound) else bound * (1 + x - math.log(bound))
        total = total + tau * (ratio + a - 1) / len(e1)
    return total.squeeze()


def reference(e1, e2, tau, alpha, **options):
    """The loss and its gradients for e1, e2 and tau, in float64."""
    leaves = [x.double().clone().requires_grad_() for x in (e1, e2, torch.tensor([tau], dtype=torch.float64))]
    loss = reference_loss(*leaves, alpha.double(), **options)
    return loss.item(), torch.autograd.grad(loss, leaves)


def build(rows=8, dim=6, prototypes=12, eps=EPS, **npn):
    """An objective in evaluation mode whose NPN holds random float64 prototypes."""
    objective = build_objective("neuclip", {"rho": RHO, "eps": eps, "npn": {"prototypes": prototypes, **npn}})
    objective.prepare(torch.device("cpu"), dim, rows, seed=0)
    objective.npn.prepare(torch.device("cpu"), dim, seed=0, dtype=torch.float64)
    objective.npn.prototypes = 1.7 * torch.stack([unit_rows(70, prototypes, dim), unit_rows(71, prototypes, dim)])
    return objective.eval()


def run(objective, e1, e2, tau, index=None):
    """Loss, gradients (e1, e2, tau) and the output, in the inputs' dtype."""
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    output = objective(Features(*leaves[:2]), torch.arange(len(e1)) if index is None else index, leaves[2])
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("eps", [EPS, 0.3])
@pytest.mark.parametrize("tau", [0.5, 0.07, 0.02])
def test_loss_and_gradients_equal_the_loops(tau, eps):
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    objective = build(eps=eps)
    output, gradients = run(objective, e1, e2, tau)
    torch.testing.assert_close(output.log_normalizer, reference_alpha(e1, e2, objective.npn.prototypes, tau, eps))
    loss, expected = reference(e1, e2, tau, output.log_normalizer, eps=eps)
    assert output.loss.item() == pytest.approx(loss, rel=1e-9)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * float(theirs.abs().max()))


@pytest.mark.parametrize("bound", [1e3, 1.5])
def test_with_alpha_through_the_gradient_is_the_whole_derivative(bound):
    objective = build(alpha_gradient="through")
    if bound != 1e3:
        objective.config = objective.config.model_copy(update={"ratio_bound": bound})

    def loss(raw1, raw2, tau):
        features = Features(F.normalize(raw1, dim=-1), F.normalize(raw2, dim=-1))
        return objective(features, torch.arange(5), tau).loss

    tau = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    raw1, raw2 = (unit_rows(seed, 5, 6).requires_grad_() for seed in (3, 4))
    assert torch.autograd.gradcheck(loss, (raw1, raw2, tau), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_metrics_say_what_they_are_named():
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    output, _ = run(build(), e1, e2, 0.07)
    r = reference_normalizers(e1, e2, 0.07).numpy()
    residual = np.exp(r - output.log_normalizer.numpy())
    expected = {
        "train/log_normalizer_mean": r.mean(),  # eps is far below g here
        "train/r_mean": r.mean(),
        "npn/alpha_mean": output.log_normalizer.mean().item(),
        "npn/residual_p01": np.quantile(residual, 0.01),
        "npn/residual_p50": np.quantile(residual, 0.5),
        "npn/residual_p99": np.quantile(residual, 0.99),
        "npn/ratio_clipped": 0,
        "npn/restarts": 0,
    }
    seconds = output.metrics.pop("npn/seconds")
    assert 0 < seconds < 60
    assert {name: value.item() for name, value in output.metrics.items()} == pytest.approx(expected, rel=1e-6)
    assert not any(value.requires_grad for value in output.metrics.values())


def test_a_runaway_ratio_is_continued_linearly_and_counted():
    centre = unit_rows(1, 1, 6)
    e1, e2 = (F.normalize(centre + 0.3 * unit_rows(seed, 8, 6), dim=-1) for seed in (2, 3))
    objective = build(prototypes=8)
    objective.npn.prototypes = -centre.expand(2, 8, 6)  # far from every anchor: alpha falls to log(eps)
    output, gradients = run(objective, e1, e2, 0.03)
    alpha = reference_alpha(e1, e2, objective.npn.prototypes, 0.03)
    excess = reference_normalizers(e1, e2, 0.03) - alpha
    assert output.metrics["npn/ratio_clipped"] == (excess > math.log(1e3)).sum() > 0
    loss, expected = reference(e1, e2, 0.03, alpha)
    assert output.loss.item() == pytest.approx(loss)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_residuals_beyond_fp32_are_reported_at_its_end():
    """Every text is another image's own: r is 1/tau and more, alpha at its floor."""
    e1 = unit_rows(6, 8, 16, torch.float32)
    objective = build(dim=16, prototypes=1)
    objective.npn.prepare(torch.device("cpu"), 16, seed=0)
    objective.npn.prototypes = -torch.ones(2, 1, 16)
    output, _ = run(objective, e1, e1.roll(1, 0), 0.005)
    residuals = reference_normalizers(e1.double(), e1.roll(1, 0).double(), 0.005) - output.log_normalizer
    assert residuals.max() > 100
    assert output.metrics["npn/residual_p99"].item() == pytest.approx(math.exp(88), rel=1e-5)
    assert output.metrics["npn/ratio_clipped"] == (residuals > math.log(1e3)).sum()


@pytest.mark.parametrize("tau", [0.005, 0.01, 0.07])
@pytest.mark.parametrize("case", hard_batches())
def test_hard_batches_are_finite_and_near_float64(case, tau):
    """fp32 arithmetic on features rounded by a bf16 encoder, through training steps with restarts."""
    e1, e2 = (F.normalize(e.to(torch.bfloat16).float(), dim=-1).to(torch.float32) for e in hard_batches()[case])
    objective = build_objective("neuclip", {"npn": {"prototypes": 20, "restart_every": 2, "inner_steps": 3}})
    objective.prepare(torch.device("cpu"), 16, 100, seed=0)
    for _ in range(4):
        output, gradients = run(objective, e1, e2, tau)
        for tensor in (output.loss, output.log_normalizer, *gradients, *output.metrics.values()):
            assert torch.isfinite(tensor).all()
    alpha = reference_alpha(e1.double(), e2.double(), objective.npn.prototypes, tau)
    torch.testing.assert_close(output.log_normalizer.double(), alpha, rtol=1e-4, atol=1e-3)
    loss, expected = reference(e1, e2, tau, output.log_normalizer)
    assert output.loss.item() == pytest.approx(loss, rel=1e-3, abs=1e-4)
    for ours, theirs in zip(gradients, expected, strict=True):
        atol = 1e-3 * float(theirs.abs().max()) + rounding(tau)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=atol)


def test_a_sample_twice_in_a_batch_enters_the_ring_in_any_order_of_the_batch():
    """Where two epochs meet. The ring holds 4 of the 6."""
    e1, e2 = unit_rows(1, 6, 6, torch.float32), unit_rows(2, 6, 6, torch.float32)
    index, shuffle = torch.tensor([5, 2, 5, 0, 2, 5]), torch.tensor([4, 2, 0, 5, 3, 1])
    rings = []
    for order in (torch.arange(6), shuffle):
        objective = build_objective("neuclip", {"npn": {"prototypes": 4, "inner_steps": 1}})
        objective.prepare(torch.device("cpu"), 6, 6, seed=0)
        run(objective, e1[order], e2[order], 0.07, index[order])
        rings.append((objective.npn.ring.embeddings, objective.npn.prototypes))
    torch.testing.assert_close(rings[1], rings[0])
    held = set(map(str, rings[0][0][0].tolist()))
    assert len(held & set(map(str, e1[index == 2].tolist()))) == 1
    assert set(map(str, e1[index == 5].tolist())) < held


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 12),
    dim=st.integers(2, 24),
    prototypes=st.integers(1, 30),
    tau=st.floats(0.005, 1.0),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_temperature(rows, dim, prototypes, tau, seed):
    objective = build_objective("neuclip", {"npn": {"prototypes": prototypes, "inner_steps": 2}})
    objective.prepare(torch.device("cpu"), dim, rows, seed=seed)
    e1, e2 = (unit_rows(seed + side, rows, dim, torch.float32) for side in (0, 1))
    output, gradients = run(objective, e1, e2, tau)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    expected, _ = reference(e1, e2, tau, output.log_normalizer)
    assert output.loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_bf16_autocast_does_not_reach_the_loss():
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    objective = build()
    objective.npn.prototypes, objective.npn.log_mass = (
        tensor.float() for tensor in (objective.npn.prototypes, objective.npn.log_mass)
    )
    plain, plain_gradients = run(objective, e1, e2, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradients = run(objective, e1, e2, 0.05)
    assert torch.equal(plain.loss, cast.loss)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, cast_gradients, strict=True))


@pytest.mark.parametrize("alpha_gradient", ["constant", "through"])
def test_simultaneous_updates_use_alpha_from_before_the_networks_step(alpha_gradient):
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    results = {}
    for updates in ("alternating", "simultaneous"):
        options = {"prototypes": 5, "restart_every": None, "alpha_gradient": alpha_gradient}
        objective = build_objective("neuclip", {"eps": EPS, "updates": updates, "npn": options})
        objective.npn.prepare(torch.device("cpu"), 6, seed=0, dtype=torch.float64)
        run(objective, e1, e2, 0.07)  # the restart
        before = objective.npn.prototypes.clone()
        output, gradients = run(objective, e2, e1, 0.07)
        after = objective.npn.prototypes
        assert not torch.equal(before, after)
        objective.npn.prototypes = before if updates == "simultaneous" else after
        torch.testing.assert_close(output.log_normalizer, reference_alpha(e2, e1, objective.npn.prototypes, 0.07))
        _, expected_gradients = run(objective.eval(), e2, e1, 0.07)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
        results[updates] = after.clone()
    torch.testing.assert_close(results["alternating"], results["simultaneous"])


def test_evaluation_leaves_the_state_alone():
    objective = build_objective("neuclip", {"npn": {"prototypes": 5}})
    objective.prepare(torch.device("cpu"), 6, 8, seed=0)
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    run(objective, e1, e2, 0.07)
    before = objective.state_dict()["npn._extra_state"]
    run(objective.eval(), e1, e2, 0.07)
    after = objective.state_dict()["npn._extra_state"]
    for name, value in before.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[name])), name
    assert before["steps"] == 1
