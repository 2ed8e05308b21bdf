"""SigLIP's loss equals a float64 loop over pairs and open_clip's own SigLipLoss, in value and gradients."""

import math

import numpy as np
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.objectives import Features, build_objective, global_batch
from tests.unit.embeddings import unit_rows

BIAS = -10.0


def leaves_of(*tensors, tau, bias):
    return [t.clone().requires_grad_() for t in (*tensors, tensors[0].new_tensor([tau]), tensors[0].new_tensor([bias]))]


def run(e1, e2, tau, bias=BIAS):
    """The output, and the gradients of e1, e2, tau and the bias, in the inputs' dtype."""
    image, text, tau, bias = leaves = leaves_of(e1, e2, tau=tau, bias=bias)
    output = build_objective("siglip", {})(Features(image, text), torch.arange(len(e1)), tau, bias)
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


def log_sigmoid(x):
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def reference(e1, e2, tau, bias):
    """Loss and gradients by a loop over pairs; the derivative of -log sigmoid(z x) for x is -z sigmoid(-z x)."""
    size = len(e1)
    loss, grad1, grad2, grad_tau, grad_bias = 0.0, np.zeros_like(e1), np.zeros_like(e2), 0.0, 0.0
    for i in range(size):
        for j in range(size):
            z, s = (1 if i == j else -1), float(e1[i] @ e2[j])
            loss -= log_sigmoid(z * (s / tau + bias)) / size
            slope = -z * math.exp(log_sigmoid(-z * (s / tau + bias))) / size
            grad1[i] += slope * e2[j] / tau
            grad2[j] += slope * e1[i] / tau
            grad_tau -= slope * s / tau**2
            grad_bias += slope
    return loss, (grad1, grad2, [grad_tau], [grad_bias])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 12),
    dim=st.integers(2, 24),
    tau=st.floats(0.005, 1.0),
    bias=st.floats(-20, 5),
    seed=st.integers(0, 2**31),
)
def test_equals_the_loops_and_open_clip(rows, dim, tau, bias, seed):
    e1, e2 = unit_rows(seed, rows, dim), unit_rows(seed + 1, rows, dim)
    output, gradients = run(e1, e2, tau, bias)
    loss, expected = reference(e1.numpy(), e2.numpy(), tau, bias)
    assert output.loss.item() == pytest.approx(loss, rel=1e-7)
    for ours, loops in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), loops, rtol=1e-7, atol=1e-9)

    peers = leaves_of(e1, e2, tau=tau, bias=bias)
    peer_loss = open_clip.loss.SigLipLoss()(peers[0], peers[1], 1 / peers[2], peers[3])
    peer_loss.backward()
    torch.testing.assert_close(output.loss, peer_loss, rtol=1e-7, atol=1e-12)
    for ours, peer in zip(gradients, peers, strict=True):
        torch.testing.assert_close(ours, peer.grad, rtol=1e-7, atol=1e-9)


def test_gradients_are_those_of_the_value():
    def loss(raw1, raw2, tau, bias):
        features = Features(F.normalize(raw1, dim=-1), F.normalize(raw2, dim=-1))
        return build_objective("siglip", {})(features, torch.arange(5), tau, bias).loss

    inputs = leaves_of(unit_rows(3, 5, 4), unit_rows(4, 5, 4), tau=0.1, bias=-3.0)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-6, rtol=1e-5)


def hard_batches():
    e1, e2 = unit_rows(6, 8, 16), unit_rows(7, 8, 16)
    return {
        "identical images": (e1[:1].repeat(8, 1), e2),
        "all identical": (e1[:1].repeat(8, 1), e1[:1].repeat(8, 1)),
        "positive below every negative": (e1, -e1),
        "aligned": (e1, e1),
        "two samples": (e1[:2], e2[:2]),
    }


@pytest.mark.parametrize("tau", [0.005, 0.1])
@pytest.mark.parametrize("case", hard_batches())
def test_hard_batches_in_fp32_are_near_float64(case, tau):
    e1, e2 = (tensor.float() for tensor in hard_batches()[case])
    output, gradients = run(e1, e2, tau)
    loss, expected = reference(e1.double().numpy(), e2.double().numpy(), tau, BIAS)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    for ours, loops in zip(gradients, expected, strict=True):
        # Where a saturated logit's slope vanishes, what is left is rounding of the similarity, 1e-7 / tau.
        np.testing.assert_allclose(ours.numpy(), loops, rtol=1e-4, atol=1e-5 * max(1, np.abs(loops).max()))


def test_metrics_say_what_they_are_named():
    e1, e2 = unit_rows(1, 8, 6), unit_rows(2, 8, 6)
    output, _ = run(e1, e2, 0.1, bias=-2.0)
    probability = 1 / (1 + np.exp(2 - e1.numpy() @ e2.numpy().T / 0.1))
    negatives = [probability[i, j] for i in range(8) for j in range(8) if i != j]
    expected = {
        "siglip/logit_bias": -2.0,
        "siglip/positive_probability": np.diag(probability).mean(),
        "siglip/negative_probability": np.mean(negatives),
    }
    assert {name: value.item() for name, value in output.metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in output.metrics.values())
    assert output.log_normalizer is None


def test_chunked_similarities_change_nothing(monkeypatch):
    e1, e2 = unit_rows(1, 9, 6), unit_rows(2, 9, 6)
    whole, whole_gradients = run(e1, e2, 0.1)
    monkeypatch.setattr(global_batch, "CHUNK_ENTRIES", 18)  # 2 images of 9 at a time
    chunked, chunked_gradients = run(e1, e2, 0.1)
    torch.testing.assert_close(chunked.loss, whole.loss)
    for ours, expected in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_bf16_autocast_does_not_reach_the_loss():
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    plain, plain_gradients = run(e1, e2, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradients = run(e1, e2, 0.1)
    assert torch.equal(plain.loss, cast.loss)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, cast_gradients, strict=True))


def test_a_single_sample_is_refused():
    with pytest.raises(UserError, match="at least 2 samples"):
        run(unit_rows(1, 1, 4), unit_rows(2, 1, 4), 0.1)
