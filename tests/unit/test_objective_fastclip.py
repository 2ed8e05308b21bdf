"""FastCLIP v0 to v3: loss, gradients, metrics and estimators equal a plain float64 computation over pairs, step by
step, and stay finite where the published code overflows.

The reference keeps u, not log u, in dictionaries by (side, sample); its gradients are autograd's of a surrogate
written out over pairs, in which u is a number.
"""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.objectives import Features, build_objective
from tests.unit.embeddings import hard_batches, rounding, unit_rows

EPS, RHO, GAMMA_MIN, DECAY_EPOCHS = 1e-14, 6.5, 0.2, 2
VERSIONS = ["v0", "v1", "v2", "v3"]


class Reference:
    """One process, loops over pairs, float64."""

    def __init__(self, version, dataset_size, lr=0.0133, minimum=0.01, maximum=1.0):
        self.version, self.dataset_size = version, dataset_size
        self.lr, self.minimum, self.maximum = lr, minimum, maximum
        self.seen = 0
        self.u, self.tau = {}, {}
        self.momentum, self.square = defaultdict(float), defaultdict(float)

    def step(self, e1, e2, index, tau):
        """e1, e2: (G, D) float64. index: list of int. Returns what the objective should say, and updates."""
        size = len(index)
        e1, e2 = e1.clone().requires_grad_(), e2.clone().requires_grad_()
        shared = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        keys = [[(side, sample) for sample in index] for side in (0, 1)]
        taus = [[shared] * size for _ in (0, 1)]
        if self.version == "v2":
            taus = [
                [torch.tensor(self.tau.get(key, tau), dtype=torch.float64, requires_grad=True) for key in row]
                for row in keys
            ]
        g = [[None] * size for _ in (0, 1)]
        for side, (anchor, other) in enumerate(((e1, e2), (e2, e1))):
            for i in range(size):
                pairs = [
                    torch.exp((anchor[i] @ other[j] - e1[i] @ e2[i]) / taus[side][i]) for j in range(size) if j != i
                ]
                g[side][i] = sum(pairs) / (size - 1)

        epoch = self.seen // self.dataset_size
        gamma = GAMMA_MIN + (1 - GAMMA_MIN) * math.cos(math.pi / 2 * min(epoch / DECAY_EPOCHS, 1)) ** 2
        visits = defaultdict(list)
        for side in (0, 1):
            for i, key in enumerate(keys[side]):
                visits[key].append(g[side][i].item())
        for key, values in visits.items():
            mean = sum(values) / len(values)
            self.u[key] = (1 - gamma) * self.u[key] + gamma * mean if key in self.u else mean

        value, surrogate, ratios = 0.0, 0.0, []
        for side in (0, 1):
            for i, key in enumerate(keys[side]):
                u, t = self.u[key], taus[side][i]
                ratio = g[side][i] / (EPS + u)
                ratios.append(ratio.item())
                level = math.log(EPS + u) + (RHO if self.version in ("v2", "v3") else 0)
                if self.version == "v0":
                    value, surrogate = value + level / size, surrogate + ratio / size
                else:
                    value = value + t.item() * level / size
                    surrogate = surrogate + (t * level + t.item() * ratio) / size
        leaves = [e1, e2, *([*taus[0], *taus[1]] if self.version == "v2" else [shared])]
        grad1, grad2, *tau_grads = torch.autograd.grad(surrogate, leaves)
        log_normalizer = np.array([[math.log(EPS + self.u[key]) for key in row] for row in keys])
        result = {
            "loss": value,
            "gradients": [grad1.numpy(), grad2.numpy(), tau_grads[0].numpy() if self.version in ("v0", "v3") else 0.0],
            "log_normalizer": log_normalizer,
            "metrics": {
                "train/log_normalizer_mean": np.mean([math.log(x.item()) for row in g for x in row]),
                "train/r_mean": np.mean([math.log(EPS + x.item()) for row in g for x in row]),
                "fastclip/gamma": gamma,
                "fastclip/u_mean": np.mean([math.log(self.u[key]) for row in keys for key in row]),
                "fastclip/ratio_max": max(ratios),
            },
        }
        if self.version == "v2":
            result["metrics"]["fastclip/tau_mean"] = np.mean([t.item() for row in taus for t in row])
            by_sample = defaultdict(list)
            for key, grad in zip([*keys[0], *keys[1]], tau_grads, strict=True):
                by_sample[key].append(size * grad.item())
            for key, grads in by_sample.items():
                self._adam(key, self.tau.get(key, tau), sum(grads) / len(grads), epoch)
        self.seen += size
        return result

    def _adam(self, key, tau, gradient, epoch):
        gradient = min(max(gradient, -5.0), 5.0)
        beta1, beta2 = (0.9, 0.999) if epoch else (0.0, 0.0)
        self.momentum[key] = beta1 * self.momentum[key] + (1 - beta1) * gradient
        self.square[key] = beta2 * self.square[key] + (1 - beta2) * gradient**2
        m, v = self.momentum[key] / (1 - beta1 ** (epoch + 1)), self.square[key] / (1 - beta2 ** (epoch + 1))
        self.tau[key] = min(max(tau - self.lr * m / (math.sqrt(v) + 1e-8), self.minimum), self.maximum)


def build(version, dataset_size, dim=6, epochs=1.0, **options):
    defaults = {"rho": RHO, "eps": EPS, "gamma_min": GAMMA_MIN, "gamma_decay_epochs": DECAY_EPOCHS}
    objective = build_objective("fastclip", {"version": version, **defaults, **options})
    objective.prepare(torch.device("cpu"), dim, dataset_size, seed=0, epochs=epochs)
    return objective


def run(objective, e1, e2, index, tau):
    """The output and the gradients (e1, e2, tau), in the inputs' dtype."""
    leaves = [tensor.clone().requires_grad_() for tensor in (e1, e2, torch.tensor([tau], dtype=e1.dtype))]
    output = objective(Features(*leaves[:2]), torch.tensor(index), leaves[2])
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves]


def assert_step(output, gradients, expected, rtol):
    assert output.loss.item() == pytest.approx(expected["loss"], rel=rtol, abs=rtol)
    for ours, theirs in zip(gradients, expected["gradients"], strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
    metrics = {name: value.item() for name, value in output.metrics.items()}
    assert metrics == pytest.approx(expected["metrics"], rel=rtol, abs=rtol)
    if output.log_normalizer is not None:
        np.testing.assert_allclose(output.log_normalizer.numpy(), expected["log_normalizer"], rtol=rtol)


# Nine samples: five batches of four are two epochs and a bit; the third batch spans two epochs and visits 3 twice.
BATCHES = [[4, 1, 7, 0], [2, 8, 3, 5], [3, 6, 3, 1], [0, 2, 4, 7], [8, 5, 8, 8], [1, 0, 6, 2], [7, 4, 3, 8]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tau", [0.5, 0.07, 0.02])
def test_steps_equal_the_loops(version, tau):
    objective, reference = build(version, 9), Reference(version, 9)
    gammas = set()
    for step, index in enumerate(BATCHES):
        # Other features of the same sample at each visit: the encoders moved.
        e1, e2 = unit_rows(10 + step, 4, 6), unit_rows(40 + step, 4, 6)
        now = tau * 0.95**step  # v2's temperatures start where tau is at the first visit
        expected = reference.step(e1, e2, index, now)
        output, gradients = run(objective, e1, e2, index, now)
        assert_step(output, gradients, expected, rtol=3e-5)  # tables are fp32
        gammas.add(round(output.metrics["fastclip/gamma"].item(), 6))
    assert gammas == {1.0, 0.6, 0.2}

    stored = {"log_u": {key: math.log(u) for key, u in reference.u.items()}}
    if version == "v2":
        stored |= {"tau": reference.tau, "tau_momentum": reference.momentum, "tau_square": reference.square}
    tables = objective.sharded_state()
    assert set(tables) == set(stored)
    for name, table in tables.items():
        assert table.shape == (9, 2)
        assert table.dtype == torch.float32
        for (side, sample), value in stored[name].items():
            assert table[sample, side].item() == pytest.approx(value, rel=3e-5, abs=3e-5), (name, side, sample)


@pytest.mark.parametrize("version", VERSIONS)
def test_on_first_visits_the_step_is_the_derivative_of_the_batchs_own_loss(version):
    """u = g then, so the reported loss is a function of the features and tau, and its gradient the step's."""
    objective = build(version, 5).eval()

    def loss(raw1, raw2, tau):
        return objective(Features(F.normalize(raw1, dim=-1), F.normalize(raw2, dim=-1)), torch.arange(5), tau).loss

    raw1, raw2 = (unit_rows(seed, 5, 6).requires_grad_() for seed in (3, 4))
    tau = torch.tensor([0.1], dtype=torch.float64, requires_grad=version in ("v0", "v3"))
    assert torch.autograd.gradcheck(loss, (raw1, raw2, tau), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("epochs", "options", "expected"),
    [
        (8, {"gamma_decay_epochs": None}, [1, 0.8828427, 0.6, 0.3171573, 0.2, 0.2]),
        (3, {"gamma_decay_epochs": None}, [1, 0.4, 0.2, 0.2]),
        (8, {"gamma_decay_epochs": 2, "gamma_min": 0.9}, [1, 0.95, 0.9, 0.9]),
        (1, {"gamma_decay_epochs": None}, [1, 0.2]),
    ],
)
def test_gamma_falls_by_a_cosine_of_whole_epochs(epochs, options, expected):
    objective = build("v3", 4, epochs=epochs, **options)
    batches = [[0, 1], [2, 3]] * len(expected)
    gammas = [
        run(objective, unit_rows(1, 2, 6), unit_rows(2, 2, 6), b, 0.07)[0].metrics["fastclip/gamma"] for b in batches
    ]
    assert torch.stack(gammas).numpy() == pytest.approx(np.repeat(expected, 2), abs=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_duplicates_do_not_depend_on_the_order_of_the_batch(version):
    index, order = [3, 0, 3, 1, 3, 0], torch.tensor([5, 2, 4, 0, 3, 1])
    outcomes = []
    for shuffle in (torch.arange(6), order):
        objective = build(version, 4, gamma_decay_epochs=0.5)
        for step in range(3):
            e1, e2 = (unit_rows(seed + step, 6, 8)[shuffle] for seed in (1, 20))
            output, gradients = run(objective, e1, e2, [index[i] for i in shuffle], 0.07)
        undo = shuffle.argsort()
        outcomes.append((output.loss, gradients[0][undo], gradients[1][undo], dict(objective.sharded_state())))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-7, equal_nan=True)
    unvisited = outcomes[0][3]["log_u"].isnan()
    assert torch.equal(unvisited, torch.tensor([[False] * 2, [False] * 2, [True] * 2, [False] * 2]))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("off_by", [-300.0, 300.0])
def test_an_estimator_far_off_does_no_harm(version, off_by):
    """g/(eps + u) is at most 1/gamma, because u is updated before it is used."""
    objective = build(version, 8, gamma_decay_epochs=1e-3)
    e1, e2 = (unit_rows(seed, 8, 16, torch.float32) for seed in (1, 2))
    index = list(range(8))
    before, _ = run(objective, e1, e2, index, 0.07)
    objective.sharded_state()["log_u"].add_(off_by)
    output, gradients = run(objective, e1, e2, index, 0.07)
    assert output.metrics["fastclip/gamma"].item() == pytest.approx(0.2)
    # From below, u = gamma g; from above, u is too large and the batch weighs nothing for a while.
    same_tau = version != "v2"
    if same_tau and off_by < 0:
        assert output.metrics["fastclip/ratio_max"].item() == pytest.approx(5, rel=1e-4)
        u_mean = before.metrics["fastclip/u_mean"].item() + math.log(0.2)
        assert output.metrics["fastclip/u_mean"].item() == pytest.approx(u_mean, rel=1e-5)
    if off_by > 0:
        assert output.metrics["fastclip/ratio_max"].item() < 1e-20
    assert all(torch.isfinite(tensor).all() for tensor in (output.loss, *gradients))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tau", [0.005, 0.01, 0.07])
@pytest.mark.parametrize("case", hard_batches())
def test_hard_batches_are_finite_and_near_float64(case, tau, version):
    """fp32 arithmetic on features rounded by a bf16 encoder, with gamma at 1, 0.6 and 0.2."""
    e1, e2 = (F.normalize(e.to(torch.bfloat16).float(), dim=-1) for e in hard_batches()[case])
    index = list(range(len(e1)))
    objective, reference = build(version, len(e1)), Reference(version, len(e1))
    for shift in (0, 1, 0):
        moved = e2.roll(shift, dims=0)
        expected = reference.step(e1.double(), moved.double(), index, tau)
        output, gradients = run(objective, e1, moved, index, tau)
        for tensor in (output.loss, *gradients, *output.metrics.values(), *objective.sharded_state().values()):
            assert torch.isfinite(tensor).all()
        assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-3, abs=1e-3)
        for ours, theirs in zip(gradients, expected["gradients"], strict=True):
            term = 1 / tau if version == "v0" else 1
            atol = 1e-3 * np.abs(theirs).max() + rounding(tau) * term
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-2, atol=atol)


@settings(max_examples=30, deadline=None)
@given(
    version=st.sampled_from(VERSIONS),
    rows=st.integers(2, 8),
    dim=st.integers(2, 24),
    tau=st.floats(0.005, 1.0),
    data=st.data(),
)
def test_any_shape_temperature_and_repetition(version, rows, dim, tau, data):
    dataset_size = data.draw(st.integers(1, 12))
    objective, reference = build(version, dataset_size, dim), Reference(version, dataset_size)
    for step in range(3):
        index = data.draw(st.lists(st.integers(0, dataset_size - 1), min_size=rows, max_size=rows))
        e1, e2 = (unit_rows(seed, rows, dim) for seed in (step, step + 50))
        expected = reference.step(e1, e2, index, tau)
        output, gradients = run(objective, e1, e2, index, tau)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-4, abs=1e-4)
        repeats = max(index.count(sample) for sample in index)
        bound = repeats / output.metrics["fastclip/gamma"].item()
        assert output.metrics["fastclip/ratio_max"].item() <= bound * (1 + 1e-6)


def test_individual_temperatures_are_bounded_and_learn_at_their_own_rate():
    options = {"lr": 10.0, "minimum": 0.02, "maximum": 0.5}
    e1, e2 = unit_rows(1, 6, 16), unit_rows(2, 6, 16)
    for rho, bound in ((-50.0, 0.5), (50.0, 0.02)):  # the mean negative log-normalizer is far above, far below
        objective = build("v2", 6, rho=rho, individual_tau=options)
        run(objective, e1, e2, list(range(6)), 0.07)
        assert (objective.sharded_state()["tau"] == torch.tensor(bound)).all()
        assert (objective.sharded_state()["tau_momentum"].abs() == 5).all()
    still = build("v2", 6, individual_tau={"lr": 0.0})
    run(still, e1, e2, list(range(6)), 0.07)
    assert (still.sharded_state()["tau"] == torch.tensor(0.07)).all()
    with pytest.raises(UserError, match="minimum <= maximum"):
        build("v2", 6, individual_tau={"minimum": 0.5, "maximum": 0.1})


@pytest.mark.parametrize("index", [[0, 9], [-1, 3]])
def test_a_sample_outside_the_dataset_is_refused(index):
    with pytest.raises(UserError, match=rf"sample_index {9 if 9 in index else -1}.*9 samples \(0 to 8\)"):
        run(build("v3", 9), unit_rows(1, 2, 6), unit_rows(2, 2, 6), index, 0.07)


def test_bf16_autocast_does_not_reach_the_loss():
    e1, e2 = (unit_rows(seed, 8, 6, torch.float32) for seed in (1, 2))
    plain, plain_gradients = run(build("v2", 8), e1, e2, list(range(8)), 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradients = run(build("v2", 8), e1, e2, list(range(8)), 0.05)
    assert torch.equal(plain.loss, cast.loss)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, cast_gradients, strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_evaluation_leaves_the_state_alone(version):
    objective = build(version, 8)
    e1, e2 = (unit_rows(seed, 4, 6) for seed in (1, 2))
    run(objective, e1, e2, [0, 1, 2, 3], 0.07)
    before = {name: table.clone() for name, table in objective.sharded_state().items()}
    run(objective.eval(), e2, e1, [0, 1, 5, 6], 0.07)
    torch.testing.assert_close(objective.sharded_state(), before, rtol=0, atol=0, equal_nan=True)
    assert objective.state_dict()["_extra_state"] == {"samples_seen": 4}


@pytest.mark.parametrize(("version", "rho"), [("v0", None), ("v1", None), ("v2", RHO), ("v3", RHO)])
def test_rho_is_reported_where_it_is_in_force(version, rho):
    assert build(version, 4).rho == rho
