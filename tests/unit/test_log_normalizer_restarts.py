"""The NPN's restarts: the ring buffer holds the last embeddings; when they come, what they draw and what they leave
is scheduled, seeded and defined for every M; a collapse of the prototypes shows."""

import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.log_normalizer import kmeans
from pipeline.models.log_normalizer.kmeans import spherical_kmeans
from tests.unit.npn_support import anchors_of, build, embeddings, squares, started


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
        count, before = npn.restarts.count, squares(npn).clone()
        npn.observe(batch)
        npn.step(anchors_of(batch, 0.1), torch.zeros(2, 4) - 2)
        grown = bool((squares(npn) >= before).all())  # AdaGrad's sums only ever grow, but for a reset
        if npn.restarts.count != count:
            restarted.append(step)
            assert step == 0 or not grown
        else:
            assert grown
    assert restarted == expected


def test_warmup_restarts_come_as_the_ring_fills():
    """After 4, 8, 16 and all of 20 embeddings, besides those of the schedule; no more once it is full."""
    npn = build(prototypes=20, restart_every=9, warmup_restarts=True)
    restarted = []
    for step in range(12):
        count = npn.restarts.count
        npn.observe(embeddings(step, 4))
        npn.steps += 1
        if npn.restarts.count != count:
            restarted.append(step)
    assert restarted == [0, 1, 3, 4, 9]
    rows = {str(row.tolist()) for row in npn.prototypes[0]}
    assert len(rows) == 20  # no copies


def test_a_restart_replaces_dead_prototypes_and_no_others():
    """Prototypes 1 and 4 of both sides point away from every anchor: nobody is responsible to them."""
    npn = started(
        embeddings(0, 30),
        prototypes=6,
        ring=30,
        restart="dead",
        dead_below=0.3,
        inner_steps=1,
        lr=1e-4,
        masses="learned",
    )
    batch = F.normalize(embeddings(1, 20) + 3 * F.normalize(torch.ones(6), dim=0), dim=-1)
    npn.prototypes = batch[:, :6].flip(0).clone()
    npn.prototypes[:, [1, 4]] *= -1
    for _ in range(2):
        npn.step(anchors_of(batch, 0.1), torch.zeros(2, 20))
    share = torch.stack([reference_p(npn, anchors_of(batch, 0.1), side).mean(0) for side in (0, 1)])
    torch.testing.assert_close(npn.usage.squeeze(-1) / 2, share, rtol=1e-2, atol=1e-4)
    before, sums, masses = npn.prototypes.clone(), squares(npn).clone(), npn.log_masses.clone()
    npn.restart()
    kept = torch.tensor([True, False, True, True, False, True])
    assert torch.equal((npn.prototypes == before).all(-1), kept.expand(2, 6))
    assert torch.equal(squares(npn)[:, kept], sums[:, kept])
    assert torch.equal(npn.log_masses[:, kept], masses[:, kept])
    assert not squares(npn)[:, ~kept].any()
    torch.testing.assert_close(npn.log_masses[:, ~kept], torch.full((2, 2, 1), -math.log(6)))
    for side in (0, 1):
        held = set(map(str, npn.ring.embeddings[1 - side].tolist()))
        assert all(str(row) in held for row in npn.prototypes[side, ~kept].tolist())
    assert not npn.usage.any()


def reference_p(npn, anchors, side):
    """The share of each prototype in each anchor's normalizer, (G, M)."""
    cosine = anchors.embeddings[side] @ F.normalize(npn.prototypes[side], dim=-1).T
    return torch.softmax(cosine / anchors.tau + npn.log_masses[side].T, dim=1)


def test_kmeans_finds_the_clusters_and_weighs_them():
    """Four tight clusters of 5, 10, 20 and 45 texts; M = 4 prototypes that start with one of each."""
    sizes = torch.tensor([5, 10, 20, 45])
    centres = torch.eye(6)[:4].repeat_interleave(sizes, dim=0)
    batch = F.normalize(centres + 0.05 * embeddings(0, 80), dim=-1)
    shuffle = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    firsts = torch.tensor([0, 5, 15, 35])
    centroids, found = spherical_kmeans(batch[1, shuffle], batch[1, firsts], iterations=3)
    assert found.tolist() == sizes.tolist()
    expected = torch.stack([F.normalize(part.sum(0), dim=0) for part in batch[1].split(sizes.tolist())])
    torch.testing.assert_close(centroids, expected)


def test_kmeans_lowers_the_distance_to_the_ring_and_masses_add_up():
    options = {"prototypes": 10, "ring": 200, "masses": "learned"}
    distances = []
    for restart in ("random", "kmeans"):
        npn = started(embeddings(0, 200), restart=restart, **options)
        nearest = (npn.ring.embeddings[1] @ npn.prototypes[0].T).max(dim=1).values
        distances.append((1 - nearest).mean())
        torch.testing.assert_close(npn.log_masses.exp().sum(dim=1), torch.ones(2, 1))
        torch.testing.assert_close(npn.prototypes.norm(dim=-1), torch.ones(2, 10))
    assert distances[1] < 0.9 * distances[0]
    for side in (0, 1):  # Laplace's rule on the sizes of the clusters
        sizes = torch.bincount((npn.ring.embeddings[1 - side] @ npn.prototypes[side].T).argmax(dim=1), minlength=10)
        torch.testing.assert_close(npn.log_masses[side, :, 0].exp(), (sizes + 1) / 210)
        assert sizes.max() > 2 * sizes.min()


def test_kmeans_of_fewer_embeddings_than_prototypes_weighs_copies_as_one():
    npn = started(embeddings(0, 4), prototypes=10, restart="kmeans", masses="learned")
    for side in (0, 1):
        for row in npn.ring.embeddings[1 - side, :4]:
            copies = (npn.prototypes[side] == row).all(-1)
            assert npn.log_masses[side, copies].exp().sum().item() == pytest.approx(1 / 4)


def test_kmeans_in_chunks_with_an_empty_cluster(monkeypatch):
    points = F.normalize(embeddings(0, 50)[0] + torch.ones(6), dim=-1)
    start = torch.cat([points[:3], F.normalize(-torch.ones(1, 6), dim=-1)])
    whole = spherical_kmeans(points, start, iterations=4)
    assert torch.equal(whole[0][3], start[3])
    assert whole[1][3] == 0
    assert whole[1].sum() == 50
    monkeypatch.setattr(kmeans, "CHUNK_ENTRIES", 28)
    for chunked, expected in zip(spherical_kmeans(points, start, iterations=4), whole, strict=True):
        torch.testing.assert_close(chunked, expected)


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
    npn = started(embeddings(0, 20), prototypes=1, ring=20)
    npn.steps = 10
    metrics = npn.step(anchors_of(embeddings(1, 5), 0.1), torch.zeros(2, 5)).metrics
    assert list(metrics) == ["npn/inner_steps"]
