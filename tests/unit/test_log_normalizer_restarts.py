"""The NPN's restarts: the ring buffer holds the last embeddings; when they come, what they draw and what they leave
is scheduled, seeded and defined for every M; a collapse of the prototypes shows."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.npn_support import anchors_of, build, embeddings, started


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 20), counts=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_the_ring_holds_the_last_embeddings(capacity, counts):
    npn = build(prototypes=capacity, dim=3)
    last = deque(maxlen=capacity)
    for number, count in enumerate(counts):
        batch = embeddings(number, count, dim=3)
        npn.observe(batch)
        last.extend(batch.transpose(0, 1))
    held = npn.ring.embeddings[:, : len(last)].transpose(0, 1)
    assert sorted(map(str, held.tolist())) == sorted(str(row.tolist()) for row in last)
    assert npn.ring.samples_seen == sum(counts)


def test_restarts_take_every_embedding_equally_often():
    npn = build(prototypes=10)
    batch = embeddings(0, 4)
    npn.observe(batch)
    npn.restart()
    for side in (0, 1):  # side 0 predicts for image anchors, from texts
        counts = [int((npn.prototypes[side] == row).all(-1).sum()) for row in batch[1 - side]]
        assert sorted(counts) == [2, 2, 3, 3]
    npn.observe(embeddings(1, 6))  # now the ring is full: every embedding once
    npn.restart()
    for side in (0, 1):
        ours = sorted(map(str, npn.prototypes[side].tolist()))
        assert ours == sorted(map(str, npn.ring.embeddings[1 - side].tolist()))


def test_restarts_are_seeded_and_differ_from_one_another():
    draws = {}
    for seed in (0, 0, 1):
        npn = build(prototypes=50, seed=seed)
        npn.observe(embeddings(0, 50))
        npn.restart()
        first = npn.prototypes.clone()
        npn.restart()
        assert not torch.equal(first, npn.prototypes)
        assert torch.equal(draws.setdefault(seed, first), first)
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(("every", "expected"), [(3, [0, 3, 6]), (None, [0]), (1, list(range(8)))])
def test_restarts_come_when_due_and_reset_adagrad(every, expected):
    npn = build(prototypes=6, restart_every=every, inner_steps=1)
    restarted = []
    for step in range(8):
        batch = embeddings(step, 4)
        count, before = npn.restart_count, npn.squares.clone()
        npn.observe(batch)
        npn.step(anchors_of(batch, 0.1), torch.zeros(2, 4) - 2)
        grown = bool((npn.squares >= before).all())  # AdaGrad's sums only ever grow, but for a reset
        if npn.restart_count != count:
            restarted.append(step)
            assert step == 0 or not grown
        else:
            assert grown
    assert restarted == expected


def test_the_spread_ratio_shows_a_collapse():
    npn = started(embeddings(0, 200, dim=16), dim=16, prototypes=200, inner_steps=0)
    npn.steps = 10
    anchors = anchors_of(embeddings(1, 5, dim=16), 0.1)
    ratio = npn.step(anchors, torch.zeros(2, 5)).metrics["npn/spread_ratio"]
    assert ratio.item() == pytest.approx(1, abs=1e-4)
    assert "npn/spread_ratio" not in npn.step(anchors, torch.zeros(2, 5)).metrics
    npn.prototypes = F.normalize(npn.prototypes[:, :1] + 0.01 * npn.prototypes, dim=-1)
    npn.steps = 20
    assert npn.step(anchors, torch.zeros(2, 5)).metrics["npn/spread_ratio"] < 0.01


def test_the_spread_ratio_compares_prototypes_with_the_embeddings_that_they_stand_for():
    """Texts lie closer together than images; W1 has text prototypes, W2 image prototypes, of any norm."""
    batch = embeddings(0, 20)
    batch = torch.stack([batch[0], F.normalize(batch[1] + 2 * batch[1, :1], dim=-1)])
    npn = started(batch, prototypes=20, inner_steps=0)
    npn.prototypes = torch.rand_like(npn.prototypes) + torch.tensor([[[0.0]], [[1.0]]])
    npn.steps = 10
    anchors = anchors_of(embeddings(1, 5), 0.1)
    expected = 0.0
    for side in (0, 1):
        spreads = [
            1 - sum(row / row.norm() for row in rows).div(20).norm().square()
            for rows in (npn.prototypes[side], batch[1 - side])
        ]
        expected += (spreads[0] / spreads[1]).item() / 2
    assert npn.step(anchors, torch.zeros(2, 5)).metrics["npn/spread_ratio"].item() == pytest.approx(expected, rel=1e-4)


def test_a_single_prototype_has_no_spread():
    npn = started(embeddings(0, 20), prototypes=1)
    npn.steps = 10
    metrics = npn.step(anchors_of(embeddings(1, 5), 0.1), torch.zeros(2, 5)).metrics
    assert "npn/spread_ratio" not in metrics
