"""On two ranks: the gradient for tau and parameter norms are those of a plain model under every ZeRO stage, the
diagnostics that are logged are those of numpy, and a run that is ill says so in its log and its metrics, where a
healthy one says nothing."""

from __future__ import annotations

import io
import logging
import math
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.callbacks import Callback
from pipeline.config.schema import RunConfig
from pipeline.data.loader import Batch, Corpus, StepPositions, build_loader
from pipeline.engine.engine import StepOutput, TrainEngine
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.train_module import build_train_module
from pipeline.errors import UserError
from pipeline.models.two_tower import build_tokenizer
from pipeline.objectives import Features, build_objective
from pipeline.tracking.base import NullTracker
from pipeline.tracking.jsonl import JsonlTracker, read_points
from pipeline.trainer import METRICS, Trainer
from tests.conftest import write_corpus
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import TINY, config_of, here, stage_file

STEPS = 4


def batches(config: RunConfig, rank: int, size: int) -> list[Batch]:
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    positions = StepPositions(config.train.global_batch_size, rank, size, 0, 1)
    return list(build_loader(corpus, positions, config.loader, pin_memory=False))


def first_step(config: RunConfig) -> dict[str, float]:
    engine = TrainEngine(config, here(), 203, STEPS)
    norms = {f"norm of {name}": float(norm) for name, norm in engine.parameter_norms().items()}
    (batch,) = batches(config, here().rank, here().size)
    output = engine.step(batch)
    return {"tau_grad": float(output.metrics["train/tau_grad"]), **norms}


def first_step_of_each(configs: dict[str, RunConfig]) -> dict[str, dict[str, float]]:
    return {name: first_step(config) for name, config in configs.items()}


def plain(config: RunConfig) -> dict[str, float]:
    """One process, the whole batch, autograd."""
    torch.manual_seed(config.seed)
    module = build_train_module(config)
    objective = build_objective(config.objective, config.objectives[config.objective])
    objective.prepare(torch.device("cpu"), 16, 203, config.seed)
    norms = {
        f"norm of {group['name']}": math.sqrt(sum(float(p.detach().double().square().sum()) for p in group["params"]))
        for group in build_optimizer(module, config.optimizer, config.temperature).param_groups
    }
    (batch,) = batches(config, 0, 1)
    encoded = module(batch.images, batch.tokens)
    features = Features(encoded.image_features, encoded.text_features)
    loss = objective(features, batch.sample_index, encoded.tau).loss
    (gradient,) = torch.autograd.grad(loss, encoded.tau)
    return {"tau_grad": float(gradient), **norms}


def test_tau_gradient_and_norms_are_the_plain_models_under_every_zero_stage(noise_corpus: Path, tmp_path: Path) -> None:
    configs = {
        f"zero{stage} {objective}": config_of(
            noise_corpus,
            f"train.deepspeed={stage_file(tmp_path, stage)}",
            f"objective={objective}",
            "objectives.openclip={}",
        )
        for stage, objective in [(0, "neuclip"), (1, "openclip"), (2, "neuclip"), (3, "neuclip"), (3, "openclip")]
    }
    results = run_ranks(2, first_step_of_each, configs)
    assert results[0] == results[1]
    for name, config in configs.items():
        expected = plain(config)
        assert abs(expected["tau_grad"]) > 0.1
        assert results[0][name] == pytest.approx(expected, rel=1e-4), name


class Witness:
    """A callback that takes down what this rank's part of the diagnostics is made of, on every step."""

    def __init__(self, trainer: Trainer) -> None:
        self._corpus = trainer.corpus.by_sample_index(np.arange(len(trainer.corpus)))
        self.steps: list[dict[str, Any]] = []

    def before_step(self, trainer: Trainer) -> None:
        self._dataset = [features.numpy() for features in trainer.engine.encode(self._corpus)]

    def after_step(self, trainer: Trainer, batch: Batch, output: StepOutput) -> None:
        features, alpha = [f.numpy().astype(np.float64) for f in output.features], output.output.log_normalizer
        self.steps.append(
            {
                "features": features,
                "dataset": [f.astype(np.float64) for f in self._dataset],
                "index": batch.sample_index.numpy(),
                "alpha": None if alpha is None else alpha.numpy().astype(np.float64),
                "tau": float(output.tau),
            }
        )


class WitnessedTrainer(Trainer):
    """Its callbacks begin with a witness."""

    def _callbacks(self) -> list[Callback]:
        self.witness = Witness(self)
        return [self.witness, *super()._callbacks()]


def witnessed_fit(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The metrics that were logged, and what this rank's witness took down."""
    trainer = WitnessedTrainer(config, folder / "train", here())
    path = folder / "train" / METRICS
    trainer.fit(JsonlTracker(path, 0) if here().rank == 0 else NullTracker())
    points = [point.metrics for point in read_points(path)] if here().rank == 0 else []
    return {"points": points, "steps": trainer.witness.steps}


def fit_witnessed(configs: dict[str, RunConfig], folder: Path) -> dict[str, Any]:
    return {name: witnessed_fit(config, folder / name) for name, config in configs.items()}


def squared_errors(step: dict[str, Any], eps: float) -> list[float]:
    """(alpha - log(eps + g(S)))^2 of a rank's anchors, the mean of both sides, S the whole dataset but the anchor."""
    errors = []
    for i, sample in enumerate(step["index"]):
        sides = []
        others = np.arange(len(step["dataset"][0])) != sample
        for side in (0, 1):
            similarity = step["dataset"][1 - side][others] @ step["features"][side][i]
            h = (similarity - step["features"][0][i] @ step["features"][1][i]) / step["tau"]
            sides.append((step["alpha"][side, i] - np.log(eps + np.exp(h).mean())) ** 2)
        errors.append(sum(sides) / 2)
    return errors


def test_the_diagnostics_that_are_logged_are_those_of_numpy(noise_corpus: Path, tmp_path: Path) -> None:
    """All 203 samples are the reference, which two ranks do not divide; one sample per rank has no uniformity. AdamW's
    first step is its rate: a third of tau's below the threshold."""
    always = ("train.log_every_steps=1", "diagnostics={every_steps: 1, reference_samples: 500}", "train.steps=2")
    configs = {
        f"{objective} {size}": config_of(
            noise_corpus,
            *always,
            f"train.global_batch_size={size}",
            f"temperature={{init: 0.05, lr: 0.01, drop_below: {drop_below}}}",
            f"objective={objective}",
            f"objectives.{objective}={options}",
        )
        for objective, options, size, drop_below in [
            ("neuclip", "{npn: {prototypes: 16}}", 12, 0.049),
            ("neuclip", "{npn: {prototypes: 16}}", 2, 0.051),
            ("amorlip", "{eps: 0.1}", 12, 0.051),
        ]
    }
    ranks = run_ranks(2, fit_witnessed, configs, tmp_path)
    for name, config in configs.items():
        points = ranks[0][name]["points"]
        assert len(points) == 2
        taus = [step["tau"] for step in ranks[0][name]["steps"]]
        rate = 0.01 / 3 if config.temperature.drop_below > 0.05 else 0.01
        assert points[0]["train/lr_temperature"] == pytest.approx(rate)
        assert abs(math.log(taus[1] / taus[0])) == pytest.approx(rate, rel=1e-3)
        eps = {"neuclip": 1e-14, "amorlip": 0.1}[config.objective]
        for number, point in enumerate(points):
            steps = [rank[name]["steps"][number] for rank in ranks]
            errors = np.array([error for step in steps for error in squared_errors(step, eps)])
            assert point["npn/log_normalizer_mse"] == pytest.approx(errors.mean(), rel=1e-3)
            deviation = errors.std(ddof=1) / math.sqrt(len(errors))
            assert point["npn/log_normalizer_mse_se"] == pytest.approx(deviation, rel=1e-3)
            assert point["train/tau"] == pytest.approx(steps[0]["tau"])
            image, text = (np.concatenate([step["features"][side] for step in steps]) for side in (0, 1))
            assert point["train/alignment"] == pytest.approx(((image - text) ** 2).sum(axis=1).mean(), rel=1e-4)
            assert ("train/uniformity_image" in point) == (config.train.global_batch_size > 2)
            assert all(math.isfinite(value) for value in point.values())


def fit(config: RunConfig, folder: Path) -> tuple[list[dict[str, float]], str]:
    """The metrics that were logged, and what `pipeline.health` said on this rank."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("pipeline.health")
    logger.addHandler(handler)
    trainer = Trainer(config, folder / "train", here())
    path = folder / "train" / METRICS
    try:
        trainer.fit(JsonlTracker(path, 0) if here().rank == 0 else NullTracker())
    except UserError as error:
        said.write(f"stopped: {error}")
    logger.removeHandler(handler)
    points = [point.metrics for point in read_points(path)] if here().rank == 0 else []
    return points, said.getvalue()


def fit_with_a_slow_rank(config: RunConfig, folder: Path) -> tuple[list[dict[str, float]], str]:
    """As `fit`; rank 1 reads its data slowly."""
    usual = Corpus.__getitems__

    def slowly(corpus: Corpus, positions: list[int]) -> Batch:
        time.sleep(0.8)
        return usual(corpus, positions)

    Corpus.__getitems__ = slowly if here().rank == 1 else usual  # type: ignore[method-assign]
    try:
        return fit(config, folder)
    finally:
        Corpus.__getitems__ = usual  # type: ignore[method-assign]


def fit_each(configs: dict[str, RunConfig], folder: Path) -> dict[str, Any]:
    return {name: fit(config, folder / name) for name, config in configs.items()}


@pytest.fixture(scope="module")
def runs(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both ranks: a healthy run; one whose tau is pushed into its minimum, and whose prototypes count as collapsed
    whatever they do; the former, to be stopped for it."""
    common = (
        "train.log_every_steps=2",
        "diagnostics={every_steps: 2, reference_samples: 40}",
        "checkpoint.every=8",
    )
    # Reaching the floor from above: the optimizer, not the start, brings tau there.
    ill = (
        "temperature={init: 0.0105, minimum: 0.0102, maximum: 1.0, lr: 0.02, drop_below: 0}",
        "objectives.neuclip={rho: 50, npn: {prototypes: 16}}",
        "health.tau_at_bound_steps=3",
    )
    configs = {
        "healthy": config_of(noise_corpus, *common, "health.tau_at_bound_steps=3"),
        "ill": config_of(noise_corpus, *common, *ill, "health.spread_ratio_minimum=10"),
        "stopped": config_of(noise_corpus, *common, *ill, "health.stop_on=[tau_at_bound]"),
    }
    return run_ranks(2, fit_each, configs, tmp_path_factory.mktemp("health"))


def test_a_healthy_run_is_silent_and_measured(runs: list[dict[str, Any]]) -> None:
    points, said = runs[0]["healthy"]
    assert said == ""
    for point in points:
        assert point["health/warnings"] == 0
        assert point["train/skipped_steps"] == 0
        assert math.isfinite(point["train/tau_grad"])
        assert 0 < point["train/alignment"] <= 4
        assert -8 <= point["train/uniformity_image"] < 0
        assert -8 <= point["train/uniformity_text"] < 0
    for group in ("decay", "no_decay", "temperature"):
        assert len({point[f"train/parameter_norm_{group}"] for point in points}) == len(points) == 4


def test_a_tau_at_its_bound_is_in_the_log_and_in_the_metrics(runs: list[dict[str, Any]]) -> None:
    points, said = runs[0]["ill"]
    lines = [line for line in said.splitlines() if "train/tau " in line]
    assert len(lines) == 1
    assert "temperature.minimum=0.0102 for 3 steps" in lines[0]
    assert "objectives.neuclip.rho=50 is too large" in lines[0]
    (collapse,) = [line for line in said.splitlines() if "npn/spread_ratio" in line]  # measured every tenth step
    assert "below health.spread_ratio_minimum=10: the prototypes have collapsed" in collapse
    assert sum(point["health/warnings"] for point in points) == len(said.splitlines())
    assert all(point["train/tau_grad"] > 0 for point in points)  # descent keeps pushing tau down
    assert runs[1]["ill"][1] == ""  # one rank speaks


def test_a_stop_by_choice_is_every_ranks_and_comes_before_the_checkpoint(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    said = [result["stopped"][1] for result in runs]
    assert said[0] == said[1]
    assert "health.stop_on has tau_at_bound" in said[0]
    assert len(runs[0]["stopped"][0]) < len(runs[0]["ill"][0])


def test_a_slow_rank_is_named_and_failures_are_those_of_all_ranks(tmp_path: Path) -> None:
    broken = tuple(range(0, 200, 7))
    corpus = write_corpus(tmp_path / "corpus", [100, 100], broken)
    settings = (
        "loader.max_failure_rate=1",
        "train.log_every_steps=2",
        "health={straggler_windows: 3, straggler_factor: 1.5}",
    )
    config = config_of(corpus, *settings, "diagnostics={every_steps: 100, reference_samples: 2}")
    results = run_ranks(2, fit_with_a_slow_rank, config, tmp_path)
    points, said = results[0]
    (line,) = [line for line in said.splitlines() if "straggler" in line]
    assert f"step 6: rank 1 (host {socket.gethostname()}) takes " in line
    assert "3 times in a row" in line
    assert results[1][1] == ""  # one rank speaks
    assert all(point["ranks/slowest"] == 1 for point in points)
    assert all(point["ranks/own_seconds_slowest"] > 0.8 for point in points)

    alone = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    positions = StepPositions(config.train.global_batch_size, 0, 1, 0, 8)
    failures = [batch.failures.total() for batch in build_loader(alone, positions, config.loader, pin_memory=False)]
    assert sum(failures) > 5
    assert [point["data/failures"] for point in points] == [sum(failures[i : i + 2]) for i in range(0, 8, 2)]
