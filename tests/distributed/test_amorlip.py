"""AmorLIP end to end: DeepSpeed equals a plain loop, and networks, EMA and counters survive a stop between epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.tracking.jsonl import read_points
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, plain_loop, train_undisturbed_and_interrupted

STEPS = 20  # of 12 of the 203 samples: the last three are in the second epoch, with the first one's network mixed in


def test_training_goes_on_with_the_saved_networks(noise_corpus: Path, tmp_path: Path) -> None:
    options = "objectives.amorlip={lambda_from: ema, network: {z_beta_epochs: 2}}"
    config = config_of(noise_corpus, "objective=amorlip", options, f"train.steps={STEPS}", "train.log_every_steps=1")
    runs = run_ranks(2, train_undisturbed_and_interrupted, config, tmp_path)[0]
    for name, expected in plain_loop(config, STEPS).items():
        torch.testing.assert_close(runs["whole"]["weights"][name], expected, rtol=2e-3, atol=2e-4)

    assert runs["resumed"]["started_at"] == 5
    for name, expected in runs["whole"]["weights"].items():
        assert torch.equal(runs["resumed"]["weights"][name], expected), name
    points = [list(read_points(tmp_path / f"{run}/train/metrics.jsonl"))[-1].metrics for run in ("whole", "stopped")]
    assert points[0]["amorlip/beta"] == pytest.approx(0.4)
    for name in ("train/loss", "amorlip/fit_loss", "amorlip/log_lambda_mean"):
        assert points[0][name] == points[1][name]
