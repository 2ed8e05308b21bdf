"""Half precision. fp16: losses are scaled against underflow, gradients unscaled before they are clipped, overflows left
out. bf16: the towers compute in it, and what they learn stays fp32."""

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
from tests.distributed.training_support import TINY, config_of, here, whole_weights

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


def in_bf16(full: RunConfig, half: dict[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """fp32 first, as above."""
    return {"fp32": train(full), **{stage: train(config) for stage, config in half.items()}}


def test_bf16_trains_as_fp32_does_and_keeps_its_weights_in_fp32(noise_corpus: Path) -> None:
    settings = ("objective=openclip", "objectives={openclip: {}}", "train.steps=8")
    half = {
        stage: config_of(noise_corpus, *settings, "train.precision=bf16", f"train.deepspeed={stage}")
        for stage in ("zero0", "zero2", "zero3")
    }
    runs = run_ranks(2, in_bf16, config_of(noise_corpus, *settings), half)[0]
    full = runs.pop("fp32")
    for stage, run in runs.items():
        assert [point["train/skipped_steps"] for point in run["points"]] == [0.0] * 8
        for name in READ[:3]:
            value, expected = run["points"][0][name], full["points"][0][name]
            assert value == pytest.approx(expected, rel=0.1, abs=1e-3), (stage, name)  # 8 bits of mantissa
            assert value != expected, (stage, name)  # it did compute in another precision
        for name, expected in full["weights"][-1].items():
            weights = run["weights"][-1][name]
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights, expected, rtol=0.05, atol=4e-3)
        tau = run["weights"][-1]["towers.logit_scale"]
        assert not torch.equal(tau, tau.bfloat16().float())  # finer than bf16 could hold
