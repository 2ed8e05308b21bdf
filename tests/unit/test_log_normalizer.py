"""The NPN: closed-form steps equal torch's autograd and Adagrad, the ring buffer holds the last M embeddings,
restarts are scheduled, seeded and defined for every M, and the state is complete."""

import itertools
import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.models.log_normalizer import (
    Anchors,
    LogNormalizerConfig,
    PrototypeNetwork,
    kmeans,
    sharded_softmax,
)
from pipeline.models.log_normalizer.fits import Separate, Unified
from pipeline.models.log_normalizer.kmeans import spherical_kmeans

EPS = 1e-14


def embeddings(seed, count, dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(2, count, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def build(dim=6, seed=0, dtype=torch.float32, ratio_bound=1e3, **config):
    npn = PrototypeNetwork(LogNormalizerConfig(**config), EPS, ratio_bound)
    npn.prepare(torch.device("cpu"), dim, seed, dtype)
    return npn


def anchors_of(batch, tau):
    return Anchors(batch, (batch[0] * batch[1]).sum(-1), torch.tensor([tau], dtype=batch.dtype))


def squares(npn):
    return npn.optimizer_state["prototypes"]["squares"]


def started(batch, **config):
    """A network that has restarted from a batch and will not again in its first step."""
    npn = build(dtype=batch.dtype, **config)
    npn.observe(batch)
    npn.steps = 1
    return npn


def autograd_alpha(weights, anchors, log_masses=None):
    """The formula as written, in torch's autograd. log_masses: (2, M), else uniform."""
    cosine = torch.stack([anchors.embeddings[s] @ F.normalize(weights[s], dim=-1).T for s in (0, 1)])
    z = (cosine - anchors.positive[:, None]) / anchors.tau
    uniform = torch.full(weights.shape[:2], -math.log(weights.shape[1]), dtype=weights.dtype)
    log_q = torch.logsumexp(z + (uniform if log_masses is None else log_masses)[:, None], dim=-1)
    return torch.logaddexp(log_q, torch.full_like(log_q, math.log(EPS)))


def autograd_loss(weights, anchors, r, log_masses=None):
    alpha = autograd_alpha(weights, anchors, log_masses)
    return (anchors.tau * (torch.exp(r - alpha) + alpha - 1).mean(dim=1)).sum()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 10),
    prototypes=st.integers(1, 12),
    tau=st.floats(0.02, 1.0),
    seed=st.integers(0, 9999),
)
def test_closed_form_gradient_equals_autograd(count, prototypes, tau, seed):
    npn = build(prototypes=prototypes, dtype=torch.float64, ratio_bound=1e30, inner_steps=1)
    npn.prototypes = 3 * torch.randn_like(npn.prototypes)
    anchors = anchors_of(embeddings(seed, count, dtype=torch.float64), tau)
    # Targets around the prediction: the size of exp(r - alpha) is not what is tested here.
    r = npn.alpha(anchors) + torch.randn(2, count, dtype=torch.float64)
    weights = npn.prototypes.clone().requires_grad_()
    autograd_loss(weights, anchors, r).backward()
    gradients = []

    def remember(parameter, gradient, state, scratch):
        gradients.append(gradient.clone())

    npn.optimizer.descend = remember
    npn.step(anchors, r)
    torch.testing.assert_close(torch.stack(gradients), weights.grad, rtol=1e-7, atol=1e-10)


OPTIMIZERS = {
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-10}, {}),
    "adagrad with a first sum": (
        torch.optim.Adagrad,
        {"eps": 1e-10, "initial_accumulator_value": 0.01},
        {"accumulator_init": 0.01},
    ),
    "adam": (torch.optim.Adam, {}, {"optimizer": "adam"}),
}


@pytest.mark.parametrize("masses", ["uniform", "learned"])
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_steps_equal_a_torch_optimizer_on_autograd(case, masses):
    build_theirs, their_options, our_options = OPTIMIZERS[case]
    npn = started(
        embeddings(0, 10, dtype=torch.float64), prototypes=8, inner_steps=4, lr=0.05, masses=masses, **our_options
    )
    weights = npn.prototypes.clone().requires_grad_()
    log_masses = npn.log_masses.squeeze(-1).clone().requires_grad_(masses == "learned")
    optimizer = build_theirs([weights] + [log_masses] * (masses == "learned"), lr=0.05, **their_options)
    for step in range(3):
        batch = embeddings(step, 10, dtype=torch.float64)
        anchors, r = anchors_of(batch, 0.1), torch.randn(2, 10, dtype=torch.float64) - 3
        npn.observe(batch)
        npn.step(anchors, r)
        for _ in range(4):
            optimizer.zero_grad()
            autograd_loss(weights, anchors, r, log_masses).backward()
            optimizer.step()
        torch.testing.assert_close(npn.prototypes, weights.detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(npn.log_masses.squeeze(-1), log_masses.detach(), rtol=1e-7, atol=1e-9)
    assert (npn.log_masses.std() > 0) == (masses == "learned")
    their_squares = optimizer.state[weights]["sum" if "adagrad" in case else "exp_avg_sq"]
    torch.testing.assert_close(squares(npn), their_squares)


def test_blocks_of_prototypes_change_nothing(monkeypatch):
    batch = embeddings(0, 10, dtype=torch.float64)
    anchors, r = anchors_of(batch, 0.1), torch.randn(2, 10, dtype=torch.float64) - 3
    results = []
    for block_floats in (2**17, 18):  # all 8 prototypes at once; 3, 3 and 2
        monkeypatch.setattr(sharded_softmax, "CPU_BLOCK_FLOATS", block_floats)
        monkeypatch.setattr(sharded_softmax, "SHARED_BLOCK_FLOATS", block_floats)
        npn = started(batch, prototypes=8, inner_steps=3, masses="learned")
        after = npn.step(anchors, r).alpha
        torch.testing.assert_close(after, npn.alpha(anchors))  # what step returns is of the updated prototypes
        results.append((npn.prototypes, npn.log_masses, squares(npn), after, *npn.derivatives(anchors)))
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, whole, rtol=1e-6, atol=1e-8)


def test_derivatives_of_alpha_equal_autograd():
    npn = build(prototypes=8, dtype=torch.float64)
    npn.prototypes, npn.log_masses = torch.randn_like(npn.prototypes), torch.randn_like(npn.log_masses)
    batch = embeddings(1, 5, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in anchors_of(batch, 0.1)]
    alpha = autograd_alpha(npn.prototypes, Anchors(*leaves), npn.log_masses.squeeze(-1))
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
    assert npn.log_masses.std() > 0.1


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


@pytest.mark.parametrize("fit", [Unified(ratio_bound=3.0), Separate()], ids=["unified", "separate"])
def test_slopes_are_the_derivatives_of_values(fit):
    alpha = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    target = alpha.detach() + 2 * torch.randn(2, 7, dtype=torch.float64)
    assert (target - alpha).max() > math.log(3.0)
    (expected,) = torch.autograd.grad(fit.value(alpha, target), alpha)
    torch.testing.assert_close(fit.slope(alpha, target), expected)


def test_values_are_as_written():
    alpha, target = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.5], [2.5, 1.0]])
    pairs = list(zip(alpha.flatten().tolist(), target.flatten().tolist(), strict=True))
    unified = sum(math.exp(r - a) + a - 1 for a, r in pairs) / 2
    assert Unified(1e3).value(alpha, target).item() == pytest.approx(unified)
    assert Separate().value(alpha, target).item() == pytest.approx(sum((a - r) ** 2 for a, r in pairs) / 2)


def test_a_separate_fit_follows_its_gradient():
    npn = build(prototypes=8, dtype=torch.float64, inner_steps=1, fit="separate", optimizer="adam", lr=1e-3)
    npn.prototypes = torch.randn_like(npn.prototypes)
    anchors = anchors_of(embeddings(3, 10, dtype=torch.float64), 0.1)
    r = torch.randn(2, 10, dtype=torch.float64)
    weights = npn.prototypes.clone().requires_grad_()
    (0.1 * (autograd_alpha(weights, anchors) - r).square().sum(0).mean()).backward()
    npn.step(anchors, r)
    momentum = npn.optimizer_state["prototypes"]["momentum"]
    torch.testing.assert_close(momentum, 0.1 * weights.grad, rtol=1e-7, atol=1e-10)


def test_inner_steps_end_when_they_gain_too_little():
    batch = embeddings(0, 10)
    anchors, r = anchors_of(batch, 0.1), torch.full((2, 10), -2.0)
    every = started(batch, prototypes=8, lr=0.005, inner_steps=12)
    values = [every.fit.value(every.alpha(anchors), r).item()]
    for _ in range(12):
        one = started(batch, prototypes=8, lr=0.005, inner_steps=1)
        one.prototypes, one.optimizer_state = every.prototypes, every.optimizer_state
        values.append(one.fit.value(one.step(anchors, r).alpha, r).item())
    gains = [(was - now) / abs(was) for was, now in itertools.pairwise(values)]
    tolerance = sorted(gains)[6]
    expected = next(number for number, gain in enumerate(gains, 1) if gain < tolerance * 0.999)
    assert 1 < expected < 12
    npn = started(batch, prototypes=8, lr=0.005, inner_steps=12, inner_tolerance=tolerance * 0.999)
    assert npn.step(anchors, r).metrics["npn/inner_steps"].item() == expected


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masses": "learned", "optimizer": "adam"},
        {"masses": "learned", "accumulator_init": 1e-4, "warmup_restarts": True},
        {"restart": "dead", "dead_below": 0.7, "ring": 9},
        {"restart": "kmeans", "prototypes": 5, "ring": 9},
    ],
    ids=str,
)
def test_state_round_trip_continues_the_same_trajectory(options):
    def advance(npn, steps):
        for step in steps:
            batch = embeddings(step, 4)
            npn.observe(batch)
            npn.step(anchors_of(batch, 0.1), torch.full((2, 4), -2.0))

    config = {"prototypes": 20, "restart_every": 3, "inner_steps": 2, **options}
    whole = build(**config)
    advance(whole, range(8))
    first, second = build(**config), build(**config)
    advance(first, range(4))
    state = first.state_dict()
    advance(first, range(4, 6))  # what was saved must not move with the run
    second.load_state_dict(state)
    advance(second, range(4, 8))
    for name, value in whole.get_extra_state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.get_extra_state()[name])), name


@pytest.mark.parametrize(("prototypes", "dim"), [(8, 6), (7, 5)])
def test_a_state_of_another_size_is_refused(prototypes, dim):
    state = build(prototypes=7).state_dict()
    with pytest.raises(UserError, match=r"is of \(7, 6, 7\), this run's .* \(\d, \d, \d\): set objectives.neuclip"):
        build(prototypes=prototypes, dim=dim).load_state_dict(state)


def test_a_state_without_what_the_options_need_is_refused():
    with pytest.raises(UserError, match=r"lacks log_masses.squares, this run's .*: set objectives\.neuclip\.npn"):
        build(prototypes=7, masses="learned").load_state_dict(build(prototypes=7).state_dict())


def test_no_cast_of_a_surrounding_module_reaches_the_state():
    npn = build(prototypes=4)
    torch.nn.Sequential(npn).bfloat16()
    assert npn.prototypes.dtype == npn.ring.embeddings.dtype == torch.float32
    assert not list(npn.parameters())
