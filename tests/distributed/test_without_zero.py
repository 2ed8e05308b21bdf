"""Without ZeRO gradients are reduced in the buckets that the config names, and not copied where nobody shares them;
their norm is known, clipped or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.engine.engine import TrainEngine
from pipeline.models.two_tower import build_tokenizer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import TINY, config_of, here

BUCKET = 1000  # elements


def reduced(config: RunConfig) -> tuple[list[list[int]], int, float]:
    """The sizes of the gradients of each bucket in one step, and of all parameters together; the gradients' norm."""
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    engine = TrainEngine(config, here(), len(corpus), 8)
    buckets, reduce = [], engine.deepspeed.allreduce_bucket

    def watched(bucket: list[torch.Tensor], *args: object, **kwargs: object) -> torch.Tensor:
        buckets.append([gradient.numel() for gradient in bucket])
        return reduce(bucket, *args, **kwargs)

    engine.deepspeed.allreduce_bucket = watched
    positions = StepPositions(config.train.global_batch_size, here().rank, here().size, 0, 1)
    (batch,) = build_loader(corpus, positions, config.loader, pin_memory=False)
    norm = float(engine.step(batch).metrics["train/grad_norm"])
    return buckets, sum(parameter.numel() for parameter in engine.module.parameters()), norm


def test_buckets_are_as_large_as_the_config_says(noise_corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 0, "reduce_bucket_size": BUCKET}}))
    config = config_of(noise_corpus, f"train.deepspeed={own}")
    buckets, parameters, norm = run_ranks(2, reduced, config)[0]
    assert sum(map(sum, buckets)) == parameters
    assert len(buckets) > 5
    assert all(sum(sizes[:-1]) <= BUCKET for sizes in buckets)  # a bucket ends with what fills it
    assert norm > 1  # more than it is clipped to
    unclipped = config_of(noise_corpus, f"train.deepspeed={own}", "optimizer.clip_grad_norm=0")
    assert run_ranks(1, reduced, unclipped) == [([], parameters, pytest.approx(norm, rel=1e-4))]
