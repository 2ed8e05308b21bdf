"""Every registered objective keeps the contract: 1, 2 and 4 ranks train the same model as one process with
the whole batch, metrics are equal on every rank, a state saved at one world size continues at another, and memory is
linear in the batch.

The model is a table of raw embeddings, one row per sample, with a learned tau, and a bias where the objective has
one; updates are plain SGD on gradients averaged over the ranks, as DeepSpeed averages them.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.collectives import all_gather, all_gather_slices, all_reduce, count_bytes, own_slice
from pipeline.distributed import rank, world_size
from pipeline.objectives import REGISTRY, Features, build_objective, global_batch
from tests.distributed.launch import run_ranks

SAMPLES, GLOBAL_BATCH, DIM, STEPS, MIDDLE = 40, 8, 16, 8, 4

# Options that make state change within a few steps; an objective that is not here runs with its defaults.
OPTIONS = {
    "fastclip": {"gamma_decay_epochs": 2},  # an epoch is 5 steps: then gamma is 0.6, and samples come again
    "neuclip": {"npn": {"prototypes": 11, "restart_every": 3, "inner_steps": 3}},
    "amorlip": {"network": {"z_beta_epochs": 1}},  # an epoch is 5 steps: reinit, then targets of two networks
}
VARIANTS = {
    **{
        f"fastclip {version}": ("fastclip", {"version": version, "gamma_decay_epochs": 2})
        for version in ("v0", "v1", "v2")
    },
    "neuclip, alpha through": ("neuclip", {"npn": {**OPTIONS["neuclip"]["npn"], "alpha_gradient": "through"}}),
    "neuclip, simultaneous": ("neuclip", {**OPTIONS["neuclip"], "updates": "simultaneous"}),
    "neuclip, separate fit": (
        "neuclip",
        {"npn": {**OPTIONS["neuclip"]["npn"], "fit": "separate", "accumulator_init": 1e-4}},
    ),
    "neuclip, MLP": (
        "neuclip",
        {"npn": {"network": "mlp", "inner_steps": 3, "lr": 0.01, "alpha_gradient": "through", "restart_every": 3}},
    ),
    "neuclip, fewer prototypes than ranks": ("neuclip", {"npn": {"prototypes": 3, "restart_every": 2}}),
    "amorlip, lambda from the EMA copy": (
        "amorlip",
        {"lambda_from": "ema", "network": {"fit": "kl", "z_beta_epochs": 1, "ema_every": 1, "reinit_every": None}},
    ),
}
CASES = {**{name: (name, OPTIONS.get(name, {})) for name in REGISTRY}, **VARIANTS}
LEARNING_RATES = (1.0, 1.0, 1e-4, 0.1)  # both tables, tau, bias
CONSTANT_TAU = {"fastclip v1", "fastclip v2"}
NOT_REPRODUCIBLE = {"npn/seconds"}


def train(case, first_step, last_step, start):
    """Steps [first_step, last_step) of a run; returns what every rank may be asked about. Runs on each rank.

    start: None for a fresh run, else {"parameters", "objective", "tables"} of an earlier one.
    """
    name, options = CASES[case]
    objective = build_objective(name, options)
    objective.prepare(torch.device("cpu"), DIM, SAMPLES, seed=3)
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(SAMPLES, DIM, generator=generator) for _ in range(2)] + scalars(objective)
    if start:
        parameters = start["parameters"]
        objective.load_state_dict(start["objective"])
        objective.load_sharded_state({name: rows[own_slice(SAMPLES)] for name, rows in start["tables"].items()})
    parameters = [parameter.clone().requires_grad_() for parameter in parameters]
    order = torch.cat([torch.randperm(SAMPLES, generator=generator) for _ in range(2)])
    steps, saved = [], None
    for step in range(first_step, last_step):
        if step == MIDDLE:
            saved = snapshot(parameters, objective)
        batch = order[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        local = batch[rank() :: world_size()]
        features = Features(*(F.normalize(table[local], dim=-1) for table in parameters[:2]))
        output = objective(features, local, *parameters[2:])
        output.loss.backward()
        gradients = [all_reduce(parameter.grad, "mean").clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, gradient, lr in zip(parameters, gradients, LEARNING_RATES, strict=False):
                parameter -= lr * gradient
                parameter.grad = None
        steps.append(
            {
                "loss": output.loss.detach(),
                "metrics": {k: v for k, v in output.metrics.items() if k not in NOT_REPRODUCIBLE},
                "gradients": gradients,
                "log_normalizer": by_sample(output.log_normalizer, local),
                "estimates_normalizers": objective.estimates_normalizers,
            }
        )
    return {"steps": steps, "saved": saved, "final": snapshot(parameters, objective)}


def scalars(objective):
    """tau, and where the objective has one the bias."""
    bias = objective.default_logit_bias
    return [torch.tensor([0.1])] + ([] if bias is None else [torch.tensor([bias])])


def train_all(first_step, last_step, starts=None):
    """Every case in one launch."""
    return {case: train(case, first_step, last_step, (starts or {}).get(case)) for case in CASES}


def snapshot(parameters, objective):
    return {
        "parameters": [parameter.detach().clone() for parameter in parameters],
        "objective": objective.state_dict(),
        "tables": {k: all_gather_slices(rows, SAMPLES).clone() for k, rows in objective.sharded_state().items()},
    }


def by_sample(log_normalizer, sample_index):
    """(2, G) in the order of sample_index, so that ranks may share a batch in any way."""
    if log_normalizer is None:
        return None
    order = all_gather(sample_index).argsort()
    return all_gather(log_normalizer.T.contiguous())[order].T


@functools.cache
def whole_run(ranks):
    return run_ranks(ranks, train_all, 0, STEPS)


@functools.cache
def continued_run(ranks_before, ranks_after):
    starts = {case: result["saved"] for case, result in whole_run(ranks_before)[0].items()}
    return run_ranks(ranks_after, train_all, MIDDLE, STEPS, starts)[0]


def assert_same(ours, expected):
    # Sums are taken in another order; AdaGrad's first steps after a restart magnify that.
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_process_with_the_whole_batch(case, ranks):
    expected, ours = whole_run(1)[0][case], whole_run(ranks)[0][case]
    for step in range(STEPS):
        assert_same(ours["steps"][step], expected["steps"][step])
    assert_same(ours["final"], expected["final"])


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_worth_looking_at(case):
    """Guards the comparison above: there are gradients to compare, for every table and tau, in every step."""
    for step in whole_run(1)[0][case]["steps"]:
        assert torch.isfinite(step["loss"])
        for place, gradient in enumerate(step["gradients"]):
            constant = place == 2 and case in CONSTANT_TAU
            assert gradient == 0 if constant else gradient.abs().max() > 1e-4
        assert step["estimates_normalizers"] == (step["log_normalizer"] is not None)
        assert step["log_normalizer"] is None or step["log_normalizer"].shape == (2, GLOBAL_BATCH)


@pytest.mark.parametrize("case", CASES)
def test_loss_metrics_and_state_are_the_same_on_every_rank(case):
    results = whole_run(4)
    for other in results[1:]:
        torch.testing.assert_close(other[case], results[0][case], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_state_continues_at_another_world_size(case, before, after):
    expected, ours = whole_run(1)[0][case], continued_run(before, after)[case]
    for step in range(MIDDLE, STEPS):
        assert_same(ours["steps"][step - MIDDLE], expected["steps"][step])
    assert_same(ours["final"], expected["final"])


@pytest.mark.parametrize("name", REGISTRY)
def test_in_evaluation_mode_the_loss_is_a_function(name):
    objective = build_objective(name, OPTIONS.get(name, {}))
    objective.prepare(torch.device("cpu"), DIM, SAMPLES, seed=3)
    generator = torch.Generator().manual_seed(0)
    features = Features(*(F.normalize(torch.randn(8, DIM, generator=generator), dim=-1) for _ in range(2)))
    index, tau_and_bias = torch.arange(8), scalars(objective)
    trained = objective(features, index, *tau_and_bias)
    objective.eval()
    first, second = (objective(features, index, *tau_and_bias) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert torch.isfinite(trained.loss)


class LargestTensor(TorchDispatchMode):
    """The most elements that an operation inside the block has allocated for one result."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


@pytest.mark.parametrize("name", REGISTRY)
def test_no_tensor_grows_with_the_pairs_of_a_batch(name, monkeypatch):
    """Similarities come in chunks: 128 x 128 pairs, and nothing larger than a chunk or the features of the batch."""
    monkeypatch.setattr(global_batch, "CHUNK_ENTRIES", 512)
    size, dim = 128, 4
    objective = build_objective(name, {"npn": {"prototypes": 4}} if name == "neuclip" else {})
    objective.prepare(torch.device("cpu"), dim, size, seed=0)
    leaves = [F.normalize(torch.randn(size, dim), dim=-1).requires_grad_() for _ in "it"]
    with LargestTensor() as largest:
        objective(Features(*leaves), torch.arange(size), *scalars(objective)).loss.backward()
    assert size * dim <= largest.entries <= 2 * size * dim < size**2 / 10


def bytes_of_a_step(name, options, dim, batch_size):
    objective = build_objective(name, options)
    objective.prepare(torch.device("cpu"), dim, 1000, seed=0)
    generator = torch.Generator().manual_seed(rank())
    features = Features(*(F.normalize(torch.randn(batch_size, dim, generator=generator), dim=-1) for _ in "it"))
    with count_bytes() as sent:
        objective(features, torch.arange(batch_size), *scalars(objective))
    return dict(sent)


def test_bytes_per_step():
    """NeuCLIP at its published settings sends less than a local loss with a differentiable gather would."""
    ranks, batch_size, dim = 4, 8, 512
    global_batch, inner_steps = ranks * batch_size, 10
    features = (ranks - 1) * batch_size * 2 * dim * 4
    scalars, sample_index = (ranks - 1) * batch_size * 4 * 4, (ranks - 1) * batch_size * 8
    (openclip, *_) = run_ranks(ranks, bytes_of_a_step, "openclip", {}, dim, batch_size)
    assert openclip == {"all_gather": features + scalars}
    (neuclip, *_) = run_ranks(ranks, bytes_of_a_step, "neuclip", {"npn": {"prototypes": 64}}, dim, batch_size)
    exchange = 4 * global_batch * 4 * 2 * (ranks - 1) // ranks  # max and sum of both sides, ring all-reduce
    spread = 2 * dim * 4 * 2 * (ranks - 1) // ranks  # of the prototypes, every tenth step
    seconds = 4 * 2 * (ranks - 1) // ranks
    assert neuclip == {
        "all_gather": features + scalars + sample_index,
        "all_reduce": (inner_steps + 1) * exchange + spread + seconds,
    }
    reduce_scatter_of_feature_gradients = features
    (fastclip, *_) = run_ranks(ranks, bytes_of_a_step, "fastclip", {}, dim, batch_size)
    estimators = 2 * global_batch * 4 * 2 * (ranks - 1) // ranks
    assert fastclip == {"all_gather": features + scalars + sample_index, "all_reduce": estimators}
    # Both of AmorLIP's steps reduce its network's gradient and the loss; log lambda is gathered.
    steps = {"network": {"inner_steps": 2, "tolerance": 0}}
    (amorlip, *_) = run_ranks(ranks, bytes_of_a_step, "amorlip", steps, dim, batch_size)
    weights, log_lambda = 4 * dim**2 + 14 * dim + 2, (ranks - 1) * batch_size * 2 * 4
    assert amorlip == {
        "all_gather": features + scalars + log_lambda,
        "all_reduce": 2 * (weights + 1) * 4 * 2 * (ranks - 1) // ranks,
    }
    (siglip, *_) = run_ranks(ranks, bytes_of_a_step, "siglip", {}, dim, batch_size)
    texts = batch_size * dim * 4
    # Texts make K-1 hops and their gradient all K; loss, tau's gradient and two sums are reduced.
    assert siglip == {"ring_shift": (2 * ranks - 1) * texts, "all_reduce": 4 * 4 * 2 * (ranks - 1) // ranks}
    assert sum(neuclip.values()) < features + reduce_scatter_of_feature_gradients
