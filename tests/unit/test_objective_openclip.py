"""OpenCLIP's loss equals a float64 loop over pairs and open_clip's own ClipLoss, in value and gradients."""

import math

import numpy as np
import open_clip.loss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives import Features, build_objective, global_batch
from tests.unit.embeddings import unit_rows


def run(e1, e2, tau, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    output = build_objective("openclip", options)(Features(*leaves[:2]), torch.arange(len(e1)), leaves[2])
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


def reference_loss(e1, e2, tau):
    """Mean cross-entropy of each row and column of the similarity matrix, its diagonal being the target."""
    total = 0.0
    for anchor, other in ((e1, e2), (e2, e1)):
        for i in range(len(e1)):
            logits = [anchor[i] @ other[j] / tau for j in range(len(e1))]
            top = max(logits)
            log_sum = top + math.log(sum(math.exp(x - top) for x in logits))
            total += (log_sum - logits[i]) / (2 * len(e1))
    return total


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 12), dim=st.integers(2, 24), tau=st.floats(0.005, 1.0), seed=st.integers(0, 2**31))
def test_equals_the_loops_and_open_clip(rows, dim, tau, seed):
    e1, e2 = unit_rows(seed, rows, dim), unit_rows(seed + 1, rows, dim)
    output, gradients = run(e1, e2, tau)
    assert output.loss.item() == pytest.approx(reference_loss(e1.numpy(), e2.numpy(), tau), rel=1e-9, abs=1e-12)

    peers = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    peer_loss = open_clip.loss.ClipLoss()(peers[0], peers[1], 1 / peers[2])
    peer_loss.backward()
    torch.testing.assert_close(output.loss, peer_loss.squeeze(), rtol=1e-9, atol=1e-12)
    for ours, peer in zip(gradients, peers, strict=True):
        torch.testing.assert_close(ours, peer.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eps", [1e-14, 0.3])
def test_log_normalizer_is_the_batch_estimate(eps):
    e1, e2 = unit_rows(1, 8, 6).numpy(), unit_rows(2, 8, 6).numpy()
    output, _ = run(torch.tensor(e1), torch.tensor(e2), 0.07, eps=eps)
    log_g = []
    for side, (anchor, other) in enumerate(((e1, e2), (e2, e1))):
        for i in range(8):
            g = np.mean([math.exp((anchor[i] @ other[j] - e1[i] @ e2[i]) / 0.07) for j in range(8) if j != i])
            assert output.log_normalizer[side, i].item() == pytest.approx(math.log(eps + g))
            log_g.append(math.log(g))
    assert output.metrics["train/r_mean"].item() == pytest.approx(output.log_normalizer.mean().item())
    assert output.metrics["train/log_normalizer_mean"].item() == pytest.approx(np.mean(log_g))


@pytest.mark.parametrize("tau", [0.005, 0.07])
def test_hard_batches_in_fp32_are_near_float64(tau):
    e1 = unit_rows(6, 8, 16, torch.float32)
    for other in (-e1, e1, e1[:1].repeat(8, 1)):
        output, gradients = run(e1, other, tau)
        expected = reference_loss(e1.double().numpy(), other.double().numpy(), tau)
        assert output.loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        peers = [x.double().requires_grad_() for x in (e1.detach(), other.detach(), torch.tensor([tau]))]
        open_clip.loss.ClipLoss()(peers[0], peers[1], 1 / peers[2]).backward()
        for ours, peer in zip(gradients, peers, strict=True):
            torch.testing.assert_close(
                ours.double(), peer.grad, rtol=1e-3, atol=1e-4 * float(peer.grad.abs().max()) + 1e-6
            )


def test_chunked_similarities_change_nothing(monkeypatch):
    e1, e2 = unit_rows(1, 9, 6), unit_rows(2, 9, 6)
    whole, whole_gradients = run(e1, e2, 0.07)
    monkeypatch.setattr(global_batch, "CHUNK_ENTRIES", 18)
    chunked, chunked_gradients = run(e1, e2, 0.07)
    torch.testing.assert_close(chunked.loss, whole.loss)
    for ours, expected in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected)
