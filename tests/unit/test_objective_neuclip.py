"""NeuCLIP: loss, gradients and metrics equal a plain float64 computation over pairs, and stay finite where
the published code overflows.

The reference is loops over anchors and negatives in numpy; its gradient is by central differences.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives import Features, build_objective, global_batch
from tests.unit.embeddings import hard_batches, unit_rows

EPS, RHO = 1e-14, 6.5


def reference_normalizers(e1, e2, tau):
    """log(eps + g), (2, G), by a loop over pairs."""
    size = len(e1)
    r = np.zeros((2, size))
    for side, (anchor, other) in enumerate(((e1, e2), (e2, e1))):
        for i in range(size):
            h = [(anchor[i] @ other[j] - e1[i] @ e2[i]) / tau for j in range(size) if j != i]
            top = max(h)
            log_g = top + math.log(sum(math.exp(x - top) for x in h) / (size - 1))
            r[side, i] = np.logaddexp(log_g, math.log(EPS))
    return r


def reference_alpha(e1, e2, prototypes, tau):
    """The NPN's prediction, (2, G), by a loop over prototypes."""
    alpha = np.zeros((2, len(e1)))
    for side, anchor in enumerate((e1, e2)):
        for i in range(len(e1)):
            z = [(anchor[i] @ w / np.linalg.norm(w) - e1[i] @ e2[i]) / tau for w in prototypes[side]]
            top = max(z)
            log_q = top + math.log(sum(math.exp(x - top) for x in z) / len(z))
            alpha[side, i] = np.logaddexp(log_q, math.log(EPS))
    return alpha


def reference_loss(e1, e2, tau, alpha, bound=1e3):
    total = 0.0
    r = reference_normalizers(e1, e2, tau)
    for side in (0, 1):
        for i in range(len(e1)):
            x = r[side, i] - alpha[side, i]
            term = math.exp(x) if x <= math.log(bound) else bound * (1 + x - math.log(bound))
            total += tau * (term + alpha[side, i] - 1) / len(e1)
    return total + 2 * RHO * tau


def build(rows=8, dim=6, prototypes=12, **npn):
    """An objective in evaluation mode whose NPN holds random float64 prototypes."""
    objective = build_objective("neuclip", {"rho": RHO, "eps": EPS, "npn": {"prototypes": prototypes, **npn}})
    objective.prepare(torch.device("cpu"), dim, rows, seed=0)
    objective.npn.prepare(torch.device("cpu"), dim, seed=0, dtype=torch.float64)
    objective.npn.prototypes = 1.7 * torch.stack([unit_rows(70, prototypes, dim), unit_rows(71, prototypes, dim)])
    return objective.eval()


def run(objective, e1, e2, tau):
    """Loss, gradients (e1, e2, tau) and the output, in the inputs' dtype."""
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    output = objective(Features(*leaves[:2]), torch.arange(len(e1)), leaves[2])
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("tau", [0.5, 0.07, 0.02])
def test_loss_and_gradients_equal_the_loops(tau):
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    objective = build()
    output, (grad1, grad2, grad_tau) = run(objective, e1, e2, tau)
    alpha = reference_alpha(e1.numpy(), e2.numpy(), objective.npn.prototypes.numpy(), tau)
    np.testing.assert_allclose(output.log_normalizer.numpy(), alpha, rtol=1e-9)
    np.testing.assert_allclose(output.loss.item(), reference_loss(e1.numpy(), e2.numpy(), tau, alpha), rtol=1e-9)

    def differences(array, evaluate):
        """Central differences with alpha held constant: the step treats it as a constant."""
        result = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * 1e-6
                result[index] += sign * evaluate(moved) / 2e-6
        return result

    a, b = e1.numpy(), e2.numpy()
    expected1 = differences(a, lambda moved: reference_loss(moved, b, tau, alpha))
    expected2 = differences(b, lambda moved: reference_loss(a, moved, tau, alpha))
    expected_tau = differences(np.array([tau]), lambda moved: reference_loss(a, b, moved[0], alpha))
    np.testing.assert_allclose(grad1.numpy(), expected1, rtol=1e-5, atol=1e-6 * np.abs(expected1).max())
    np.testing.assert_allclose(grad2.numpy(), expected2, rtol=1e-5, atol=1e-6 * np.abs(expected2).max())
    np.testing.assert_allclose(grad_tau.numpy(), expected_tau, rtol=1e-5)


@pytest.mark.parametrize("bound", [1e3, 1.5])
def test_with_alpha_through_the_gradient_is_the_whole_derivative(bound):
    objective = build(alpha_gradient="through")
    if bound != 1e3:
        objective.config = objective.config.model_copy(update={"ratio_bound": bound})

    def loss(raw1, raw2, tau):
        features = Features(F.normalize(raw1, dim=-1), F.normalize(raw2, dim=-1))
        return objective(features, torch.arange(8), tau).loss

    tau = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    raw1, raw2 = (unit_rows(seed, 8, 6).requires_grad_() for seed in (3, 4))
    assert torch.autograd.gradcheck(loss, (raw1, raw2, tau), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_chunked_similarities_change_nothing(monkeypatch):
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    whole, whole_gradients = run(build(), e1, e2, 0.07)
    monkeypatch.setattr(global_batch, "CHUNK_ENTRIES", 24)  # 3 anchors of 8 at a time
    chunked, chunked_gradients = run(build(), e1, e2, 0.07)
    torch.testing.assert_close(chunked.loss, whole.loss)
    for ours, expected in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_metrics_say_what_they_are_named():
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    output, _ = run(build(), e1, e2, 0.07)
    r = reference_normalizers(e1.numpy(), e2.numpy(), 0.07)
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
    alpha = reference_alpha(e1.numpy(), e2.numpy(), objective.npn.prototypes.numpy(), 0.03)
    excess = reference_normalizers(e1.numpy(), e2.numpy(), 0.03) - alpha
    assert output.metrics["npn/ratio_clipped"] == (excess > math.log(1e3)).sum() > 0
    assert output.loss.item() == pytest.approx(reference_loss(e1.numpy(), e2.numpy(), 0.03, alpha))
    direction, slope = unit_rows(9, 8, 6), 0.0
    for sign in (1, -1):
        moved = (e1 + sign * 1e-7 * direction).numpy()
        slope += sign * reference_loss(moved, e2.numpy(), 0.03, alpha) / 2e-7
    assert (gradients[0] * direction).sum().item() == pytest.approx(slope, rel=1e-4)


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
    double1, double2 = e1.double().numpy(), e2.double().numpy()
    alpha = reference_alpha(double1, double2, objective.npn.prototypes.double().numpy(), tau)
    np.testing.assert_allclose(output.log_normalizer.numpy(), alpha, rtol=1e-4, atol=1e-3)
    # exp(r - alpha) turns an absolute error of 1e-7 / tau in the exponent into a relative one.
    expected = reference_loss(double1, double2, tau, output.log_normalizer.double().numpy())
    assert output.loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


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
    alpha = output.log_normalizer.double().numpy()
    expected = reference_loss(e1.double().numpy(), e2.double().numpy(), tau, alpha)
    assert output.loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_bf16_autocast_does_not_reach_the_loss():
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    objective = build()
    objective.npn.prototypes, objective.npn.log_masses = (
        tensor.float() for tensor in (objective.npn.prototypes, objective.npn.log_masses)
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
        used = (before if updates == "simultaneous" else after).numpy()
        expected = reference_alpha(e2.numpy(), e1.numpy(), used, 0.07)
        np.testing.assert_allclose(output.log_normalizer.numpy(), expected, rtol=1e-7)
        objective.npn.prototypes = torch.from_numpy(used)
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
