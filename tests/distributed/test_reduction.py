"""Without ZeRO gradients are reduced in the buckets that the config names, and not copied where nobody shares them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.engine.engine import TrainEngine
from pipeline.models.two_tower import build_tokenizer
from tests.distributed.launch import run_ranks
from tests.distributed.test_training import TINY, config_of, here

BUCKET = 1000  # elements


def reduced(config: RunConfig) -> tuple[list[list[int]], int]:
    """The sizes of the gradients of each bucket in one step, and of all parameters together."""
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    engine = TrainEngine(config, here(), len(corpus), 8)
    buckets, reduce = [], engine.deepspeed.allreduce_bucket

    def watched(bucket: list[torch.Tensor], *args: object, **kwargs: object) -> torch.Tensor:
        buckets.append([gradient.numel() for gradient in bucket])
        return reduce(bucket, *args, **kwargs)

    engine.deepspeed.allreduce_bucket = watched
    positions = StepPositions(config.train.global_batch_size, here().rank, here().size, 0, 1)
    (batch,) = build_loader(corpus, positions, config.loader, pin_memory=False)
    engine.step(batch)
    return buckets, sum(parameter.numel() for parameter in engine.module.parameters())


def test_buckets_are_as_large_as_the_config_says(noise_corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 0, "reduce_bucket_size": BUCKET}}))
    config = config_of(noise_corpus, f"train.deepspeed={own}")
    buckets, parameters = run_ranks(2, reduced, config)[0]
    assert sum(map(sum, buckets)) == parameters
    assert len(buckets) > 5
    assert all(sum(sizes[:-1]) <= BUCKET for sizes in buckets)  # a bucket ends with what fills it
    assert run_ranks(1, reduced, config) == [([], parameters)]
