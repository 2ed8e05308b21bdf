"""fp16: losses are scaled against underflow, gradients unscaled before they are clipped, overflows left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.engine.engine import TrainEngine
from pipeline.models.two_tower import build_tokenizer
from tests.distributed.launch import run_ranks
from tests.distributed.test_micro_batches import whole_weights
from tests.distributed.test_training import TINY, config_of, here

MODEST, TOO_LARGE = 2.0**8, 2.0**22
READ = ("train/loss", "train/grad_norm", "train/tau_grad", "train/skipped_steps", "train/loss_scale")


def train(config: RunConfig, first_scale: float | None = None) -> dict[str, Any]:
    world = here()
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    steps = config.train.steps or 0
    engine = TrainEngine(config, world, len(corpus), steps)
    if first_scale is not None:
        engine.optimizer.loss_scaler.cur_scale = first_scale
    positions = StepPositions(config.train.global_batch_size, world.rank, world.size, 0, steps)
    points, weights = [], [whole_weights(engine)]
    for batch in build_loader(corpus, positions, config.loader, pin_memory=False):
        metrics = engine.step(batch).metrics
        points.append({name: float(metrics[name]) for name in READ if name in metrics})
        weights.append(whole_weights(engine))
    return {"points": points, "weights": weights}


def in_each_precision(config: RunConfig) -> dict[str, dict[str, Any]]:
    half = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp16"})})
    still = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": 1e-12})})
    return {  # fp32 first: DeepSpeed keeps autocast on for all later engines of a process
        "fp32": train(config),
        "still": train(still),
        "fp16": train(half, MODEST),
        "overflowing": train(half, TOO_LARGE),
    }


@pytest.mark.parametrize(("stage", "pieces"), [("zero2", "3"), ("zero3", "null")])
def test_fp16_trains_and_recovers_from_overflow(noise_corpus: Path, stage: str, pieces: str) -> None:
    clipped = "optimizer.clip_grad_norm=0.01"  # so that a gradient clipped while scaled would not move the weights
    openclip = ("objective=openclip", "objectives={openclip: {}}", "temperature.lr=0")
    settings = (f"train.deepspeed={stage}", f"train.micro_batch_size_per_gpu={pieces}", clipped, *openclip)
    runs = run_ranks(2, in_each_precision, config_of(noise_corpus, "train.steps=12", *settings))[0]
    full, half, hurt, still = (runs[name] for name in ("fp32", "fp16", "overflowing", "still"))
    assert [point["train/skipped_steps"] for point in half["points"]] == [0.0] * 12
    for name in READ[:3]:
        assert half["points"][0][name] == pytest.approx(full["points"][0][name], rel=0.02, abs=1e-4), name
    for name, expected in full["weights"][-1].items():
        torch.testing.assert_close(half["weights"][-1][name], expected, rtol=0.05, atol=2e-3)

    skipped = [point["train/skipped_steps"] for point in hurt["points"]]
    left_out = int(sum(skipped))
    assert 0 < left_out < 12
    assert skipped == sorted(skipped, reverse=True)  # first the overflows, then none
    assert hurt["points"][-1]["train/loss_scale"] == TOO_LARGE / 2**left_out
    for number in range(12):
        before, after = hurt["weights"][number], hurt["weights"][number + 1]
        moved = any(not torch.equal(before[name], after[name]) for name in before)
        assert moved == (number >= left_out)
    # The first update that is made has the gradient of its batch for the weights that nothing has moved yet.
    assert math.isfinite(hurt["points"][left_out]["train/grad_norm"])
    expected_norm = still["points"][left_out]["train/grad_norm"]
    assert hurt["points"][left_out]["train/grad_norm"] == pytest.approx(expected_norm, rel=0.02)
