"""SigLIP end to end: one sample per rank is enough, DeepSpeed learns the bias, and open_clip gets it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.collectives import all_gather, all_reduce
from pipeline.distributed import rank, world_size
from pipeline.engine.export import export
from pipeline.models.two_tower import load_exported
from pipeline.objectives import Features, build_objective
from pipeline.tracking.jsonl import read_points
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, plain_loop, train_undisturbed_and_interrupted


def gradients_of(batch_size: int) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of features (all ranks'), tau and bias, as the average over the ranks leaves them."""
    generator = torch.Generator().manual_seed(7)
    whole = [F.normalize(torch.randn(batch_size * world_size(), 16, generator=generator), dim=-1) for _ in "it"]
    own = slice(rank() * batch_size, (rank() + 1) * batch_size)
    image, text = (tensor[own].clone().requires_grad_() for tensor in whole)
    tau, bias = torch.tensor([0.1], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    output = build_objective("siglip", {})(Features(image, text), torch.arange(batch_size), tau, bias)
    grads = torch.autograd.grad(output.loss, (image, text, tau, bias))
    features = [all_gather(grad) / world_size() for grad in grads[:2]]
    return (output.loss.detach(), *features, *(all_reduce(grad, "mean") for grad in grads[2:]))


def test_the_ring_equals_one_process_with_one_sample_per_rank() -> None:
    expected = gradients_of(4)
    for ours in run_ranks(4, gradients_of, 1):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_training_learns_the_bias_and_export_keeps_it(noise_corpus: Path, tmp_path: Path) -> None:
    # The bias of an untrained model is far off: its rate has to show within 8 steps.
    settings = ("objective=siglip", "objectives.siglip={}", "temperature.init=0.1", "optimizer.lr=0.01")
    config = config_of(noise_corpus, *settings, "train.log_every_steps=1")
    runs = run_ranks(2, train_undisturbed_and_interrupted, config, tmp_path)[0]
    whole, resumed = runs["whole"], runs["resumed"]
    for name, expected in plain_loop(config, 8).items():
        torch.testing.assert_close(whole["weights"][name], expected, rtol=2e-3, atol=2e-4)
    bias = whole["weights"]["towers.logit_bias"]
    assert bias.item() > -9.99

    assert resumed["started_at"] == 5
    for name, expected in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], expected), name

    export(tmp_path / "whole/train/checkpoints", tmp_path / "model")
    exported = load_exported(tmp_path / "model", torch.device("cpu"))
    assert exported.model.logit_bias == bias.squeeze()
    last = list(read_points(tmp_path / "whole/train/metrics.jsonl"))[-1].metrics
    assert last["siglip/logit_bias"] == pytest.approx(bias.item(), abs=0.02)  # that of the step, before its update
    assert last["train/tau"] == pytest.approx(0.1, rel=0.1)
