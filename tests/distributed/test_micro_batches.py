"""Micro-batches give the weights of the whole batch, whatever the objective and the ZeRO stage (contract 5)."""

from __future__ import annotations

from collections import Counter
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.config.loader import load_recipe
from pipeline.data.loader import Batch
from pipeline.engine.deepspeed_config import FOLDER, deepspeed_config
from pipeline.engine.engine import TrainEngine
from pipeline.engine.micro_batches import MicroBatches
from pipeline.engine.train_module import Encoded, TrainModule, build_train_module
from pipeline.errors import UserError
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import OBJECTIVES, RESNET, TINY, config_of, here, train

STEPS = 3


def whole_and_pieces(corpus: Path, objective: str, stage: str, size: int, *more: str) -> dict[str, Any]:
    """The same training with the whole batch at one time, and `size` samples at a time."""
    settings = (
        f"objective={objective}",
        f"objectives={{{objective}: {OBJECTIVES[objective]}}}",
        "temperature={init: 0.07, lr: 0.01}",
        f"train.deepspeed={stage}",
        f"train.steps={STEPS}",
        "train.global_batch_size=24",
        *more,
    )
    return {
        name: train(config_of(corpus, *settings, f"train.micro_batch_size_per_gpu={samples}"))
        for name, samples in {"whole": "null", "pieces": size}.items()
    }


def assert_equal(runs: dict[str, Any]) -> None:
    for whole, pieces in zip(runs["whole"]["metrics"], runs["pieces"]["metrics"], strict=True):
        for name in ("train/loss", "train/tau_grad", "train/grad_norm"):
            assert pieces[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
    for name, expected in runs["whole"]["objective"].items():
        torch.testing.assert_close(runs["pieces"]["objective"][name], expected, rtol=1e-3, atol=2e-5, equal_nan=True)
    moved = 0
    for name, expected in runs["whole"]["weights"].items():
        torch.testing.assert_close(runs["pieces"]["weights"][name], expected, rtol=1e-3, atol=2e-5)
        moved += expected.numel()
    assert moved > 1000


def of_every_objective(corpus: Path, stage: str, size: int, *more: str) -> dict[str, Any]:
    return {objective: whole_and_pieces(corpus, objective, stage, size, *more) for objective in OBJECTIVES}


STAGES = [
    pytest.param(path.stem, marks=pytest.mark.long if path.stem.endswith("_offload") else ())
    for path in sorted(FOLDER.glob("*.json"))
]


@pytest.mark.parametrize("stage", STAGES)
def test_every_objective_under_every_stage(noise_corpus: Path, stage: str) -> None:
    for runs in run_ranks(2, of_every_objective, noise_corpus, stage, 4)[0].values():
        assert_equal(runs)


@pytest.mark.long
def test_a_batch_of_1024_in_pieces_of_32(noise_corpus: Path) -> None:
    """32 pieces: their rounding errors do not add up."""
    for runs in run_ranks(1, of_every_objective, noise_corpus, "zero2", 32, "train.global_batch_size=1024")[0].values():
        assert_equal(runs)


class Recorder:
    """An engine without DeepSpeed that notes the features of every pass."""

    def __init__(self, module: TrainModule) -> None:
        self.module, self.passes = module, []

    def __call__(self, images: torch.Tensor, tokens: torch.Tensor) -> Encoded:
        encoded = self.module(images, tokens)
        self.passes.append(encoded.image_features.detach())
        return encoded

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        pass


def test_the_same_patches_are_left_out_in_both_passes() -> None:
    """Else the gradients would be those of other features."""
    vision = {**TINY["vision_cfg"], "patch_size": 2}
    overrides = [f"model.config={ {**TINY, 'vision_cfg': vision} }", "model.patch_dropout=0.5"]
    torch.manual_seed(0)
    engine = Recorder(build_train_module(load_recipe("demo", overrides)).train())
    images, tokens = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8), torch.ones(6, 8, dtype=torch.int64)
    pieces = MicroBatches(engine, Batch(images, tokens, torch.arange(6), Counter()), 2)
    encoded = pieces.encode()
    pieces.update((encoded.image_features * encoded.text_features).sum())
    first, second = engine.passes[:3], engine.passes[3:]
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), encoded.image_features)
    assert not torch.equal(
        engine.module(images, tokens).image_features, encoded.image_features
    )  # else nothing is shown


def test_what_cannot_be_split_is_refused(noise_corpus: Path) -> None:
    with pytest.raises(UserError, match="micro_batch_size_per_gpu=5 does not divide the 6 samples"):
        deepspeed_config(config_of(noise_corpus, "train.micro_batch_size_per_gpu=5"), 2)
    with pytest.raises(UserError, match=r"visual.bn1 is a batch normalisation"):
        TrainEngine(
            config_of(noise_corpus, "train.micro_batch_size_per_gpu=6", f"model.config={RESNET}"), here(), 100, 8
        )


def test_deepspeeds_own_accumulation_is_refused_with_the_reason(noise_corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    own.write_text('{"gradient_accumulation_steps": 4}')
    with pytest.raises(UserError, match="a contrastive loss couples them"):
        deepspeed_config(config_of(noise_corpus, f"train.deepspeed={own}"), 2)


def compiled_and_not(corpus: Path) -> dict[str, Any]:
    """Captured and differentiated as torch.compile does it, but run by torch's own kernels: no compiler is needed."""
    plain = config_of(corpus, "train.steps=3", "train.micro_batch_size_per_gpu=3")
    runs = {"whole": train(plain)}
    with mock.patch.object(TrainModule, "compile", partialmethod(TrainModule.compile, backend="aot_eager")):
        runs["pieces"] = train(plain.model_copy(update={"train": plain.train.model_copy(update={"compile": True})}))
    counters = torch._dynamo.utils.counters
    runs["captured"] = counters["stats"]["unique_graphs"]
    return runs


@pytest.mark.long
def test_compiled_towers_train_alike(noise_corpus: Path) -> None:
    runs = run_ranks(1, compiled_and_not, noise_corpus)[0]
    assert runs["captured"] > 0
    assert_equal(runs)
