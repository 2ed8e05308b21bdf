"""tau's learning rate is that of the tau it updates, and tau stays in its range, under every kind of ZeRO."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.engine.engine import TrainEngine
from pipeline.engine.schedule import temperature_rate
from pipeline.models.two_tower import build_tokenizer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import TINY, config_of, here

STAGES = ("zero0", "zero2", "zero3")
LOWEST = 0.057


def settings(corpus: Path, stage: str) -> RunConfig:
    tau = f"temperature={{init: 0.07, lr: 0.05, minimum: {LOWEST}, drop_below: 0.062, drop_factor: 0.5}}"
    return config_of(corpus, f"train.deepspeed={stage}", tau, "train.steps=10")


def tau_and_rate(configs: list[RunConfig]) -> list[list[tuple[float, float]]]:
    """Of every step."""
    found = []
    for config in configs:
        corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
        engine = TrainEngine(config, here(), len(corpus), 10)
        positions = StepPositions(config.train.global_batch_size, here().rank, here().size, 0, 10)
        metrics = [engine.step(batch).metrics for batch in build_loader(corpus, positions, config.loader, False)]
        found.append([(float(m["train/tau"]), float(m["train/lr_temperature"])) for m in metrics])
    return found


def test_the_rate_is_that_of_the_tau_that_it_updates(noise_corpus: Path) -> None:
    configs = [settings(noise_corpus, stage) for stage in STAGES]
    by_rank = run_ranks(2, tau_and_rate, configs)
    assert by_rank[0] == by_rank[1]
    for config, steps in zip(configs, by_rank[0], strict=True):
        taus, rates = zip(*steps, strict=True)
        assert rates == tuple(temperature_rate(tau, config.temperature) for tau in taus)
        assert set(rates) == {0.05, 0.025}  # it dropped on the way
        assert taus[-1] == pytest.approx(LOWEST)  # and ran into its bound
        assert min(taus) >= LOWEST * (1 - 1e-6)
