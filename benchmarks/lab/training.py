"""One run of the laboratory: the towers, objective, parameter groups and schedules of `pipeline`, without DeepSpeed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lab.corpora import DEFAULT
from lab.data import CONTEXT, SIZE, VOCABULARY, Corpus, sample
from lab.measures import accuracy, log_normalizer_error
from lab.towers import Convolutions
from pipeline.config.loader import parse
from pipeline.config.schema import RunConfig, Section
from pipeline.engine.optimizer import TEMPERATURE, build_optimizer
from pipeline.engine.schedule import Schedule, build_schedule, temperature_rate
from pipeline.engine.train_module import TrainModule, build_train_module
from pipeline.objectives import Features, Objective, build_objective

EMBED_DIM = 128
IMAGE_WIDTH = 32
MODEL = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {"image_size": SIZE, "patch_size": SIZE, "width": 32, "head_width": 32, "layers": 1},  # replaced
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 1},
}


class Trial(Section):
    """What decides a run. options, temperature, optimizer: as in a recipe. share: of the training images."""

    objective: str
    corpus: str = DEFAULT
    options: dict[str, Any] = Field(default_factory=dict)
    temperature: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = 64
    samples: int = 51_200
    share: float = 1.0
    seed: int = 0
    measure_error: int = 0  # times along the run, evenly spaced, the last at its end
    measure_accuracy: int = 1
    report: bool = False  # the tasks for reporting, not those for tuning


@dataclass
class Setup:
    """A run before its first step. seconds: of processor time in training so far, measurements left
    out; on one thread they are wall-clock seconds of an idle core, and other work on the machine does not count."""

    trial: Trial
    corpus: Corpus
    config: RunConfig
    module: TrainModule
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    generator: torch.Generator
    steps: int
    seconds: float = 0.0


class StepResult(NamedTuple):
    """features: (B, D) each, detached. metrics: loss, tau and the objective's own."""

    features: Features
    metrics: dict[str, Tensor]


def run(trial: Trial, corpus: Corpus) -> dict[str, Any]:
    """Train, and measure along the way.

    Returns {seconds, curve: [{step, samples, seconds, ...}], final: the curve's last point}; seconds are those of
    training alone, and a diverged run ends early with `diverged: step`.
    """
    setup = build(trial, corpus)
    error_steps, accuracy_steps = (_spaced(setup.steps, n) for n in (trial.measure_error, trial.measure_accuracy))
    tasks = corpus.reporting if trial.report else corpus.tuning
    curve: list[dict[str, Any]] = []

    def keep(step: int, point: dict[str, float]) -> None:
        curve.append({"step": step, "samples": step * trial.batch_size, "seconds": setup.seconds, **point})

    for step, result in train_steps(setup):
        if not torch.isfinite(result.metrics["loss"]):
            return {"seconds": setup.seconds, "curve": curve, "final": {}, "diverged": step}
        if step in error_steps:
            point = log_normalizer_error(setup.module, setup.objective, setup.corpus, trial.batch_size, trial.seed)
            keep(step, point)
        if step in accuracy_steps:
            scalars = {name: float(value) for name, value in result.metrics.items()}
            keep(step, accuracy(setup.module, tasks) | scalars)
    return {"seconds": setup.seconds, "curve": curve, "final": curve[-1] if curve else {}}


def build(trial: Trial, corpus: Corpus) -> Setup:
    """Fresh towers, objective and optimizer; everything random follows from the trial's seed."""
    corpus = corpus.part(trial.share)
    steps = trial.samples // trial.batch_size
    config = _config(trial, steps)
    torch.manual_seed(trial.seed)
    module = build_train_module(config)
    module.towers.visual = Convolutions(IMAGE_WIDTH, EMBED_DIM)
    objective = build_objective(trial.objective, trial.options)
    size = len(corpus.images)
    objective.prepare(torch.device("cpu"), EMBED_DIM, size, trial.seed, trial.samples / size)
    optimizer = build_optimizer(module, config.optimizer, config.temperature)
    schedule = build_schedule(config.optimizer, steps, trial.batch_size, size)
    generator = torch.Generator().manual_seed(trial.seed)
    return Setup(trial, corpus, config, module, objective, optimizer, schedule, generator, steps)


def train_steps(setup: Setup) -> Iterator[tuple[int, StepResult]]:
    """Train; yields after every step, counted from 1."""
    batches = _batches(len(setup.corpus.images), setup.trial.batch_size, setup.steps, setup.generator)
    for step, index in enumerate(batches, start=1):
        started = time.process_time()
        result = _step(setup, index, step)
        setup.seconds += time.process_time() - started
        yield step, result


def _step(setup: Setup, index: Tensor, step: int) -> StepResult:
    module, config = setup.module, setup.config
    encoded = module(*sample(setup.corpus, index, setup.generator))
    features = Features(encoded.image_features, encoded.text_features)
    output = setup.objective(features, index, encoded.tau, encoded.logit_bias)
    rate, of_tau = setup.schedule.rate(step - 1), temperature_rate(float(encoded.tau.detach()), config.temperature)
    for group in setup.optimizer.param_groups:
        group["lr"] = of_tau if group["name"] == TEMPERATURE else rate
    setup.optimizer.zero_grad()
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_grad_norm)
    setup.optimizer.step()
    with torch.no_grad():
        module.towers.logit_scale.clamp_(*module.logit_scale_bounds)
    metrics = {"loss": output.loss.detach(), "tau": encoded.tau.detach(), **output.metrics}
    return StepResult(Features(*(f.detach() for f in features)), metrics)


def _batches(size: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Epochs of permutations laid end to end; (batch_size,) each."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(size, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def _spaced(steps: int, count: int) -> set[int]:
    return {round(steps * (i + 1) / count) for i in range(count)}


def _config(trial: Trial, steps: int) -> RunConfig:
    optimizer = {"lr": 1e-3, "warmup": max(1, steps // 20), "weight_decay": 0.1, **trial.optimizer}
    settings = {
        "name": "laboratory",
        "objective": trial.objective,
        "seed": trial.seed,
        "model": {"name": "laboratory", "config": copy.deepcopy(MODEL)},
        "temperature": trial.temperature,
        "optimizer": optimizer,
        "train": {"global_batch_size": trial.batch_size, "steps": steps},
    }
    return parse(RunConfig, settings, where="trial")
