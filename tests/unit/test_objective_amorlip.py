"""AmorLIP equals float64 references: loops over pairs for the encoders' loss, and an explicit network with torch's Adam
for a run of several steps over epochs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.objectives import LogPartitionConfig
from pipeline.errors import UserError
from pipeline.models.log_partition import LogPartitionNetwork
from pipeline.objectives import Features, build_objective
from tests.unit.embeddings import hard_batches, unit_rows
from tests.unit.residual_mlp_support import assert_near, double, predict, reference_networks

RHO, BOUND = 8.5, 1e3
FITS = ["l2_log", "kl", "symmetric_kl", "js"]
VECTORS = ("weights", "ema", "previous", "momentum", "squares")


def reference_log_partition(e1, e2, tau, pos_coef):
    """log Z, two lists of G scalars, term by term."""
    sides = []
    for anchor, other in ((e1, e2), (e2, e1)):
        side = []
        for i in range(len(e1)):
            terms = [(anchor[i] * other[j]).sum() / tau for j in range(len(e1)) if j != i]
            if pos_coef:
                terms.append((e1[i] * e2[i]).sum() / tau + math.log(pos_coef))
            side.append(torch.stack(terms).logsumexp(dim=0))
        sides.append(side)
    return sides


def reference_loss(e1, e2, tau, log_lambda, pos_coef=1e-3):
    """METHOD's objective, lambda constant, Z/lambda linear in log Z from BOUND on."""
    size, log_z = len(e1), reference_log_partition(e1, e2, tau, pos_coef)
    total = RHO * tau
    for i in range(size):
        total = total - 2 * (e1[i] * e2[i]).sum() / size
        for side in (0, 1):
            x = log_z[side][i] - log_lambda[side, i]
            ratio = x.exp() if x <= math.log(BOUND) else BOUND * (1 + x - math.log(BOUND))
            total = total + tau * ratio / size
    return total.squeeze()


def build(dim=6, dataset_size=1000, seed=0, network=None, **options):
    objective = build_objective("amorlip", {"rho": RHO, "network": network or {}, **options})
    objective.prepare(torch.device("cpu"), dim, dataset_size, seed=seed)
    return objective


def built_near(e1, e2, tau, **options):
    """In evaluation mode; the EMA copy's prediction is log Z but for the spread of both over the anchors."""
    objective = build(e1.shape[1], lambda_from="ema", **options).eval()
    log_z = torch.tensor(reference_log_partition(e1, e2, tau, options.get("pos_coef", 1e-3)))
    objective.network.ema[-2:] = log_z.mean(dim=1)  # the last biases
    return objective


def run(objective, e1, e2, tau):
    """The output and the gradients (e1, e2, tau), in the inputs' dtype."""
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    output = objective(Features(*leaves[:2]), torch.arange(len(e1)), leaves[2])
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 8),
    dim=st.integers(2, 16),
    tau=st.floats(0.005, 1.0),
    pos_coef=st.sampled_from([0.0, 1e-3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_equal_the_loops(rows, dim, tau, pos_coef, seed):
    e1, e2 = unit_rows(seed, rows, dim), unit_rows(seed + 1, rows, dim)
    with double():
        objective = built_near(e1, e2, tau, pos_coef=pos_coef)
        output, gradients = run(objective, e1, e2, tau)
    log_lambda = predict(reference_networks(objective.network.ema, dim), e1, e2).detach()
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=torch.float64))]
    expected = reference_loss(*leaves, log_lambda, pos_coef)
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, leaf in zip(gradients, leaves, strict=True):
        # h and s_ii/tau add up to s_ij/tau, of size 1/tau, in an exponent.
        assert_near(ours, leaf.grad, relative=1e-9)


def test_where_lambda_is_exact_the_loss_is_mean_log_partition_in_the_features():
    """The first epoch's targets are Z of the batch: the gradient is that of tau * (log Z - s_ii/tau)."""
    e1, e2 = unit_rows(1, 6, 5), unit_rows(2, 6, 5)
    with double():
        output, gradients = run(build(dim=5), e1, e2, 0.07)
    leaves = [e1.clone().requires_grad_(), e2.clone().requires_grad_()]
    log_z = reference_log_partition(*leaves, 0.07, 1e-3)
    positives = (leaves[0] * leaves[1]).sum(-1)
    (0.07 * (torch.stack(log_z[0]) + torch.stack(log_z[1])) - 2 * positives).mean().backward()
    for ours, leaf in zip(gradients[:2], leaves, strict=True):
        assert_near(ours, leaf.grad)
    assert output.loss.item() == pytest.approx(0.07 * (2 + RHO) - 2 * positives.mean().item())


def test_a_runaway_ratio_is_continued_linearly_and_counted():
    e1, e2, tau = unit_rows(1, 6, 5), unit_rows(2, 6, 5), 0.01
    with double():
        objective = built_near(e1, e2, tau)
        output, _ = run(objective, e1, e2, tau)
    log_lambda = predict(reference_networks(objective.network.ema, 5), e1, e2)
    excess = torch.tensor(reference_log_partition(e1, e2, tau, 1e-3)) - log_lambda - math.log(BOUND)
    assert 0 < (excess > 0).sum() < 12
    assert output.metrics["amorlip/ratio_clipped"] == (excess > 0).sum()


def cosine(epoch, epochs):
    return 0.4 * (1 + math.cos(math.pi * (1 + min(epoch / epochs, 1))))


@pytest.mark.parametrize("lambda_from", ["target", "ema"])
@pytest.mark.parametrize(("reinit_every", "ema_every", "tolerance"), [(1, 2, 1.0), (2, 1, 0), (None, 2, 5e-3)])
def test_steps_over_several_epochs_equal_the_reference(lambda_from, reinit_every, ema_every, tolerance):
    """9 steps of 6 samples, 16 an epoch: epochs begin at steps 3, 6 and 8."""
    dim, tau, size = 5, 0.2, 6
    settings_ = {
        "reinit_every": reinit_every,
        "ema_every": ema_every,
        "tolerance": tolerance,
        "z_beta_epochs": 2,
        "lr": 0.02,
    }

    def fresh(epoch):
        network = LogPartitionNetwork(LogPartitionConfig(), BOUND)
        network.prepare(torch.device("cpu"), dim, 16, seed=11)
        network.epoch = epoch
        network._initialise()
        return reference_networks(network.weights, dim)

    taken_steps, epochs = set(), []
    with double():
        objective = build(dim, dataset_size=16, seed=11, lambda_from=lambda_from, network=settings_)
        for step in range(9):
            e1, e2 = unit_rows(100 + step, size, dim), unit_rows(200 + step, size, dim)
            epoch = step * size // 16
            if step == 0:
                networks, epochs = fresh(0), [0]
                ema, optimizer = copy.deepcopy(networks), torch.optim.Adam(networks.parameters(), 0.02)
            elif epoch != epochs[-1]:
                epochs.append(epoch)
                previous = copy.deepcopy(ema)
                if reinit_every and epoch % reinit_every == 0:
                    networks = fresh(epoch)
                    ema, optimizer = copy.deepcopy(networks), torch.optim.Adam(networks.parameters(), 0.02)

            beta = cosine(epoch, 2)
            log_target = torch.tensor(reference_log_partition(e1, e2, tau, 1e-3))
            if beta:
                log_target = ((1 - beta) * log_target.exp() + beta * predict(previous, e1, e2).exp()).log().detach()
            losses = []
            for taken in range(4):
                if taken == 3:
                    break
                optimizer.zero_grad()
                loss = (log_target - predict(networks, e1, e2)).square().sum(dim=0).mean()
                losses.append(loss.item())
                if taken and abs(losses[-1] - losses[-2]) < tolerance:
                    break
                loss.backward()
                optimizer.step()
            log_lambda = log_target if lambda_from == "target" else predict(ema, e1, e2).detach()
            if step % ema_every == 0:
                with torch.no_grad():
                    for old, new in zip(ema.parameters(), networks.parameters(), strict=True):
                        old.copy_(0.92 * old + 0.08 * new)

            output, _ = run(objective, e1, e2, tau)
            expected = reference_loss(e1, e2, torch.tensor([tau]), log_lambda).item()
            assert output.loss.item() == pytest.approx(expected, rel=1e-6)
            assert output.metrics["amorlip/beta"].item() == pytest.approx(beta)
            assert output.metrics["amorlip/inner_steps"] == taken
            assert output.metrics["amorlip/fit_loss"].item() == pytest.approx(losses[-1], rel=1e-6)
            assert output.metrics["amorlip/log_lambda_mean"].item() == pytest.approx(log_lambda.mean().item())
            taken_steps.add(taken)
    assert epochs == [0, 1, 2, 3]
    if tolerance == 1.0:
        assert len(taken_steps) > 1


def test_the_log_normalizer_is_lambda_without_its_positive_over_the_negatives():
    e1, e2, tau, pos_coef = unit_rows(1, 6, 5), unit_rows(2, 6, 5), 0.3, 0.05
    with double():
        objective = built_near(e1, e2, tau, pos_coef=pos_coef, eps=1e-3)
        objective.network.ema[-2] -= 4.5  # some of the image side's lambdas have no room for the positive
        output, _ = run(objective, e1, e2, tau)
    lambdas = predict(reference_networks(objective.network.ema, 5), e1, e2).exp()
    floors = 0
    for side in (0, 1):
        for i in range(6):
            positive = math.exp(float(e1[i] @ e2[i]) / tau)
            g = (lambdas[side, i].item() - pos_coef * positive) / 5 / positive
            floors += g <= 0
            assert output.log_normalizer[side, i].item() == pytest.approx(math.log(1e-3 + max(g, 0)))
    assert 0 < floors < 12


def test_metrics_say_what_they_are_named():
    e1, e2, tau = unit_rows(1, 6, 5), unit_rows(2, 6, 5), 0.07
    with double():
        output, _ = run(build(dim=5), e1, e2, tau)
    log_g = torch.tensor(reference_log_partition(e1, e2, tau, 0.0)) - math.log(5) - (e1 * e2).sum(-1) / tau
    assert output.metrics["train/log_normalizer_mean"].item() == pytest.approx(log_g.mean().item())
    assert output.metrics["train/r_mean"].item() == pytest.approx((log_g.exp() + 1e-14).log().mean().item())
    log_z = torch.tensor(reference_log_partition(e1, e2, tau, 1e-3))
    assert output.metrics["amorlip/log_lambda_mean"].item() == pytest.approx(log_z.mean().item())
    assert not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("lambda_from", ["target", "ema"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("case", hard_batches())
def test_hard_batches_are_finite_and_near_float64(case, fit, lambda_from):
    """fp32 on features rounded by a bf16 encoder at the lowest tau, through epochs with reinitialisation."""
    tau = 0.005
    e1, e2 = (F.normalize(e.to(torch.bfloat16).float(), dim=-1) for e in hard_batches()[case])
    objective = build(16, 2 * len(e1), lambda_from=lambda_from, network={"fit": fit, "z_beta_epochs": 1})
    for step in range(5):
        objective.train(step < 4)
        output, gradients = run(objective, e1, e2, tau)
        for tensor in (output.loss, output.log_normalizer, *gradients, *output.metrics.values()):
            assert torch.isfinite(tensor).all()
    network, doubles = objective.network, (e1.double(), e2.double())
    assert (network.epoch, network.beta) == (1, 0.8)
    log_lambda = predict(reference_networks(network.ema, 16), *doubles)
    if lambda_from == "target":
        previous = predict(reference_networks(network.previous, 16), *doubles)
        log_z = torch.tensor(reference_log_partition(*doubles, tau, 1e-3))
        log_lambda = torch.logaddexp(previous + math.log(0.8), log_z + math.log(0.2))
    # exp(log Z - log lambda) turns an absolute error of 1e-7 / tau in the exponent into a relative one.
    leaves = [leaf.clone().requires_grad_() for leaf in (*doubles, torch.tensor([tau], dtype=torch.float64))]
    expected = reference_loss(*leaves, log_lambda.detach())
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)
    for ours, leaf in zip(gradients, leaves, strict=True):
        assert_near(ours.double(), leaf.grad, relative=1e-3)


def test_bf16_autocast_does_not_reach_the_loss():
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    plain, plain_gradients = run(build(lambda_from="ema"), e1, e2, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradients = run(build(lambda_from="ema"), e1, e2, 0.05)
    assert torch.equal(plain.loss, cast.loss)
    assert plain.metrics["amorlip/fit_loss"] == cast.metrics["amorlip/fit_loss"]
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, cast_gradients, strict=True))


def test_the_initialisation_depends_on_seed_and_epoch_and_draws_nothing_of_torchs():
    before = torch.get_rng_state()
    networks = {(seed, epoch): build(seed=seed).network for seed in (0, 1) for epoch in (0, 1)}
    for (_, epoch), network in networks.items():
        network.samples_seen = 1000 * epoch
        network.start_step()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(build(seed=1).network.weights, networks[1, 0].weights)
    different = [network.weights for network in networks.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    reference = reference_networks(networks[0, 0].weights, 6)
    for side in reference:
        assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in (side.norm1, side.norm2))
        for layer in (side.first, side.second, side.last):
            assert 0.3 / math.sqrt(6) < layer.weight.abs().max() <= 1 / math.sqrt(6)


def snapshot(objective):
    return objective.state_dict()["network._extra_state"]


def test_evaluation_leaves_the_state_alone():
    objective = build()
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    run(objective, e1, e2, 0.07)
    before = snapshot(objective)
    run(objective.eval(), e1, e2, 0.07)
    for name, value in snapshot(objective).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name])), name
    assert (before["steps"], before["samples_seen"], before["updates"]) == (1, 8, 3)


def test_a_state_continues_where_it_was_saved():
    """In its second epoch, when all five vectors differ."""
    network = {"z_beta_epochs": 1}
    one, other = (build(dataset_size=16, seed=seed, network=network) for seed in (0, 5))
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    for _ in range(3):
        run(one, e1, e2, 0.07)
    saved = copy.deepcopy(one.state_dict())
    vectors = [saved["network._extra_state"][name] for name in VECTORS]
    assert all(not torch.equal(a, b) for i, a in enumerate(vectors) for b in vectors[:i])
    other.load_state_dict(saved)
    other.network.seed = 0  # of the run's config, not of the state
    for _ in range(3):
        (ours, _), (expected, _) = run(other, e1, e2, 0.07), run(one, e1, e2, 0.07)
        assert torch.equal(ours.loss, expected.loss)
        assert ours.metrics == expected.metrics
    assert saved["network._extra_state"]["steps"] == 3  # the saved state is a copy


def test_a_state_of_another_width_is_refused():
    with pytest.raises(UserError, match="the embedding dimension differs"):
        build(dim=6).load_state_dict(build(dim=8).state_dict())
