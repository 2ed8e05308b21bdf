"""A run goes on with other ranks and other ZeRO stages as if nothing had happened: same samples, same weights."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Batch
from pipeline.distributed import rank
from pipeline.engine.engine import StepOutput
from pipeline.engine.export import export
from pipeline.engine.tags import complete_tags
from pipeline.tracking.base import NullTracker
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import StopAfter, config_of, here, whole_weights

LOWEST_TAU, DECAY = 0.069, 0.6
# A hundredth of a step: the bias of an attention's keys has no gradient but rounding's, which AdamW divides by eps.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CHANGES = [
    ("zero2", 4, "zero3"),
    ("zero2", 1, "zero1"),
    *(
        pytest.param(*change, marks=pytest.mark.long)
        for change in (
            ("zero2", 1, "zero2"),
            ("zero2", 4, "zero1"),
            ("zero2", 2, "zero3_offload"),
            ("zero3", 4, "zero3"),
            ("zero3", 1, "zero2_offload"),
            ("zero3", 2, "zero0"),
            ("zero0", 1, "zero0"),
            ("zero0", 4, "zero2"),
            ("zero0", 1, "zero3"),
        )
    ),
]


def settings(corpus: Path, stage: str) -> RunConfig:
    # tau runs into its bound on the way: the clamp, too, must find what ZeRO keeps of it.
    tau = f"temperature={{init: 0.07, lr: 0.01, minimum: {LOWEST_TAU}}}"
    return config_of(corpus, f"train.deepspeed={stage}", tau, "train.log_every_steps=1", f"train.ema_decay={DECAY}")


class Seen:
    """The whole weights before each step and after the last."""

    def __init__(self, trainer: Trainer) -> None:
        self.weights: list[dict[str, torch.Tensor]] = [whole_weights(trainer.engine)]
        step = trainer.engine.step

        def watched(batch: Batch) -> StepOutput:
            output = step(batch)
            self.weights.append(whole_weights(trainer.engine))
            return output

        trainer.engine.step = watched


def averaged(weights: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """By the formula, of an undisturbed run."""
    average = {name: start.double() for name, start in weights[0].items()}
    for step, now in enumerate(weights[1:], start=1):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = {name: decay * before + (1 - decay) * now[name] for name, before in average.items()}
    return average


def live(config: RunConfig, run_dir: Path, stop_after: int = -1) -> dict[str, Any]:
    """One life of a run, with the weights as a whole."""
    trainer = Trainer(config, run_dir / "train", here())
    started_at = trainer.progress.step
    tracker = StopAfter(run_dir / "train/metrics.jsonl", started_at, stop_after) if rank() == 0 else NullTracker()
    seen = Seen(trainer)
    status = trainer.fit(tracker)
    inner = getattr(trainer.engine.optimizer, "optimizer", trainer.engine.optimizer)
    return {
        "seen": seen.weights,
        "status": status,
        "started_at": started_at,
        "weights": whole_weights(trainer.engine),
        "order": trainer.progress.order_digest,
        "updates": {float(state["step"]) for state in inner.state.values()},
    }


@pytest.fixture(scope="module")
def undisturbed(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_ranks(2, live, settings(noise_corpus, "zero2"), tmp_path_factory.mktemp("whole"))[0]


@pytest.fixture(scope="module")
def stopped(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of the stage on 2 ranks that was stopped after 5 of 8 steps; made once."""

    @functools.cache
    def run_of(stage: str) -> Path:
        folder = tmp_path_factory.mktemp(stage)
        run_ranks(2, live, settings(noise_corpus, stage), folder, 5)
        (folder / "STOP").unlink()
        return folder

    return run_of


@pytest.mark.parametrize(("saved", "ranks", "stage"), CHANGES)
def test_a_run_goes_on_elsewhere(
    noise_corpus: Path,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    stopped: Callable[[str], Path],
    saved: str,
    ranks: int,
    stage: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped(saved), run)
    resumed = run_ranks(ranks, live, settings(noise_corpus, stage), run)[0]
    assert (resumed["started_at"], resumed["status"]) == (5, "finished")
    assert resumed["order"] == undisturbed["order"]
    assert resumed["updates"] == {8.0}
    for name, expected in undisturbed["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], expected, **CLOSE)
    assert torch.exp(-resumed["weights"]["towers.logit_scale"]).item() == pytest.approx(LOWEST_TAU)
    tags = run / "train/checkpoints"
    export(tags, tmp_path / "average")
    exported = load_file(tmp_path / "average/open_clip_model.safetensors")
    for name, expected in averaged(undisturbed["seen"]).items():
        found = exported[name.removeprefix("towers.")].reshape(expected.shape)
        torch.testing.assert_close(found, expected.float(), **CLOSE)
    assert complete_tags(tags)[-1] == "step-00000008"
    assert not list(tags.glob(".*"))
