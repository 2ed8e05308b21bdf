"""What is written in the background is of the moment at which it was taken, whatever training does meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.engine.engine import TrainEngine
from pipeline.engine.snapshot import take
from pipeline.models.two_tower import build_tokenizer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import TINY, config_of, here

OBJECTIVES = {"zero0": "amorlip", "zero1": "fastclip", "zero2": "neuclip", "zero3": "neuclip"}  # by stage


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor and array of a snapshot, by its path."""
    if isinstance(value, torch.Tensor):
        yield where, value.numpy()
    elif isinstance(value, np.ndarray):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{where}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves(item, f"{where}/{number}")


def changed(config: RunConfig, folder: Path) -> dict[str, set[str]]:
    """Which arrays two further steps change: of a snapshot taken before them, and of one taken after."""
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    engine = TrainEngine(config, here(), len(corpus), 8)
    positions = StepPositions(config.train.global_batch_size, 0, 1, 0, 4)
    batches = iter(build_loader(corpus, positions, config.loader, pin_memory=False))
    engine.step(next(batches))
    engine.step(next(batches))
    before = take(engine, {}, folder, "step-00000002", copies=True)
    known = dict(leaves(copy.deepcopy(before)))
    for batch in batches:
        engine.step(batch)
    after = take(engine, {}, folder, "step-00000004", copies=True)
    return {
        name: {where for where, array in leaves(snapshot) if array.tobytes() != known[where].tobytes()}
        for name, snapshot in (("before", before), ("after", after))
    }


def changed_by_stage(configs: dict[str, RunConfig], folder: Path) -> dict[str, dict[str, set[str]]]:
    return {stage: changed(config, folder) for stage, config in configs.items()}


def test_training_does_not_reach_into_a_snapshot(noise_corpus: Path, tmp_path: Path) -> None:
    configs = {
        stage: config_of(noise_corpus, f"train.deepspeed={stage}", f"objective={objective}", "train.ema_decay=0.9")
        for stage, objective in OBJECTIVES.items()
    }
    (found,) = run_ranks(1, changed_by_stage, configs, tmp_path)
    for stage, names in found.items():
        assert names["before"] == set(), stage
        files = {where.split("/")[1] for where in names["after"]}  # that would show it
        assert "weight-average" in files
        assert any("model_states" in file for file in files) or stage == "zero3"  # there weights are with the moments
        assert any("optim_states" in file for file in files) or stage == "zero0"  # and here the other way round
        assert {"objective.pt", "objective-shards"} & files
